"""Photos as pixels: the readable ones of a split, in a file of the cache that is read by row."""

import errno
import hashlib
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hogwear.data import near_duplicates
from hogwear.system.arrays import BoolArray, Int64Array, UInt8Array
from hogwear.system.files import write_atomically
from hogwear.system.workers import Workers

ALL_ROWS = slice(None)


class ArrayFile:
    """The (N, S, S, 3) uint8 array in a .npy file (or any uint8 array of rows), read and written by row, also by processes forked after it was opened.

    It is not memory-mapped, because a page once touched counts as resident, and in the end all of the file would.
    """

    def __init__(self, file: Path, mode: str = "rb") -> None:
        self.file = file.open(mode, buffering=0)
        np.lib.format.read_magic(self.file)
        self.shape = np.lib.format.read_array_header_1_0(self.file)[0]
        self.start, self.stride = self.file.tell(), math.prod(self.shape[1:])

    def require(self, *shape: int) -> None:
        """ValueError if it is of another shape, or does not have all its bytes."""
        size = os.fstat(self.file.fileno()).st_size
        if self.shape != shape or size != self.start + math.prod(shape):
            raise ValueError(
                f"{Path(self.file.name).name} has {size} bytes and the shape {self.shape}, expected {shape}"
            )

    def __getitem__(self, rows: Int64Array) -> UInt8Array:
        """A copy of these rows, (n, S, S, 3). Raises EOFError for one beyond the end of the file."""
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for image, row in zip(images, rows.tolist(), strict=True):
            if os.preadv(self.file.fileno(), [image], self.start + row * self.stride) < self.stride:
                raise EOFError(f"{self.file.name}: no row {row}")
        return images

    def __setitem__(self, row: int, image: UInt8Array) -> None:
        """Write one row, (S, S, 3). Raises OSError where the disk is full."""
        if os.pwrite(self.file.fileno(), image.data, self.start + row * self.stride) < self.stride:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.file.name)


@dataclass(frozen=True)
class Pixels:
    """The readable photos of one split. Its files stay open: whatever becomes of the cache, they can be read, by forked processes too."""

    folder: Path  # the cache's
    images: ArrayFile | UInt8Array  # index it with `rows`
    rows: Int64Array  # (n,) rows of `images` that hold a photo
    labels: Int64Array  # (n,)
    hashes: UInt8Array  # (n, HASH_SIZE) uint8, of the photos' contents
    skipped: dict[Path, str]  # {photo: why it was not read}
    all_signatures: ArrayFile | UInt8Array  # index it with `rows`

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def signatures(self) -> UInt8Array:
        """(n, 256), as `rows`: similar.py."""
        return self.all_signatures[self.rows]

    def where(self, mask: BoolArray) -> "Pixels":
        """Those where the mask, (n,), is true."""
        return replace(
            self, rows=self.rows[mask], labels=self.labels[mask], hashes=self.hashes[mask]
        )


def count_leaked(train: Pixels, held_out: Pixels) -> int:
    """How many photos of `held_out` are in `train`, too, exactly or nearly; kept beside them, for it takes 6 s with 200,000.

    Another process looks: the memory that takes is then free again.
    """
    key = hashlib.sha256(train.hashes.tobytes() + held_out.hashes.tobytes()).hexdigest()[:16]
    known = held_out.folder / f"leaked-{key}.json"
    try:
        return int(known.read_text())
    except (OSError, ValueError):
        with Workers(
            1,
            lambda rank: {
                "look": lambda item: near_duplicates.count_leaked(
                    train.signatures, held_out.signatures
                )
            },
        ) as workers:
            [(_, count)] = workers.run("look", [0])
        if held_out.folder.exists():
            write_atomically(known, str(count).encode())
        return int(count)
