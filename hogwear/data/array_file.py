"""Arrays in .npy files that are too large for memory: read and written row by row."""

import errno
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from hogwear.system.arrays import AnyArray, Int64Array
from hogwear.system.errors import naming


class ArrayFile:
    """The array in a .npy file, (N, ...), indexed by rows; forked processes may use it, too.

    It is not memory-mapped: a page once touched stays resident, and in the end all of them would.
    """

    def __init__(self, path: Path, mode: str = "rb") -> None:
        self.file = path.open(mode, buffering=0)
        np.lib.format.read_magic(self.file)
        self.shape, _, self.dtype = np.lib.format.read_array_header_1_0(self.file)
        if self.dtype.hasobject:  # bytes read into it would be taken for pointers
            raise ValueError(f"{path.name} has Python objects, expected numbers")
        self.start = self.file.tell()
        self.stride = math.prod(self.shape[1:]) * self.dtype.itemsize  # bytes of a row

    def require(self, dtype: np.dtype[Any] | type, *shape: int) -> None:
        """ValueError if the dtype or the shape differs, or bytes are missing."""
        size = os.fstat(self.file.fileno()).st_size
        whole = self.start + math.prod(shape) * np.dtype(dtype).itemsize
        if self.dtype != dtype or self.shape != shape or size != whole:
            raise ValueError(
                f"{Path(self.file.name).name} has {size} bytes of {self.dtype} and the shape "
                f"{self.shape}, expected {np.dtype(dtype)} and {shape}"
            )

    def __getitem__(self, rows: Int64Array) -> AnyArray:
        """A copy of these rows, (n, ...). Raises EOFError for a row beyond the end of the file."""
        arrays = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for array, row in zip(arrays, rows.tolist(), strict=True):
            if os.preadv(self.file.fileno(), [array], self.start + row * self.stride) < self.stride:
                raise EOFError(f"{self.file.name}: no row {row}")
        return arrays

    def __setitem__(self, row: int, array: AnyArray) -> None:
        """Write one row, an array of the file's dtype. OSError, with its name, on a full disk."""
        place = self.start + row * self.stride
        with naming(Path(self.file.name)):
            if os.pwrite(self.file.fileno(), array.data, place) < self.stride:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        """Return once everything written is on the disk. Raises OSError as writing a row."""
        with naming(Path(self.file.name)):
            os.fsync(self.file.fileno())
