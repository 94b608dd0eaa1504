"""The features of a split's photos, kept beside their pixels in the cache.

    features-<key>.npy        (N, D) float16, the rows of the pixels' files
    features-<key>-done.npy   (N,) bool, which rows are there

The key stands for the network that computed them, so features are computed once for each photo. The
folder keeps those of one network.
"""

import fcntl
import io
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from hogwear.data.array_file import ArrayFile
from hogwear.data.cache_folder import DAMAGE, SECONDS_BETWEEN_NOTES
from hogwear.data.pixels import Pixels
from hogwear.system.arrays import AnyArray, Float16Array, Int64Array
from hogwear.system.errors import naming
from hogwear.system.files import write_atomically


class FeatureFile:
    """The features of some photos by one network. Forked workers write them, their parent notes it.

    If another process is writing the features of this folder, or if the folder cannot be written, a
    temporary file that nobody else sees takes its place.
    """

    def __init__(self, photos: Pixels, key: str | None, width: int) -> None:
        """Without a key, the file is temporary. Raises OSError, with its name, on a full disk."""
        self.rows = photos.rows  # (n,)
        self.shape = photos.images.shape[0], width
        self.done = np.zeros(self.shape[0], bool)
        self.done_file: Path | None = None
        if key and self.try_lock(photos.folder):
            self.done_file = photos.folder / f"features-{key}-done.npy"
            self.file = self.open(photos.folder / f"features-{key}.npy", self.done_file)
        else:
            with tempfile.NamedTemporaryFile(suffix=".npy") as file:
                self.file = self.create(Path(file.name))
        self.last_note = time.monotonic()

    def try_lock(self, folder: Path) -> bool:
        """Whether this process may write in the folder, until it ends."""
        with suppress(OSError):
            self.lock = (folder / "features.lock").open("a")
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    def open(self, path: Path, done_file: Path) -> ArrayFile:
        """The file with what is there already, or a new one."""
        with suppress(*DAMAGE):
            file = ArrayFile(path, "r+b")
            file.require(np.float16, *self.shape)
            done = np.load(done_file)
            if done.shape == self.done.shape and done.dtype == bool:
                self.done = done
                return file
        for obsolete in path.parent.glob("features-*"):
            obsolete.unlink()
        return self.create(path)

    def create(self, path: Path) -> ArrayFile:
        """Write the header, and holes."""
        with naming(path):
            np.lib.format.open_memmap(path, "w+", np.float16, self.shape)
            return ArrayFile(path, "r+b")

    @property
    def missing(self) -> Int64Array:
        """The rows, of those of the photos, that have no features yet, (k,)."""
        return self.rows[~self.done[self.rows]]

    def write(self, rows: Int64Array, features: AnyArray) -> None:
        """In a worker: write the features of some rows, (k, D) of any dtype."""
        for row, each in zip(rows.tolist(), features.astype(np.float16), strict=True):
            self.file[row] = each

    def note(self, rows: Int64Array) -> None:
        """Count these rows as written; save that now and then."""
        self.done[rows] = True
        if time.monotonic() - self.last_note > SECONDS_BETWEEN_NOTES:
            self.save_progress()

    def save_progress(self) -> None:
        """First the features reach the disk, then the note that they are there."""
        self.last_note = time.monotonic()
        if self.done_file:
            self.file.flush()
            np.save(content := io.BytesIO(), self.done)
            write_atomically(self.done_file, content.getvalue())

    def __getitem__(self, index: Int64Array) -> Float16Array:
        """The features of some photos, (k, D), by their place in `rows`."""
        return self.file[self.rows[index]]
