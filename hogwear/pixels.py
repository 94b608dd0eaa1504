"""Photos as pixels: decoded once into a memory-mapped cache, and the random changes that training makes to a batch.

A cache is a folder <split>-<size>-<slot>/<key>/ with pixels.npy, (N, S, S, 3) uint8, and skipped.json, {row: reason}. The key is
a hash of every file's name, size and time, so a changed photo makes a new cache; the old one is then removed.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hogwear.dataset import Split
from hogwear.errors import BadInput

CACHE_VERSION = 1  # part of the key: raise it when `decode` gives other pixels
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # by content; the file's name does not matter
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises for bad files
WHITE = (255, 255, 255)

Array = npt.NDArray[np.uint8]


def decode(path: Path, size: int) -> Array:
    """One photo -> (size, size, 3) uint8 RGB: upright, its first frame, over white, its longer side fitted to `size`.

    Raises one of UNREADABLE for what is not a readable photo.
    """
    with Image.open(path, formats=FORMATS) as image:
        scale = size / max(image.size)
        image.draft("RGB", (max(1, int(image.width * scale)), max(1, int(image.height * scale))))  # JPEG: decodes at 1/2, 1/4, 1/8
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            upright = Image.fromarray((np.asarray(upright, dtype=np.uint16) >> 8).astype(np.uint8))
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, WHITE), upright)
        fitted = ImageOps.contain(upright.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
        square = Image.new("RGB", (size, size), WHITE)
        square.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2))
        return np.asarray(square)


def reason(error: Exception, path: Path) -> str:
    """Why a photo was not read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "empty file" if path.stat().st_size == 0 else f"not one of {', '.join(FORMATS)}"
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__


@dataclass(frozen=True)
class Pixels:
    """The readable photos of one split."""

    file: Path  # pixels.npy, for other processes to map
    rows: npt.NDArray[np.int64]  # (n,) rows of the file that hold a photo
    labels: npt.NDArray[np.int64]  # (n,)
    paths: tuple[Path, ...]  # n of them
    skipped: dict[Path, str]  # {photo: why it was not read}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def images(self) -> Array:
        """(N, S, S, 3) uint8, memory-mapped; index it with `rows`."""
        mapped: Array = np.load(self.file, mmap_mode="r")
        return mapped

    @classmethod
    def open(cls, split: Split, size: int, cache_dir: Path, threads: int, on_photo: Callable[[], object] = lambda: None) -> "Pixels":
        """The split's pixels, decoded now by `threads` threads unless the cache has them. BadInput if a class has none."""
        folder = cached(split, size, cache_dir, threads, on_photo)
        skipped = {int(row): why for row, why in json.loads((folder / "skipped.json").read_text()).items()}
        rows = np.array([i for i in range(len(split)) if i not in skipped], dtype=np.int64)
        labels = np.asarray(split.labels, dtype=np.int64)[rows]
        if emptied := set(split.labels) - set(labels.tolist()):
            row = next(i for i in skipped if split.labels[i] in emptied)
            raise BadInput(f"{split.paths[row].parent}: no readable photo in this class ({split.paths[row].name}: {skipped[row]})")
        paths = tuple(split.paths[i] for i in rows)
        return cls(folder / "pixels.npy", rows, labels, paths, {split.paths[i]: why for i, why in skipped.items()})


def cached(split: Split, size: int, cache_dir: Path, threads: int, on_photo: Callable[[], object]) -> Path:
    """The cache folder of this split at this size, made if need be; one process makes it, others wait for that one."""
    key = hashlib.sha256(f"{CACHE_VERSION} {size}".encode())
    for path in split.paths:
        status = path.stat()
        key.update(f"\0{path}\0{status.st_size}\0{status.st_mtime_ns}".encode(errors="surrogateescape"))
    slot = hashlib.sha256(os.path.commonpath(split.paths).encode(errors="surrogateescape")).hexdigest()[:12]
    parent = cache_dir / "pixels" / f"{split.name}-{size}-{slot}"
    folder = parent / key.hexdigest()[:32]
    if folder.exists():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            others = [entry for entry in parent.iterdir() if entry.is_dir()]
            fill(folder, split, size, threads, on_photo)
            for other in others:  # of photos as they were, or of a build that was killed
                shutil.rmtree(other, ignore_errors=True)
    return folder


def fill(folder: Path, split: Split, size: int, threads: int, on_photo: Callable[[], object]) -> None:
    """Decode every photo into `folder`, which appears only when it is whole."""
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix="."))
    temporary.chmod(0o755)
    images = np.lib.format.open_memmap(temporary / "pixels.npy", "w+", np.uint8, (len(split), size, size, 3))
    skipped: dict[int, str] = {}

    def one(row: int) -> None:
        try:
            images[row] = decode(split.paths[row], size)
        except UNREADABLE as error:
            skipped[row] = reason(error, split.paths[row])
        on_photo()

    with ThreadPoolExecutor(threads) as pool:  # Pillow decodes and resizes without the GIL
        for _ in pool.map(one, range(len(split)), chunksize=64):
            pass
    images.flush()
    (temporary / "skipped.json").write_text(json.dumps(skipped))
    temporary.rename(folder)


def augment(images: Array, random: np.random.Generator) -> Tensor:
    """(B, S, S, 3) uint8 -> the same, float32: half of them mirrored, cropped to 0.8-1.0 of the side, brightness +-20 %.

    The crop's size is one for the batch, so that one call resizes all of it; its place is drawn for each photo.
    """
    count, size = images.shape[:2]
    side = random.integers(round(0.8 * size), size + 1)
    places = random.integers(0, size - side + 1, (count, 2))
    mirrored = random.integers(0, 2, (count, 1))
    cropped = np.empty((count, side, side, 3), np.uint8)
    for i, (y, x) in enumerate(places):
        crop = images[i, y : y + side, x : x + side]
        cropped[i] = crop[:, ::-1] if mirrored[i, 0] else crop
    pixels = torch.from_numpy(cropped).permute(0, 3, 1, 2).float()
    brightness = torch.from_numpy(random.uniform(0.8, 1.2, (count, 1, 1, 1)).astype(np.float32))
    resized = F.interpolate(pixels, size=(size, size), mode="bilinear")
    return (resized * brightness).clamp_(0, 255).permute(0, 2, 3, 1)
