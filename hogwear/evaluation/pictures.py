"""Pictures of what the network answered: one for each photo, and sheets of all of them."""

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from hogwear.system.arrays import UInt8Array
from hogwear.system.text import escape, shorten

RIGHT, WRONG, OTHERS, INK = (
    "#0072B2",
    "#D55E00",
    "#BFC5CC",
    "#22262B",
)  # Okabe-Ito blue and vermillion, told apart by all
SOFT = "#6B7280"
TOP_CLASSES = 5
PHOTO_SIDE = 480  # pixels, in the picture
CELL, GAP, CAPTION = (
    180,
    14,
    46,
)  # pixels, of a sheet: the side of a photo, between two, and below one
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
        if self.unread is not None:
            return escape(f"{'not read':12}          {self.file}: {self.unread}")
        wrong = f"  WRONG: it is {self.true_class}" if self.is_wrong else ""
        unsure = "  unsure" * self.unsure
        return escape(
            f"{self.predicted:12} {self.probabilities[self.predicted]:7.1%}  {self.file}{unsure}{wrong}"
        )

    def top(self, count: int = TOP_CLASSES) -> list[tuple[str, float]]:
        """The likeliest classes and their probabilities, the best first."""
        return sorted(self.probabilities.items(), key=lambda item: -item[1])[:count]

    def as_json(self) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "file": str(self.file),
            "true_class": self.true_class,
            "error": self.unread,
        }
        if self.unread is None:
            answer |= {
                "predicted": self.predicted,
                "probability": self.probabilities[self.predicted],
                "unsure": self.unsure,
            }
        return answer | {"probabilities": self.probabilities}


def stem_of(prediction: Prediction) -> str:
    """What its picture is called: the photo's name and the predicted class, in which a checkpoint may have put anything."""
    parts = (
        escape(name).replace("/", "_").replace("\\", "_")
        for name in (prediction.file.stem, prediction.predicted)
    )
    return "_".join(part.encode()[:110].decode(errors="ignore") for part in parts)


def free_name(folder: Path, stem: str, taken: set[str]) -> Path:
    """folder/STEM.png, or STEM_2.png, ...: the first that is not `taken`, which it is then; in lower case, for disks that know no other."""
    candidates = (f"{stem}{f'_{n}' if n > 1 else ''}.png" for n in itertools.count(1))
    name = next(name for name in candidates if name.casefold() not in taken)
    taken.add(name.casefold())
    return folder / name


def draw_prediction(prediction: Prediction, image: UInt8Array) -> bytes:
    """A PNG of the photo, `image` (S, S, 3), its predicted class and probability, the true class where known, and the runners-up."""
    from matplotlib.figure import Figure  # half a second

    colour = colour_of(prediction)
    figure = Figure(figsize=(8, 4.4), dpi=120, facecolor="white")
    photo = figure.add_axes((0.03, 0.06, 0.47, 0.78))
    photo.imshow(image)
    photo.set_anchor("W")
    photo.set(xticks=[], yticks=[])
    for spine in photo.spines.values():
        spine.set(color=colour, linewidth=2)
    title = (
        f"{shorten(prediction.predicted, 24)}  {prediction.probabilities[prediction.predicted]:.1%}"
        + "  unsure" * prediction.unsure
    )
    figure.text(
        0.03,
        0.91,
        title,
        fontsize=19,
        fontweight="bold",
        color=colour,
        va="center",
        parse_math=False,
    )
    if prediction.true_class is not None:
        verdict = (
            f"wrong: it is {shorten(prediction.true_class, 18)}" if prediction.is_wrong else "right"
        )
        figure.text(0.53, 0.82, verdict, fontsize=14, color=colour, va="center", parse_math=False)
    draw_bars(
        figure.add_axes((0.68, 0.12, 0.235, 0.66)),
        prediction.probabilities,
        prediction.predicted,
        colour,
    )
    figure.text(
        0.03,
        0.025,
        shorten(prediction.file.name, 60),
        fontsize=9,
        color=SOFT,
        va="center",
        parse_math=False,
    )
    figure.savefig(png := io.BytesIO(), metadata={"Software": None})
    return png.getvalue()


def colour_of(prediction: Prediction) -> str:
    return WRONG if prediction.is_wrong else RIGHT


def draw_sheet(photos: Sequence[tuple[Prediction, UInt8Array | None]]) -> bytes:
    """A PNG of a grid of photos, each framed in blue (right, or not known) or orange (wrong), with its answer below.

    An image is (S, S, 3), None where the photo could not be read.
    """
    import matplotlib  # for its font, which knows more letters than Pillow's

    regular, bold = (
        ImageFont.truetype(
            Path(matplotlib.get_data_path(), "fonts/ttf", f"DejaVuSans{kind}.ttf"), size
        )
        for kind, size in (("", 12), ("-Bold", 14))
    )
    columns = min(10, max(math.ceil(math.sqrt(1.5 * len(photos))), 1))
    rows = math.ceil(len(photos) / columns)
    sheet = Image.new(
        "RGB", (GAP + columns * (CELL + GAP), GAP + rows * (CELL + CAPTION + GAP)), "white"
    )
    pen = ImageDraw.Draw(sheet)
    for i, (prediction, image) in enumerate(photos):
        x, y = GAP + i % columns * (CELL + GAP), GAP + i // columns * (CELL + CAPTION + GAP)
        frame = (x - 3, y - 3, x + CELL + 2, y + CELL + 2)
        if image is None:
            pen.rectangle(frame, outline=OTHERS, width=3)
            lines = [("not read", bold, SOFT), (shorten(prediction.file.name, 60), regular, SOFT)]
        else:
            sheet.paste(
                Image.fromarray(image).resize((CELL, CELL), Image.Resampling.LANCZOS), (x, y)
            )
            pen.rectangle(frame, outline=colour_of(prediction), width=3)
            second = (
                f"it is {prediction.true_class}"
                if prediction.is_wrong
                else "unsure"
                if prediction.unsure
                else prediction.file.name
            )
            percent = f" {prediction.probabilities[prediction.predicted]:.0%}"
            first = (
                fitted(shorten(prediction.predicted, 60), bold, CELL - bold.getlength(percent))
                + percent
            )
            lines = [
                (first, bold, colour_of(prediction)),
                (shorten(second, 60), regular, INK if prediction.is_wrong else SOFT),
            ]
        for n, (text, font, colour) in enumerate(lines):
            pen.text((x, y + CELL + 6 + 19 * n), fitted(text, font, CELL), colour, font)
    sheet.save(png := io.BytesIO(), "PNG")
    return png.getvalue()


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
    axes.barh(
        range(len(names)),
        values,
        color=[colour if n == predicted else OTHERS for n in names],
        height=0.62,
    )
    for i, value in enumerate(values):
        axes.text(max(value, 0) + 0.03, i, f"{value:.1%}", va="center", fontsize=10, color=INK)
    axes.set(xlim=(0, 1.0), ylim=(TOP_CLASSES - 0.5, -0.5), xticks=[])
    axes.set_yticks(
        range(len(names)),
        [shorten(name, 18) for name in names],
        fontsize=11,
        color=INK,
        parse_math=False,
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
