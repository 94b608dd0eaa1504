"""Files: very many paths in little memory, and contents written whole or not at all."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import compress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hogwear.errors import naming

AT_ONCE = 4096  # paths that are str at the same time


class Paths:
    """Paths in one block of bytes, made into objects when asked for: 200,000 objects would be 40 MB."""

    def __init__(self, paths: Iterable[str | Path] = ()) -> None:
        self.encoded = bytearray()
        for path in paths:
            self.encoded += os.fsencode(f"{path}\0")  # NUL is the one byte that no path holds
        self.ends = np.flatnonzero(np.frombuffer(self.encoded, np.uint8) == 0)  # (n,)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> Path:
        start = self.ends[i - 1] + 1 if i else 0
        return Path(os.fsdecode(bytes(self.encoded[start : self.ends[i]])))

    def __iter__(self) -> Iterator[Path]:
        return map(Path, self.texts())

    def where(self, mask: npt.NDArray[np.bool_]) -> "Paths":
        """Those where the mask, (n,), is true."""
        return Paths(compress(self.texts(), mask.tolist()))

    def texts(self) -> Iterator[str]:
        """All of them as str, a few thousand at a time: a tenth of the time that Path takes."""
        start = 0
        for end in [*self.ends[AT_ONCE - 1 : -1 : AT_ONCE].tolist(), len(self.encoded) - 1]:
            if end > start:
                yield from os.fsdecode(bytes(self.encoded[start:end])).split("\0")
            start = end + 1


def write_atomically(path: Path, content: bytes) -> None:
    """All of it or nothing, whoever else writes at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise
