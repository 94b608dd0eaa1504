"""Very many paths in little memory."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from hogwear.system.arrays import BoolArray

STRINGS_AT_ONCE = 4096


class Paths:
    """Paths in one block of bytes, made into objects on demand: 200,000 objects take 40 MB."""

    def __init__(self, paths: Iterable[str | Path] | bytearray = ()) -> None:
        """From paths, or from such a block."""
        self.encoded = paths if isinstance(paths, bytearray) else bytearray()
        if not isinstance(paths, bytearray):
            for path in paths:
                self.encoded += os.fsencode(f"{path}\0")  # no path contains the byte NUL
        self.ends = np.flatnonzero(np.frombuffer(self.encoded, np.uint8) == 0)  # (n,)

    @classmethod
    def joined(cls, parts: "Iterable[Paths]") -> "Paths":
        """The paths of the first part, of the second, and so on."""
        return cls(bytearray().join(part.encoded for part in parts))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> Path:
        start = self.ends[i - 1] + 1 if i else 0
        return Path(os.fsdecode(bytes(self.encoded[start : self.ends[i]])))

    def __iter__(self) -> Iterator[Path]:
        return map(Path, self.strings())

    def where(self, mask: BoolArray) -> "Paths":
        """The paths where the mask, (n,), is true."""
        is_kept = np.repeat(mask, np.diff(self.ends, prepend=-1))  # of every byte
        return Paths(bytearray(np.frombuffer(self.encoded, np.uint8)[is_kept]))

    def strings(self) -> Iterator[str]:
        """All paths as str, which takes a tenth of the time that Path takes."""
        start = 0
        last_of_each = self.ends[STRINGS_AT_ONCE - 1 : -1 : STRINGS_AT_ONCE].tolist()
        for end in [*last_of_each, len(self.encoded) - 1]:
            if end > start:
                yield from os.fsdecode(bytes(self.encoded[start:end])).split("\0")
            start = end + 1
