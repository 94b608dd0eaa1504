"""Files that are written completely or not at all."""

import os
import tempfile
from pathlib import Path

from hogwear.system.errors import naming


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
