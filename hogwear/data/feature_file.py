"""What a network computes from the photos of a split, kept beside their pixels in the cache.

    <name>-<key>.npy        (N, ...), the rows of the pixels' files
    <name>-<key>-done.npy   (N,) bool, which rows are there

The key stands for the network, so each photo is computed once. The folder keeps one key per name.
"""

import fcntl
import io
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from hogwear.data.array_file import ArrayFile
from hogwear.data.cache_folder import DAMAGE, SECONDS_BETWEEN_NOTES
from hogwear.data.pixels import Pixels
from hogwear.system.arrays import AnyArray, Int64Array
from hogwear.system.errors import naming
from hogwear.system.files import write_atomically

LOCKS: dict[Path, TextIO] = {}  # of this process, until it ends


class FeatureFile:
    """A row for each of some photos. Forked workers write them, their parent notes it.

    If another process is writing in this folder, or if the folder cannot be written, a temporary
    file that nobody else sees takes its place.
    """

    def __init__(
        self,
        photos: Pixels,
        name: str | None,
        row_shape: tuple[int, ...],
        dtype: npt.DTypeLike = np.float16,
    ) -> None:
        """`name` has the key; without it, the file is temporary.

        Raises OSError, with the file's name, on a full disk.
        """
        self.rows = photos.rows  # (n,)
        self.shape, self.dtype = (photos.images.shape[0], *row_shape), np.dtype(dtype)
        self.done = np.zeros(self.shape[0], bool)
        self.done_file: Path | None = None
        if name and lock(photos.folder):
            self.done_file = photos.folder / f"{name}-done.npy"
            self.file = self.open(photos.folder / f"{name}.npy", self.done_file)
        else:
            # Not in /tmp, which may be memory
            place = photos.folder if os.access(photos.folder, os.W_OK) else None
            with tempfile.NamedTemporaryFile(dir=place, suffix=".npy") as file:
                self.file = self.create(Path(file.name))
        self.last_note = time.monotonic()

    def open(self, path: Path, done_file: Path) -> ArrayFile:
        """The file with what is there already, or a new one."""
        with suppress(*DAMAGE):
            file = ArrayFile(path, "r+b")
            file.require(self.dtype, *self.shape)
            done = np.load(done_file)
            if done.shape == self.done.shape and done.dtype == bool:
                self.done = done
                return file
        for obsolete in path.parent.glob(f"{path.stem.partition('-')[0]}-*"):
            obsolete.unlink()
        return self.create(path)

    def create(self, path: Path) -> ArrayFile:
        """Write the header, and holes."""
        with naming(path):
            np.lib.format.open_memmap(path, "w+", self.dtype, self.shape)
            return ArrayFile(path, "r+b")

    @property
    def missing(self) -> Int64Array:
        """The photos without a row, (k,), by their place in `rows`."""
        return np.flatnonzero(~self.done[self.rows])

    def write(self, index: Int64Array, values: AnyArray) -> None:
        """In a worker: write the rows of some photos, (k, ...) of any dtype."""
        for row, each in zip(
            self.rows[index].tolist(), values.astype(self.dtype, copy=False), strict=True
        ):
            self.file[row] = np.ascontiguousarray(each)

    def note(self, index: Int64Array) -> None:
        """Count the rows of these photos as written; save that now and then."""
        self.done[self.rows[index]] = True
        if time.monotonic() - self.last_note > SECONDS_BETWEEN_NOTES:
            self.save_progress()

    def save_progress(self) -> None:
        """First the rows reach the disk, then the note that they are there."""
        self.last_note = time.monotonic()
        if self.done_file:
            self.file.flush()
            np.save(content := io.BytesIO(), self.done)
            write_atomically(self.done_file, content.getvalue())

    def __getitem__(self, index: Int64Array) -> AnyArray:
        """The rows of some photos, (k, ...)."""
        return self.file[self.rows[index]]


def lock(folder: Path) -> bool:
    """Whether this process may write in the folder, until it ends.

    A lock ends when any handle of the file is closed, so there is one per process.
    """
    if folder in LOCKS:
        return True
    with suppress(OSError):
        handle = (folder / "features.lock").open("a")
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        LOCKS[folder] = handle
        return True
    return False
