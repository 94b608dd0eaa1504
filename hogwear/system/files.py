"""Files that are written completely or not at all."""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hogwear.system.errors import naming


def write_atomically(
    path: Path, content: bytes | memoryview, before_replacement: Callable[[], object] = lambda: None
) -> None:
    """Write a file completely or not at all, whoever else writes it at the same time.

    `before_replacement` is called when the content is on the disk and is about to take the place of
    the old file. A killed process leaves a temporary file, named with `unfinished_prefix`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        naming(path),
        tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=unfinished_prefix(path), delete=False
        ) as file,
    ):
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
    """How the names of temporary files start that will replace `path`."""
    return f".{path.name}.unfinished-"
