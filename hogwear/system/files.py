"""Files that are written completely or not at all."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

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
