"""What a network computes from the photos of a split, kept in the cache beside their pixels.

    <name>-<key>.npy        (N, ...): row i belongs to row i of the pixels
    <name>-<key>-done.npy   (N,) bool: whether row i has been written

The key is a hash of the network's weights: as long as they are the same, nothing is computed twice.
A file with another key replaces the one before it.
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
    """An array with a row for each photo of a split, in a file.

    Forked workers write the rows, and their parent records which ones have been written. If another
    process is using this folder's files, or if the folder is not writable, the rows are in a
    temporary file instead, which disappears with the process.
    """

    def __init__(
        self,
        photos: Pixels,
        name: str | None,
        row_shape: tuple[int, ...],
        dtype: npt.DTypeLike = np.float16,
    ) -> None:
        """`name` is "<name>-<key>", or None for a temporary file. A row is (*row_shape,) `dtype`.

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
        """The existing file, with the rows that it has; if it does not fit, a new one."""
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
        """Create the file: a header, and rows that take no disk space until they are written."""
        with naming(path):
            np.lib.format.open_memmap(path, "w+", self.dtype, self.shape)
            return ArrayFile(path, "r+b")

    @property
    def missing(self) -> Int64Array:
        """The photos whose rows have not been written, (k,), as indices into `rows`."""
        return np.flatnonzero(~self.done[self.rows])

    def write(self, index: Int64Array, values: AnyArray) -> None:
        """In a worker: write the rows, (k, ...), of the photos with these indices, (k,)."""
        for row, each in zip(
            self.rows[index].tolist(), values.astype(self.dtype, copy=False), strict=True
        ):
            self.file[row] = np.ascontiguousarray(each)

    def note(self, index: Int64Array) -> None:
        """In the parent: record that these photos' rows, (k,), have been written.

        The record is saved at most once in SECONDS_BETWEEN_NOTES.
        """
        self.done[self.rows[index]] = True
        if time.monotonic() - self.last_note > SECONDS_BETWEEN_NOTES:
            self.save_progress()

    def save_progress(self) -> None:
        """Save the rows to the disk, and only then the record of which ones have been written."""
        self.last_note = time.monotonic()
        if self.done_file:
            self.file.flush()
            np.save(content := io.BytesIO(), self.done)
            write_atomically(self.done_file, content.getvalue())

    def __getitem__(self, index: Int64Array) -> AnyArray:
        """The rows of the photos with these indices, (k,): (k, ...)."""
        return self.file[self.rows[index]]


def lock(folder: Path) -> bool:
    """Lock the feature files in this folder for this process. False if another one has the lock.

    The lock lasts until the process ends. A POSIX lock is lost when its process closes any handle
    of the file, so the file is opened only once.
    """
    if folder in LOCKS:
        return True
    with suppress(OSError):
        handle = (folder / "features.lock").open("a")
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        LOCKS[folder] = handle
        return True
    return False
