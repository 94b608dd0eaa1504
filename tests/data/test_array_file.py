"""Arrays in files: read by row, in little memory."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from hogwear.data.array_file import ArrayFile
from hogwear.system.workers import Workers


def test_reading_a_row_beyond_the_end_raises(tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", np.zeros((3, 8, 8, 3), np.uint8))
    os.truncate(tmp_path / "pixels.npy", (tmp_path / "pixels.npy").stat().st_size - 1)
    images = ArrayFile(tmp_path / "pixels.npy")
    assert len(images[np.arange(2)]) == 2
    with pytest.raises(EOFError, match=r"pixels\.npy: no row 2"):
        images[np.arange(3)]


def resident() -> int:
    """PSS of this process, in bytes."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(re.findall(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)[0])


@pytest.mark.long
def test_reading_all_of_a_cache_takes_the_memory_of_one_batch(tmp_path: Path) -> None:
    count, size = 4000, 160
    np.lib.format.open_memmap(
        tmp_path / "pixels.npy", "w+", np.uint8, (count, size, size, 3)
    )  # 300 MB of holes
    images, rows = ArrayFile(tmp_path / "pixels.npy"), np.arange(count)

    def read(start: int) -> int:
        return int(images[rows[start : start + 100]].sum()) + resident() - before

    before = resident()
    assert max(map(read, range(0, count, 100))) < 100e6
    with Workers(1, lambda rank: {"read": read}) as workers:
        assert max(grown for _, grown in workers.run("read", range(0, count, 100))) < 100e6
