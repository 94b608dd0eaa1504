"""Files: very many paths in little memory, contents written whole or not at all, and a record of whose files are whose."""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from hogwear.system.arrays import BoolArray
from hogwear.system.artifacts import MANIFEST
from hogwear.system.errors import naming

AT_ONCE = 4096  # paths that are str at the same time


class Paths:
    """Paths in one block of bytes, made into objects when asked for: 200,000 objects would be 40 MB."""

    def __init__(self, paths: Iterable[str | Path] = ()) -> None:
        self.encoded = bytearray()
        for path in paths:
            self.encoded += os.fsencode(f"{path}\0")  # NUL is the one byte that no path holds
        self.find_ends()

    def find_ends(self) -> None:
        self.ends = np.flatnonzero(np.frombuffer(self.encoded, np.uint8) == 0)  # (n,)

    @classmethod
    def of_bytes(cls, encoded: bytearray) -> "Paths":
        """Those in such a block."""
        paths = cls()
        paths.encoded = encoded
        paths.find_ends()
        return paths

    @classmethod
    def joined(cls, parts: "Iterable[Paths]") -> "Paths":
        """Those of the first part, of the second, and so on."""
        return cls.of_bytes(bytearray().join(part.encoded for part in parts))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> Path:
        start = self.ends[i - 1] + 1 if i else 0
        return Path(os.fsdecode(bytes(self.encoded[start : self.ends[i]])))

    def __iter__(self) -> Iterator[Path]:
        return map(Path, self.strings())

    def where(self, mask: BoolArray) -> "Paths":
        """Those where the mask, (n,), is true."""
        lengths = np.diff(self.ends, prepend=-1)
        return Paths.of_bytes(
            bytearray(np.frombuffer(self.encoded, np.uint8)[np.repeat(mask, lengths)])
        )

    def strings(self) -> Iterator[str]:
        """All of them as str, a few thousand at a time: a tenth of the time that Path takes."""
        start = 0
        for end in [*self.ends[AT_ONCE - 1 : -1 : AT_ONCE].tolist(), len(self.encoded) - 1]:
            if end > start:
                yield from os.fsdecode(bytes(self.encoded[start:end])).split("\0")
            start = end + 1


def write_atomically(path: Path, content: bytes) -> None:
    """All of it or nothing, whoever else writes at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        naming(path),
        tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file,
    ):
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise


class Manifest:
    """Which files in a folder, and in those below it, we made: the only ones that may be deleted or written over.

    FOLDER/.hogwear.sha256 has a line for each, as sha256sum writes them. A file is ours for as long as its content is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / MANIFEST
        self.digests: dict[str, set[str]] = {}  # {path within the folder: of what we wrote there}
        if self.file.exists():
            for line in self.file.read_text(errors="replace").splitlines():
                digest, _, name = line.partition("  ")
                self.digests.setdefault(name, set()).add(digest)

    def owns(self, path: Path) -> bool:
        """Whether this path within the folder is a file as we made it. Raises OSError for one that cannot be read."""
        digests = self.digests.get(str(path.relative_to(self.folder)), set())
        return (
            bool(digests)
            and path.is_file()
            and not path.is_symlink()
            and digest_of(path.read_bytes()) in digests
        )

    def write(self, path: Path, content: bytes) -> None:
        """Note what the file will be, and write it, all or nothing: killed in between, it has noted too much, which does no harm."""
        name, digest = str(path.relative_to(self.folder)), digest_of(content)
        self.digests.setdefault(name, set()).add(digest)
        with naming(self.file), self.file.open("a") as file:
            file.write(f"{digest}  {name}\n")
        write_atomically(path, content)

    def delete(self, paths: Iterable[Path]) -> list[Path]:
        """Delete those that we made, and return the others."""
        others = []
        for path in paths:
            if self.owns(path):
                path.unlink()
            else:
                others.append(path)
        kept = [name for name in self.digests if self.owns(self.folder / name)]
        self.digests = {name: {digest_of((self.folder / name).read_bytes())} for name in kept}
        lines = [
            f"{digest}  {name}\n" for name, digests in self.digests.items() for digest in digests
        ]
        write_atomically(self.file, "".join(lines).encode())
        return others


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
