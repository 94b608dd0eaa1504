"""Blurred, dark and strange pictures are told from real photos, whatever these show."""

import io
from pathlib import Path

import numpy as np
import pytest
from helpers import FASHION5
from PIL import Image, ImageFilter

from hogwear.data import picture_quality
from hogwear.data.decoding import LIMITS, DecodedImage, decode_image

CLOTHING10 = FASHION5.parent / "clothing10"


@pytest.fixture(scope="module")
def sources(photo_files: list[Path]) -> list[Path]:
    """Photos on white, and people's own."""
    return [*photo_files[::8], *sorted(CLOTHING10.glob("train/*/*"))[::200]]


def decode(image: Image.Image) -> DecodedImage:
    """As the doctor sees an image that is saved as JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    file.seek(0)
    return decode_image(file, 160, LIMITS)


def is_blurred(image: Image.Image) -> bool:
    decoded = decode(image)
    return picture_quality.is_blurred(decoded.image, decoded.sides[1])


def open_all(files: list[Path]) -> list[Image.Image]:
    return [Image.open(file).convert("RGB") for file in files]


def test_real_photos_are_neither_blurred_nor_dark_in_whatever_size(sources: list[Path]) -> None:
    for image in open_all(sources):
        assert not picture_quality.is_dark(image)
        for side in (max(image.size), 80, 3 * max(image.size)):
            scale = side / max(image.size)
            size = round(scale * image.width), round(scale * image.height)
            assert not is_blurred(image.resize(size)), side


@pytest.mark.parametrize("side", [80, 160, 640])
def test_the_same_photos_out_of_focus_are_blurred(side: int, sources: list[Path]) -> None:
    """2.5 pixels of 160, or of its own size for a smaller photo."""
    found = []
    for image in open_all(sources):
        scale = side / max(image.size)
        size = round(scale * image.width), round(scale * image.height)
        radius = 2.5 * max(1, side / 160)
        found.append(is_blurred(image.resize(size).filter(ImageFilter.GaussianBlur(radius))))
    assert np.mean(found) > 0.9


def test_the_same_photos_with_a_tenth_of_the_light_are_dark(sources: list[Path]) -> None:
    for image in open_all(sources):
        assert picture_quality.is_dark(image.point(lambda value: 0.27 * value))


def test_without_contrast_there_is_nothing_to_be_blurred() -> None:
    ramp = np.linspace(100, 120, 160, dtype=np.uint8)[:, None, None].repeat(160, 1).repeat(3, 2)
    assert not is_blurred(Image.fromarray(ramp)) and not is_blurred(Image.new("RGB", (3, 2)))


@pytest.mark.parametrize(("sides", "is_odd"), [((50, 150), False), ((50, 151), True)])
def test_a_strip_is_an_odd_shape(sides: tuple[int, int], is_odd: bool) -> None:
    assert picture_quality.is_odd_shape(sides) == is_odd


def test_the_steepness_of_an_edge_is_the_share_of_its_largest_step() -> None:
    edge = np.array([0] * 30 + [30, 100] + [120] * 30, np.uint8)[None].repeat(20, 0)
    steps = picture_quality.measure_steps(edge)
    assert len(steps) == 20 * 17 - 2 * 20, "windows with a rise of 40, of rows only"
    assert np.allclose(steps.max(), 70 / 90) or steps.max() <= 1
    assert np.isclose(np.median(steps), 70 / 120)
