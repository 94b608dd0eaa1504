"""Pictures of what the network answered: one for each photo, and sheets of all of them."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from hogwear.decoding import Array

RIGHT, WRONG, OTHERS, INK = "#0072B2", "#D55E00", "#BFC5CC", "#22262B"  # Okabe-Ito blue and vermillion, told apart by all
SOFT = "#6B7280"
TOP_CLASSES = 5
PHOTO_SIDE = 480  # pixels, in the picture
CELL, GAP, CAPTION = 180, 14, 46  # pixels, of a sheet: the side of a photo, between two, and below one
SHEET = 100  # photos on one


@dataclass(frozen=True)
class Prediction:
    """The answer for one photo."""

    file: Path
    true_class: str | None  # where known
    unread: str | None  # why there is no answer
    probabilities: dict[str, float]  # {class: 0..1}, adding up to 1; empty if unread
    unsure: bool = False  # less probable than answers have to be that are to be relied on

    @property
    def predicted(self) -> str:
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def is_wrong(self) -> bool:
        return self.true_class is not None and self.true_class != self.predicted

    def line(self) -> str:
        """For a terminal."""
        name = str(self.file) if str(self.file).isprintable() else repr(str(self.file))
        if self.unread is not None:
            return f"{'not read':12}          {name}: {self.unread}"
        wrong = f"  WRONG: it is {self.true_class}" if self.is_wrong else ""
        unsure = "  unsure" * self.unsure
        return f"{self.predicted:12} {self.probabilities[self.predicted]:7.1%}  {name}{unsure}{wrong}"

    def top(self, count: int = TOP_CLASSES) -> list[tuple[str, float]]:
        """The likeliest classes and their probabilities, the best first."""
        return sorted(self.probabilities.items(), key=lambda item: -item[1])[:count]

    def as_json(self) -> dict[str, Any]:
        answer: dict[str, Any] = {"file": str(self.file), "true_class": self.true_class, "error": self.unread}
        if self.unread is None:
            answer |= {"predicted": self.predicted, "probability": self.probabilities[self.predicted], "unsure": self.unsure}
        return answer | {"probabilities": self.probabilities}


def free_name(folder: Path, prediction: Prediction) -> Path:
    """folder/<stem>_<predicted class>.png, with a number where two photos have one name, and _ for what cannot be printed."""
    name = "_".join(os.fsencode(part)[:110].decode(errors="ignore") for part in (prediction.file.stem, prediction.predicted))
    name = "".join(c if c.isprintable() and c != "/" else "_" for c in name)  # a class may be called anything by a checkpoint
    candidates = (folder / f"{name}{f'_{n}' if n > 1 else ''}.png" for n in range(1, 1 << 30))
    return next(path for path in candidates if not path.exists())


def draw_prediction(prediction: Prediction, image: Array, file: Path) -> None:
    """The photo, `image` (S, S, 3), its predicted class and probability, the true class where known, and the runners-up."""
    from matplotlib.figure import Figure  # half a second

    colour = colour_of(prediction)
    figure = Figure(figsize=(8, 4.4), dpi=120, facecolor="white")
    photo = figure.add_axes((0.03, 0.06, 0.47, 0.78))
    photo.imshow(image)
    photo.set_anchor("W")
    photo.set(xticks=[], yticks=[])
    for spine in photo.spines.values():
        spine.set(color=colour, linewidth=2)
    title = f"{prediction.predicted}  {prediction.probabilities[prediction.predicted]:.1%}" + "  unsure" * prediction.unsure
    figure.text(0.03, 0.91, title, fontsize=19, fontweight="bold", color=colour, va="center", parse_math=False)
    if prediction.true_class is not None:
        verdict = f"wrong: it is {prediction.true_class}" if prediction.is_wrong else "right"
        figure.text(0.98, 0.91, verdict, fontsize=14, color=colour, va="center", ha="right", parse_math=False)
    draw_bars(figure.add_axes((0.68, 0.12, 0.235, 0.66)), prediction.probabilities, prediction.predicted, colour)
    figure.text(0.03, 0.025, shortened(prediction.file.name, 60), fontsize=9, color=SOFT, va="center", parse_math=False)
    figure.savefig(file, metadata={"Software": None})


def colour_of(prediction: Prediction) -> str:
    return WRONG if prediction.is_wrong else RIGHT


def draw_sheets(predictions: Sequence[Prediction], images: Sequence[Array | None], folder: Path) -> list[Path]:
    """contact_sheet.png, and -2, -3, ... where there are more than SHEET photos: all of them, with what was answered.

    `images` are (S, S, 3), None where a photo could not be read. Sheets of an earlier run are removed.
    """
    for old in folder.glob("contact_sheet*.png"):
        old.unlink()
    files = []
    for start in range(0, len(predictions), SHEET):
        part = list(zip(predictions, images, strict=True))[start : start + SHEET]
        files.append(folder / f"contact_sheet{f'-{start // SHEET + 1}' if start else ''}.png")
        draw_sheet(part).save(files[-1])
    return files


def draw_sheet(photos: list[tuple[Prediction, Array | None]]) -> Image.Image:
    """A grid of photos, each framed in blue (right, or not known) or orange (wrong), with its answer below."""
    import matplotlib  # for its font, which knows more letters than Pillow's

    regular, bold = (ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf", f"DejaVuSans{kind}.ttf"), size) for kind, size in (("", 12), ("-Bold", 14)))
    columns = min(10, max(math.ceil(math.sqrt(1.5 * len(photos))), 1))
    rows = math.ceil(len(photos) / columns)
    sheet = Image.new("RGB", (GAP + columns * (CELL + GAP), GAP + rows * (CELL + CAPTION + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (prediction, image) in enumerate(photos):
        x, y = GAP + i % columns * (CELL + GAP), GAP + i // columns * (CELL + CAPTION + GAP)
        frame = (x - 3, y - 3, x + CELL + 2, y + CELL + 2)
        if image is None:
            pen.rectangle(frame, outline=OTHERS, width=3)
            lines = [("not read", bold, SOFT), (shortened(prediction.file.name, 60), regular, SOFT)]
        else:
            sheet.paste(Image.fromarray(image).resize((CELL, CELL), Image.Resampling.LANCZOS), (x, y))
            pen.rectangle(frame, outline=colour_of(prediction), width=3)
            second = f"it is {prediction.true_class}" if prediction.is_wrong else "unsure" if prediction.unsure else prediction.file.name
            percent = f" {prediction.probabilities[prediction.predicted]:.0%}"
            first = fitted(shortened(prediction.predicted, 60), bold, CELL - bold.getlength(percent)) + percent
            lines = [(first, bold, colour_of(prediction)), (shortened(second, 60), regular, INK if prediction.is_wrong else SOFT)]
        for n, (text, font, colour) in enumerate(lines):
            pen.text((x, y + CELL + 6 + 19 * n), fitted(text, font, CELL), colour, font)
    return sheet


def fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """As much of it as there is room for, in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def draw_bars(axes: Any, probabilities: dict[str, float], predicted: str, colour: str) -> None:
    """The likeliest classes, the best on top."""
    names = sorted(probabilities, key=probabilities.__getitem__, reverse=True)[:TOP_CLASSES]
    values = [probabilities[name] for name in names]
    axes.barh(range(len(names)), values, color=[colour if n == predicted else OTHERS for n in names], height=0.62)
    for i, value in enumerate(values):
        axes.text(max(value, 0) + 0.03, i, f"{value:.1%}", va="center", fontsize=10, color=INK)
    axes.set(xlim=(0, 1.0), ylim=(TOP_CLASSES - 0.5, -0.5), xticks=[])
    axes.set_yticks(range(len(names)), [shortened(name, 18) for name in names], fontsize=11, color=INK, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def shortened(text: str, length: int) -> str:
    """Text that can be drawn on one line: nothing unprintable, at most `length` characters."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= length else clean[: length - 1] + "…"
