"""Arrays in .npy files that are too large for memory: read and written row by row."""

import errno
import math
import os
from pathlib import Path

import numpy as np

from hogwear.system.arrays import Int64Array, UInt8Array


class ArrayFile:
    """The uint8 array in a .npy file, (N, ...), indexed by rows; forked processes may use it, too.

    It is not memory-mapped: a page once touched stays resident, and in the end all of them would.
    """

    def __init__(self, path: Path, mode: str = "rb") -> None:
        self.file = path.open(mode, buffering=0)
        np.lib.format.read_magic(self.file)
        self.shape = np.lib.format.read_array_header_1_0(self.file)[0]
        self.start, self.stride = self.file.tell(), math.prod(self.shape[1:])

    def require_shape(self, *shape: int) -> None:
        """ValueError if the shape differs or bytes are missing."""
        size = os.fstat(self.file.fileno()).st_size
        if self.shape != shape or size != self.start + math.prod(shape):
            name = Path(self.file.name).name
            raise ValueError(
                f"{name} has {size} bytes and the shape {self.shape}, expected {shape}"
            )

    def __getitem__(self, rows: Int64Array) -> UInt8Array:
        """A copy of these rows, (n, ...). Raises EOFError for a row beyond the end of the file."""
        arrays = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for array, row in zip(arrays, rows.tolist(), strict=True):
            if os.preadv(self.file.fileno(), [array], self.start + row * self.stride) < self.stride:
                raise EOFError(f"{self.file.name}: no row {row}")
        return arrays

    def __setitem__(self, row: int, array: UInt8Array) -> None:
        """Write one row. Raises OSError when the disk is full."""
        if os.pwrite(self.file.fileno(), array.data, self.start + row * self.stride) < self.stride:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.file.name)

    def flush(self) -> None:
        """Return once everything written is on the disk."""
        os.fsync(self.file.fileno())
