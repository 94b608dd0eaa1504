"""Decode one photo from an untrusted file, or say why it cannot be decoded.

safe_decoder.py runs this in worker processes, with limits of time and memory, and survives crashes.
The reasons behind it: docs/decisions/hostile-photos.md.
"""

import errno
import hashlib
import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

import numpy as np
from PIL import AvifImagePlugin, ExifTags, Image, ImageOps, UnidentifiedImageError

from hogwear.system.arrays import UInt8Array
from hogwear.system.text import escape

# By content; the file's name does not matter. docs/decisions/formats.md
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "AVIF")
# How files of some other formats begin, and what to do with them
CONVERT = "which is not read; convert it to JPEG"
OTHER_FORMATS = (
    (
        rb"....ftyp(?=.{0,64}(hei[cxms]|hev[cxms]))",
        f"HEIC, {CONVERT}: magick mogrify -format jpg *.heic",
    ),
    (
        rb"....ftypcrx |FUJIFILMCCD-RAW|II(\*\0....CR|U\0|R[OS])|MMOR",
        f"a raw photo, {CONVERT}, for example with darktable",
    ),
    (rb"II[*+]\0|MM\0[*+]", f"TIFF or a raw photo, {CONVERT}: magick mogrify -format jpg *.tif"),
)
MAX_HEADER = 80  # bytes that these formats are recognised by
METADATA = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # keys of Image.info
WHITE = (255, 255, 255)
STRIP_PIXELS = 1 << 22  # converted to RGB at a time, to save memory
HASH_SIZE = 16  # bytes of BLAKE2b, as `b2sum --length=128` computes it

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each CPU has a worker; more threads take more memory
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit only warns at first; Limits takes its place


@dataclass(frozen=True)
class Limits:
    """A photo that exceeds one of these is not decoded."""

    megapixels: int = 50
    megabytes: int = 100  # of the file
    seconds: float = 10.0  # of CPU time; the slowest valid photos within the others take 4


LIMITS = Limits()


class RejectedPhoto(Exception):
    """The photo was not even read; the message says why."""


class TransientReason(str):
    """A reason that may be gone next time (permissions, disk, memory), so it is never stored."""


def decode(photo: Path | IO[bytes], size: int, limits: Limits = LIMITS) -> UInt8Array:
    """Decode a photo, from an open file if it is untrusted, to (size, size, 3) uint8 RGB.

    The photo is upright, transparency is white, the longer side is `size`, and white bars fill the
    square. Of an animation, it is the first frame. An unreadable photo may raise any exception: see
    `describe_error`.
    """
    return letterbox(decode_image(photo, size, limits).image, size)


def decode_verified(file: BinaryIO, size: int, limits: Limits, expected_hash: bytes) -> UInt8Array:
    """Decode an open photo like `decode`. Raises OSError if its content has another hash."""
    return decode(io.BytesIO(read_verified(file, expected_hash)), size, limits)


def read_verified(file: BinaryIO, expected_hash: bytes) -> bytes:
    """The content of an open photo. Raises OSError if it has another hash."""
    content = read_content(file)
    if hash_content(content) != expected_hash:
        reason = "changed while the photos were read; it is read again the next time"
        raise OSError(errno.ESTALE, reason)
    return content


def hash_content(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=HASH_SIZE).digest()


def read_content(file: BinaryIO) -> bytes:
    """Read as much as the file held when it was opened; a file that keeps growing has an end."""
    return file.read(os.fstat(file.fileno()).st_size)


def letterbox(image: Image.Image, size: int) -> UInt8Array:
    """Center the image in a white square, (size, size, 3) uint8."""
    square = Image.new("RGB", (size, size), WHITE)
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return np.asarray(square)


class DecodedImage(NamedTuple):
    """A decoded photo, and facts about its file."""

    image: Image.Image  # RGB, upright, resized
    format: str  # one of FORMATS
    sides: tuple[int, int]  # the shorter and the longer, in pixels of the file
    was_turned: bool  # by EXIF


def decode_image(photo: Path | IO[bytes], size: int, limits: Limits) -> DecodedImage:
    """Decode a photo, and resize it so that its longer side is `size`."""
    try:
        image: Image.Image = Image.open(photo, formats=FORMATS)
    except UnidentifiedImageError:
        raise RejectedPhoto(describe_format(photo)) from None
    megapixels, most = image.width * image.height / 1e6, limits.megapixels
    if megapixels > most:
        raise RejectedPhoto(
            f"{megapixels:.1f} megapixels, over the limit of {most} (--max-megapixels)"
        )
    format, sides = image.format, (min(image.size), max(image.size))
    scale = size / max(sides)
    # JPEG decodes at 1/2, 1/4 or 1/8 of its size, which is much faster
    image.draft("RGB", (max(1, int(image.width * scale)), max(1, int(image.height * scale))))
    image.load()
    was_turned = turn_upright(image)
    image = flatten_onto_white(image)
    scale = size / max(image.size)
    resized_to = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.resize(resized_to, Image.Resampling.BILINEAR)
    if format == "MPO":  # a JPEG with several pictures
        format = "JPEG"
    return DecodedImage(image, format or "", sides, was_turned)


def describe_format(photo: Path | IO[bytes]) -> str:
    """Why a photo of another format is not read: how to convert it, or the formats that are."""
    if isinstance(photo, Path):
        with photo.open("rb") as file:
            return describe_format(file)
    photo.seek(0)
    header = photo.read(MAX_HEADER)
    for beginning, reason in OTHER_FORMATS:
        if re.match(beginning, header, re.DOTALL):
            return reason
    return f"not one of {', '.join(FORMATS)}"


def turn_upright(image: Image.Image) -> bool:
    """Turn a loaded photo in place as EXIF says. Returns whether that changed it."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # broken EXIF fails in many ways, and the pixels may still be good
        return False
    for key in METADATA:  # exif_transpose would rewrite them, and fails where they are broken
        image.info.pop(key, None)
    ImageOps.exif_transpose(image, in_place=True)
    return orientation in range(2, 9)


def flatten_onto_white(image: Image.Image) -> Image.Image:
    """The image as RGB, white where it is transparent; done in strips, which changes no pixel."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    flat = Image.new("RGB", image.size)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if strip.mode.startswith("I;16"):
            strip = Image.fromarray((np.asarray(strip, dtype=np.uint16) >> 8).astype(np.uint8))
        if strip.has_transparency_data:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, WHITE), strip)
        flat.paste(strip.convert("RGB"), (0, top))
    return flat


def open_photo(path: Path, limits: Limits, within: frozenset[str]) -> BinaryIO:
    """Open a photo's file. It is checked once it is open, so nobody can exchange it in between.

    A link may lead only to the real paths `within`, or into them. Raises RejectedPhoto if it does
    not, for what is not a file, and for an empty or too large one; OSError for a file that cannot
    be opened.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # opening a FIFO would wait for a writer
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        target = os.path.realpath(path)
        if within.isdisjoint((target, *map(str, Path(target).parents))):
            reason = "a link that leads out of the folder; put the photo itself there"
            raise RejectedPhoto(reason) from None
        descriptor = os.open(target, flags)
    status = os.fstat(descriptor)
    megabytes, most = status.st_size / 1e6, limits.megabytes
    if not stat.S_ISREG(status.st_mode):
        reason = "not a file"
    elif megabytes > most:
        reason = f"{megabytes:.1f} megabytes, over the limit of {most} (--max-megabytes)"
    elif not status.st_size:
        reason = "empty file"
    else:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise RejectedPhoto(reason)


def describe_error(error: Exception) -> str:
    """Why a photo could not be read, in a few words on one line."""
    if isinstance(error, MemoryError):
        return "needs too much memory to decode"
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return escape(text)[:200]


def is_transient(error: Exception) -> bool:
    """Whether the system is the cause. (Pillow's OSErrors about a photo have no errno.)"""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno is not None)
        or "out of memory" in str(error)
    )
