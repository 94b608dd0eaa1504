"""Decoding: photos of every format, mode and orientation become upright, letterboxed RGB."""

import errno
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers import SIZE
from PIL import Image, ImageOps, UnidentifiedImageError

from hogwear.data import decoding
from hogwear.data.decoding import decode
from hogwear.system.arrays import Int64Array

Flip = Image.Transpose


STORED = {  # what was done to an upright photo that is stored with this EXIF orientation
    2: Flip.FLIP_LEFT_RIGHT, 3: Flip.ROTATE_180, 4: Flip.FLIP_TOP_BOTTOM, 5: Flip.TRANSPOSE,
    6: Flip.ROTATE_90, 7: Flip.TRANSVERSE, 8: Flip.ROTATE_270,
}  # fmt: skip


@pytest.fixture(scope="module")
def photo(photo_files: list[Path]) -> Image.Image:
    """A real photo, made SIZE x SIZE, so that decoding need not resize it, and different on all sides."""
    with Image.open(photo_files[0]) as image:
        square = image.convert("RGB").resize((SIZE, SIZE))
    square.paste((200, 30, 30), (0, 0, SIZE, 8))
    square.paste((30, 30, 200), (0, 8, 8, SIZE))
    return square


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "photo"


def decoded(file: Path) -> Int64Array:
    array = decode(file, SIZE)
    assert array.shape == (SIZE, SIZE, 3) and array.dtype == np.uint8
    return array.astype(np.int64)


def difference(file: Path, expected: Image.Image) -> float:
    """Mean distance of a channel from what was expected, in 0..255."""
    return float(np.abs(decoded(file) - np.asarray(expected.convert("RGB"), np.int64)).mean())


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_give_the_exact_pixels(
    photo: Image.Image, file: Path, format: str
) -> None:
    photo.save(file, format, **({"lossless": True} if format == "WEBP" else {}))
    assert difference(file, photo) == 0


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_gives_nearly_the_pixels(
    photo: Image.Image, file: Path, options: dict[str, int]
) -> None:
    photo.save(file, "JPEG", quality=95, **options)
    assert difference(file, photo) < 3


def test_the_first_frame_of_a_gif_is_used(photo: Image.Image, file: Path) -> None:
    first = photo.quantize(64)
    first.save(
        file,
        "GIF",
        save_all=True,
        append_images=[ImageOps.invert(photo).quantize(64)],
        duration=100,
    )
    assert difference(file, first) < 1


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_exif_orientation_is_applied(
    photo: Image.Image, file: Path, orientation: int, format: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.transpose(STORED[orientation]).save(file, format, exif=exif, quality=95)
    assert difference(file, photo) < 3


@pytest.mark.parametrize(
    "tag", [0x0101, 0x010E], ids=["a fraction for a height", "a fraction for a text"]
)
def test_a_photo_with_broken_exif_data_is_read_and_upright(
    photo: Image.Image, file: Path, tag: int
) -> None:
    entries = sorted(
        [struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0), struct.pack(">HHII", tag, 5, 1, 38)]
    )
    exif = (
        b"Exif\0\0MM\0*"
        + struct.pack(">IH", 8, 2)
        + b"".join(entries)
        + struct.pack(">III", 0, 72, 1)
    )
    photo.transpose(STORED[6]).save(file, "JPEG", exif=exif, quality=95)
    assert difference(file, photo) < 3


def test_transparency_becomes_white(photo: Image.Image, file: Path) -> None:
    alpha = Image.linear_gradient("L").resize(photo.size)
    expected = Image.composite(photo, Image.new("RGB", photo.size, "white"), alpha)
    rgba = photo.copy()
    rgba.putalpha(alpha)
    rgba.save(file, "PNG")
    assert difference(file, expected) < 1
    rgba.convert("LA").save(file, "PNG")
    assert (
        difference(
            file, Image.composite(photo.convert("L"), Image.new("L", photo.size, 255), alpha)
        )
        < 1
    )


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_becomes_white(
    photo: Image.Image, file: Path, format: str
) -> None:
    palette = photo.quantize(16)
    indices = np.asarray(palette)
    palette.save(file, format, transparency=int(indices[32, 32]))
    expected = np.asarray(palette.convert("RGB")).copy()
    expected[indices == indices[32, 32]] = 255
    assert difference(file, Image.fromarray(expected)) == 0


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_greyscale_and_palettes_become_rgb(photo: Image.Image, file: Path, mode: str) -> None:
    photo.convert(mode).save(file, "PNG")
    assert difference(file, photo.convert(mode)) == 0


def test_cmyk_becomes_rgb(photo: Image.Image, file: Path) -> None:
    photo.convert("CMYK").save(file, "JPEG", quality=95)
    assert difference(file, photo) < 3


def test_images_of_16_bits_keep_the_upper_8(photo: Image.Image, file: Path) -> None:
    grey = np.asarray(photo.convert("L"))
    Image.fromarray(grey.astype(np.uint16) << 8 | 0x80).save(file, "PNG")
    assert difference(file, Image.fromarray(grey)) == 0


@pytest.mark.parametrize(
    "shape", [(2 * SIZE, SIZE), (SIZE, 2 * SIZE), (SIZE // 4, SIZE // 8), (500, 250)], ids=str
)
def test_a_photo_is_centred_in_a_white_square(file: Path, shape: tuple[int, int]) -> None:
    Image.new("RGB", shape, (10, 20, 30)).save(file, "PNG")
    square = decoded(file)
    if shape[0] < shape[1]:
        square = square.swapaxes(0, 1)
    quarter = SIZE // 4
    assert (square[quarter:-quarter] == (10, 20, 30)).all()
    assert (square[:quarter] == 255).all() and (square[-quarter:] == 255).all()


def test_a_large_jpeg_looks_as_if_decoded_at_full_size(photo_files: list[Path], file: Path) -> None:
    with Image.open(photo_files[0]) as image:
        large = image.convert("RGB").resize((1200, 1600), Image.Resampling.LANCZOS)
    large.save(file, "JPEG", quality=90)
    plain = ImageOps.pad(large, (SIZE, SIZE), Image.Resampling.BILINEAR, color="white")
    assert difference(file, plain) < 2


@pytest.mark.parametrize(("error", "passing"), [
    (PermissionError(errno.EACCES, "Permission denied"), True), (OSError(errno.EIO, "Input/output error"), True), (MemoryError(), True),
    (OSError("out of memory error when reading image file"), True), (OSError("image file is truncated"), False), (ValueError("bad"), False),
    (UnidentifiedImageError("cannot identify image file"), False), (decoding.RejectedPhoto("empty file"), False),
], ids=repr)  # fmt: skip
def test_errors_of_the_system_are_distinguished_from_errors_of_the_photo(
    error: Exception, passing: bool
) -> None:
    assert decoding.is_transient(error) is passing


@pytest.mark.parametrize("size", [(1000, 4), (4, 1000)])
def test_a_strip_keeps_at_least_one_row_of_pixels(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "black").save(tmp_path / "strip.png")
    assert (decode(tmp_path / "strip.png", 64) < 128).any()
