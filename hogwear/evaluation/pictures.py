"""Pictures of predictions: one per photo, and contact sheets."""

import functools
import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from hogwear.evaluation.palette import BLUE, INK, ORANGE, PALE, SOFT
from hogwear.evaluation.prediction import Prediction
from hogwear.system.arrays import FloatArray, UInt8Array
from hogwear.system.text import escape, shorten

# All in pixels.
PHOTO_SIDE = 480  # of the photo in a picture
PICTURE = 1040, 604  # width and height of a picture
MARGIN = 28  # of a picture
NAMES, BARS, BAR_WIDTH = 548, 728, 200  # where names of classes and their bars begin; 100 %
CELL = 180  # of a photo on a contact sheet
GAP = 14  # between two photos on it
CAPTION = 66  # the height of the text below a photo on it
LINE = 19  # the height of a line of that text
PHOTOS_PER_SHEET = 100

Line = tuple[str, ImageFont.FreeTypeFont, str]  # text, font, colour


def stem_of(prediction: Prediction) -> str:
    """The name of its picture, without the suffix: the photo's name and the predicted class.

    Both may contain any characters, so both are escaped and shortened.
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
    if prediction.photo.image is None:
        return PALE
    return ORANGE if prediction.is_incorrect else BLUE


def draw_prediction(prediction: Prediction, image: UInt8Array) -> bytes:
    """A PNG: the photo, (S, S, 3), its predicted and true class, and the most probable classes."""
    picture = Image.new("RGB", PICTURE, "white")
    pen, colour = ImageDraw.Draw(picture), colour_of(prediction)
    end, room = f"  {prediction.probability:.1%}", PICTURE[0] - 2 * MARGIN
    end += prediction.doubt and f"  {prediction.doubt}"
    title = fit_title(prediction, end, load_font(32, "-Bold"), room)
    pen.text((MARGIN, 40), title, colour, load_font(32, "-Bold"), "lm")
    draw_photo(picture, (MARGIN, 76), image, PHOTO_SIDE, colour)
    name = shorten(prediction.photo.file.name, 60)
    pen.text((MARGIN, 580), name, SOFT, load_font(15), "lm")
    if (true_class := prediction.photo.true_class) is not None:
        labelled = f"incorrect (labelled {shorten(true_class, 60)})"
        verdict = labelled if prediction.is_incorrect else "correct"
        room = PICTURE[0] - MARGIN - NAMES
        pen.text((NAMES, 92), fit_text(verdict, load_font(23), room), colour, load_font(23), "lm")
    for n, (class_name, probability) in enumerate(prediction.top_classes()):
        y, right = 170 + 80 * n, BARS + round(BAR_WIDTH * probability)
        label = fit_text(shorten(class_name, 60), load_font(18), BARS - NAMES - 8)
        pen.text((BARS - 8, y), label, INK, load_font(18), "rm")
        if right > BARS:
            pen.rectangle((BARS, y - 25, right - 1, y + 24), colour if n == 0 else PALE)
        pen.text((right + 8, y), f"{probability:.1%}", INK, load_font(17), "lm")
    return to_png(picture)


def draw_sheet(predictions: Sequence[Prediction]) -> bytes:
    """A PNG of a grid of photos, framed in blue or, where the prediction is incorrect, in orange.

    Below each are its predicted class and probability, its file name, and the label it contradicts.
    """
    columns = min(10, max(math.ceil(math.sqrt(1.5 * len(predictions))), 1))
    rows = math.ceil(len(predictions) / columns)
    size = GAP + columns * (CELL + GAP), GAP + rows * (CELL + CAPTION + GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for i, prediction in enumerate(predictions):
        x, y = GAP + i % columns * (CELL + GAP), GAP + i // columns * (CELL + CAPTION + GAP)
        draw_photo(sheet, (x, y), prediction.photo.image, CELL, colour_of(prediction))
        for n, (text, font, colour) in enumerate(caption(prediction)):
            place = x, y + CELL + 6 + LINE * n
            pen.text(place, fit_text(text, font, CELL), colour, font)
    return to_png(sheet)


def overlay(image: UInt8Array, activation_map: FloatArray) -> UInt8Array:
    """The photo, (S, S, 3), in grey, and orange where the map, (H, W), is above its mean."""
    size, mean = (image.shape[1], image.shape[0]), float(activation_map.mean())
    strength = np.maximum(activation_map - mean, 0) / max(float(activation_map.max()) - mean, 1e-9)
    mask = Image.fromarray(strength.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    opacity = 0.7 * np.asarray(mask).clip(0, 1)[..., None]
    grey = np.asarray(Image.fromarray(image).convert("L"))[..., None]
    blended = (1 - opacity) * grey + opacity * np.array(ImageColor.getrgb(ORANGE))
    return blended.astype(np.uint8)


def draw_photo(
    onto: Image.Image, place: tuple[int, int], photo: UInt8Array | None, side: int, colour: str
) -> None:
    """Paste a photo, (S, S, 3), as a square with a frame."""
    x, y = place
    if photo is not None:
        resized = Image.fromarray(photo).resize((side, side), Image.Resampling.LANCZOS)
        onto.paste(resized, place)
    box = x - 3, y - 3, x + side + 2, y + side + 2
    ImageDraw.Draw(onto).rectangle(box, outline=colour, width=3)


def to_png(picture: Image.Image) -> bytes:
    picture.save(png := io.BytesIO(), "PNG")
    return png.getvalue()


@functools.cache
def load_font(size: int, style: str = "") -> ImageFont.FreeTypeFont:
    """A font of matplotlib, which has more letters than Pillow's own."""
    import matplotlib  # takes time, so only where it is needed

    file = Path(matplotlib.get_data_path(), f"fonts/ttf/DejaVuSans{style}.ttf")
    return ImageFont.truetype(file, size)


def caption(prediction: Prediction) -> list[Line]:
    """The lines below a photo on a contact sheet."""
    regular, bold = load_font(12), load_font(14, "-Bold")
    name: Line = shorten(prediction.photo.file.name, 60), regular, SOFT
    if prediction.photo.image is None:
        return [("not readable", bold, SOFT), name]
    end = f" {prediction.probability:.0%} {prediction.doubt}".rstrip()
    lines = [(fit_title(prediction, end, bold, CELL), bold, colour_of(prediction)), name]
    if prediction.is_incorrect:
        labelled = shorten(f"incorrect (labelled {prediction.photo.true_class})", 80)
        lines.append((labelled, regular, ORANGE))
    return lines


def fit_title(prediction: Prediction, end: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The predicted class, cut so that it is at most `width` pixels wide together with `end`."""
    name = shorten(prediction.predicted, 60)
    return fit_text(name, font, width - font.getlength(end)) + end


def fit_text(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The beginning of a text that is not wider than this, in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
