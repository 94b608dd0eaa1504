"""Files are written completely or not at all."""

import resource
from pathlib import Path

import pytest

from hogwear.system.files import write_atomically


def test_a_disk_error_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    write_atomically(file, b"old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            write_atomically(file, bytes(2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert error.value.filename == str(file)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [
        ("metrics.csv", b"old")
    ]
