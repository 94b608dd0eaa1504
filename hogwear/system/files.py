"""Write files completely or not at all, and keep a record of those that may be overwritten."""

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from hogwear.system.artifacts import MANIFEST
from hogwear.system.errors import naming


def write_atomically(
    path: Path, content: bytes | memoryview, before_replacement: Callable[[], object] = lambda: None
) -> None:
    """Write a file completely or not at all, whoever else writes it at the same time.

    `before_replacement` is called when the content is on the disk and about to replace the old
    file. A killed process leaves a temporary file, whose name starts with `unfinished_prefix`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = unfinished_prefix(path)
    with naming(path), NamedTemporaryFile(dir=path.parent, prefix=prefix, delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
            before_replacement()
            Path(file.name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(file.name).unlink()
            raise


def unfinished_prefix(path: Path) -> str:
    """How the names of the temporary files that will replace `path` start."""
    return f".{path.name}.unfinished-"


class Manifest:
    """The files in a folder and its subfolders that we wrote and nobody has changed since.

    Only these may be overwritten or deleted. FOLDER/.hogwear.sha256 has a line for each, in the
    format of sha256sum.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / MANIFEST
        self.digests: dict[str, set[str]] = {}  # {path within the folder: what we wrote there}
        if self.file.exists():
            for line in self.file.read_text(errors="replace").splitlines():
                digest, _, name = line.partition("  ")
                self.digests.setdefault(name, set()).add(digest)

    def owns(self, path: Path) -> bool:
        """Whether a path in the folder is a file as we wrote it. OSError if it cannot be read."""
        digests = self.digests.get(str(path.relative_to(self.folder)))
        if digests is None or path.is_symlink() or not path.is_file():
            return False
        return hash_content(path.read_bytes()) in digests

    def write(self, path: Path, content: bytes) -> None:
        """Record a file, then write it. A kill in between leaves a harmless line too many."""
        name, digest = str(path.relative_to(self.folder)), hash_content(content)
        self.digests.setdefault(name, set()).add(digest)
        with naming(self.file), self.file.open("a") as file:
            file.write(f"{digest}  {name}\n")
        write_atomically(path, content)

    def delete(self, paths: Iterable[Path]) -> list[Path]:
        """Delete the files that we wrote, and return the others."""
        others = []
        for path in paths:
            if self.owns(path):
                path.unlink()
            else:
                others.append(path)
        kept = [name for name in self.digests if self.owns(self.folder / name)]
        digests = [hash_content((self.folder / name).read_bytes()) for name in kept]
        self.digests = {name: {digest} for name, digest in zip(kept, digests, strict=True)}
        lines = [f"{digest}  {name}\n" for name, digest in zip(kept, digests, strict=True)]
        write_atomically(self.file, "".join(lines).encode())
        return others


def hash_content(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
