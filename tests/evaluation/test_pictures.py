"""Pictures and contact sheets: blue and orange, readable names, nothing cut off."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hogwear.data.decoding import decode
from hogwear.evaluation import pictures
from hogwear.evaluation.palette import BLUE, ORANGE, PALE
from hogwear.evaluation.pictures import CAPTION, CELL, GAP, caption, fit_text, load_font
from hogwear.evaluation.prediction import Photo, Prediction
from hogwear.system.arrays import UInt8Array

AB = {"a": 0.75, "b": 0.25}


def predict(
    file: Path,
    true_class: str | None = None,
    probabilities: dict[str, float] = AB,
    unsure: bool = False,
) -> Prediction:
    return Prediction(Photo(file, true_class, np.zeros((8, 8, 3), np.uint8)), probabilities, unsure)


def pixels_of(png: bytes) -> UInt8Array:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


def has_colour(pixels: UInt8Array, colour: str, least: int = 1000) -> bool:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((pixels == rgb).all(axis=2).sum()) > least


@pytest.mark.parametrize(("true_class", "incorrect"), [("a", False), ("b", True), (None, False)])
def test_correct_and_incorrect_pictures_have_different_colours(
    true_class: str | None, incorrect: bool, photo_files: list[Path]
) -> None:
    photo = decode(photo_files[0], pictures.PHOTO_SIDE)
    pixels = pixels_of(pictures.draw_prediction(predict(photo_files[0], true_class), photo))
    assert has_colour(pixels, BLUE) == (not incorrect)
    assert has_colour(pixels, ORANGE) == incorrect


def test_a_bar_of_100_percent_is_not_cut_off_at_the_edge(photo_files: list[Path]) -> None:
    certain = predict(photo_files[0], None, {"topwear": 1.0, "footwear": 0.0})
    photo = decode(photo_files[0], pictures.PHOTO_SIDE)
    pixels = pixels_of(pictures.draw_prediction(certain, photo))
    assert (pixels[:, -5:] == 255).all(), "an empty margin on the right"


def test_wide_names_of_classes_do_not_cover_the_photo(photo_files: list[Path]) -> None:
    prediction = predict(photo_files[0], "Q" * 60, {"W" * 60: 0.6, "M" * 60: 0.4})
    pixels = pixels_of(pictures.draw_prediction(prediction, np.zeros((8, 8, 3), np.uint8)))
    photo_end = pictures.MARGIN + pictures.PHOTO_SIDE + 3
    assert (pixels[80:550, photo_end : pictures.NAMES] == 255).all()
    assert (pixels[:, -pictures.MARGIN :] == 255).all()


def test_the_longest_names_that_a_disk_can_hold_get_their_picture(tmp_path: Path) -> None:
    prediction = predict(Path("写" * 83 + ".jpg"), None, {"バッグ" * 28: 1.0})
    taken: set[str] = set()
    for _ in range(2):
        pictures.free_name(tmp_path, pictures.stem_of(prediction), taken).touch()
    assert len(list(tmp_path.iterdir())) == 2


def test_names_that_differ_only_in_case_get_different_pictures(tmp_path: Path) -> None:
    taken = {"shoe_a.png"}
    names = [pictures.free_name(tmp_path, stem, taken).name for stem in ("Shoe_a", "SHOE_A", "x")]
    assert names == ["Shoe_a_2.png", "SHOE_A_3.png", "x.png"]


CAPTIONS = {
    "correct": (predict(Path("x/1.jpg"), "a"), ["a 75%", "1.jpg"]),
    "unsure": (predict(Path("x/1.jpg"), "a", unsure=True), ["a 75% unsure", "1.jpg"]),
    "incorrect": (predict(Path("x/1.jpg"), "b"), ["a 75%", "1.jpg", "incorrect (labelled b)"]),
    "both": (
        predict(Path("x/1.jpg"), "b", unsure=True),
        ["a 75% unsure", "1.jpg", "incorrect (labelled b)"],
    ),
    "not readable": (
        Prediction(Photo(Path("x/1.jpg"), "b", None, "empty file"), {}),
        ["not readable", "1.jpg"],
    ),
}


@pytest.mark.parametrize("case", CAPTIONS)
def test_every_caption_on_a_sheet_has_the_name_of_the_file(case: str) -> None:
    prediction, expected = CAPTIONS[case]
    assert [text for text, _, _ in caption(prediction)] == expected


def test_a_long_class_name_leaves_room_for_the_probability() -> None:
    prediction = predict(Path("1.jpg"), None, {"a long name of a class" * 3: 0.999, "b": 0.001})
    text, font, _ = caption(prediction)[0]
    assert text.endswith("… 100%") and font.getlength(text) <= CELL
    assert fit_text("short", load_font(12), CELL) == "short"


def test_a_sheet_frames_each_photo_in_the_colour_of_its_prediction() -> None:
    sheet = pixels_of(pictures.draw_sheet([prediction for prediction, _ in CAPTIONS.values()]))
    colours = [BLUE, BLUE, ORANGE, ORANGE, PALE]
    assert sheet.shape == (GAP + 2 * (CELL + CAPTION + GAP), GAP + 3 * (CELL + GAP), 3)
    for i, colour in enumerate(colours):
        x, y = GAP + i % 3 * (CELL + GAP), GAP + i // 3 * (CELL + CAPTION + GAP)
        assert has_colour(sheet[y - 3 : y, x : x + CELL], colour, 3 * CELL - 1)
