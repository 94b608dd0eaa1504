"""Pictures of predictions: one per photo, and contact sheets."""

import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from hogwear.evaluation.palette import BLUE, INK, ORANGE, PALE, SOFT
from hogwear.evaluation.prediction import TOP_CLASSES, Prediction
from hogwear.system.arrays import UInt8Array
from hogwear.system.text import escape, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib takes half a second to import, so only where it draws.

# All in pixels.
PHOTO_SIDE = 480  # of the photo in a picture
CELL = 180  # of a photo on a contact sheet
GAP = 14  # between two photos on it
CAPTION = 66  # the height of the text below a photo on it
LINE = 19  # the height of a line of that text
PHOTOS_PER_SHEET = 100

Line = tuple[str, ImageFont.FreeTypeFont, str]  # text, font, colour


def stem_of(prediction: Prediction) -> str:
    """The name of its picture, without the suffix: the photo's name and the predicted class.

    Both may hold anything, so both are escaped and cut.
    """
    parts = (
        escape(name).replace("/", "_").replace("\\", "_")
        for name in (prediction.photo.file.stem, prediction.predicted)
    )
    return "_".join(part.encode()[:110].decode(errors="ignore") for part in parts)


def free_name(folder: Path, stem: str, taken: set[str]) -> Path:
    """The first of folder/STEM.png, folder/STEM_2.png, ... that is not `taken`, and take it.

    `taken` holds lower-case names, for file systems that ignore case.
    """
    candidates = (f"{stem}{f'_{n}' if n > 1 else ''}.png" for n in itertools.count(1))
    name = next(name for name in candidates if name.casefold() not in taken)
    taken.add(name.casefold())
    return folder / name


def colour_of(prediction: Prediction) -> str:
    return ORANGE if prediction.is_incorrect else BLUE


def draw_prediction(prediction: Prediction, image: UInt8Array) -> bytes:
    """A PNG: the photo, (S, S, 3), its predicted and true class, and the most probable classes."""
    from matplotlib.figure import Figure

    colour, true_class = colour_of(prediction), prediction.photo.true_class
    figure = Figure(figsize=(8, 4.4), dpi=120, facecolor="white")
    axes = figure.add_axes((0.03, 0.06, 0.47, 0.78))
    axes.imshow(image)
    axes.set_anchor("W")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=2)
    title = f"{shorten(prediction.predicted, 24)}  {prediction.probability:.1%}"
    write_text(figure, (0.03, 0.91), title + "  unsure" * prediction.unsure, 19, colour)
    if true_class is not None:
        labelled = f"incorrect (labelled {shorten(true_class, 18)})"
        verdict = labelled if prediction.is_incorrect else "correct"
        write_text(figure, (0.53, 0.82), verdict, 14, colour)
    write_text(figure, (0.03, 0.025), shorten(prediction.photo.file.name, 60), 9, SOFT)
    draw_bars(figure.add_axes((0.68, 0.12, 0.235, 0.66)), prediction, colour)
    figure.savefig(png := io.BytesIO(), metadata={"Software": None})
    return png.getvalue()


def write_text(
    figure: "Figure", place: tuple[float, float], text: str, size: int, colour: str
) -> None:
    weight = "bold" if size > 16 else "normal"
    figure.text(
        *place, text, fontsize=size, fontweight=weight, color=colour, va="center", parse_math=False
    )


def draw_bars(axes: "Axes", prediction: Prediction, colour: str) -> None:
    """The most probable classes, the first at the top in `colour`."""
    names, values = zip(*prediction.top_classes(), strict=True)
    rows = range(len(names))
    axes.barh(rows, values, color=[colour, *[PALE] * (len(names) - 1)], height=0.62)
    for row, value in zip(rows, values, strict=True):
        axes.text(value + 0.03, row, f"{value:.1%}", va="center", fontsize=10, color=INK)
    axes.set(xlim=(0, 1.0), ylim=(TOP_CLASSES - 0.5, -0.5), xticks=[])
    labels = [shorten(name, 18) for name in names]
    axes.set_yticks(rows, labels, fontsize=11, color=INK, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def draw_sheet(predictions: Sequence[Prediction]) -> bytes:
    """A PNG of a grid of photos, framed in blue or, where the prediction is incorrect, in orange.

    Below each are its predicted class and probability, its file name, and the label it contradicts.
    """
    regular, bold = load_font("DejaVuSans.ttf", 12), load_font("DejaVuSans-Bold.ttf", 14)
    columns = min(10, max(math.ceil(math.sqrt(1.5 * len(predictions))), 1))
    rows = math.ceil(len(predictions) / columns)
    size = GAP + columns * (CELL + GAP), GAP + rows * (CELL + CAPTION + GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for i, prediction in enumerate(predictions):
        x, y = GAP + i % columns * (CELL + GAP), GAP + i // columns * (CELL + CAPTION + GAP)
        frame, image = PALE, prediction.photo.image
        if image is not None:
            frame = colour_of(prediction)
            photo = Image.fromarray(image).resize((CELL, CELL), Image.Resampling.LANCZOS)
            sheet.paste(photo, (x, y))
        pen.rectangle((x - 3, y - 3, x + CELL + 2, y + CELL + 2), outline=frame, width=3)
        for n, (text, font, colour) in enumerate(caption(prediction, regular, bold)):
            place = x, y + CELL + 6 + LINE * n
            pen.text(place, fit_text(text, font, CELL), colour, font)
    sheet.save(png := io.BytesIO(), "PNG")
    return png.getvalue()


def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of matplotlib, which has more letters than Pillow's own."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf", name), size)


def caption(
    prediction: Prediction, regular: ImageFont.FreeTypeFont, bold: ImageFont.FreeTypeFont
) -> list[Line]:
    """The lines below a photo on a contact sheet."""
    name: Line = shorten(prediction.photo.file.name, 60), regular, SOFT
    if prediction.photo.image is None:
        return [("not readable", bold, SOFT), name]
    colour = colour_of(prediction)
    end = f" {prediction.probability:.0%}" + " unsure" * prediction.unsure
    predicted = fit_text(shorten(prediction.predicted, 60), bold, CELL - bold.getlength(end))
    lines = [(predicted + end, bold, colour), name]
    if prediction.is_incorrect:
        labelled = shorten(f"incorrect (labelled {prediction.photo.true_class})", 80)
        lines.append((labelled, regular, colour))
    return lines


def fit_text(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The beginning of a text that is not wider than this, in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
