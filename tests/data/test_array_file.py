"""Arrays in files: read and written by row, in little memory."""

import os
import re
import resource
from pathlib import Path

import numpy as np
import pytest

from hogwear.data.array_file import ArrayFile
from hogwear.system.arrays import AnyArray
from hogwear.system.workers import Workers


def test_reading_a_row_beyond_the_end_raises(tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", np.zeros((3, 8, 8, 3), np.uint8))
    os.truncate(tmp_path / "pixels.npy", (tmp_path / "pixels.npy").stat().st_size - 1)
    images = ArrayFile(tmp_path / "pixels.npy")
    assert len(images[np.arange(2)]) == 2
    with pytest.raises(EOFError, match=r"pixels\.npy: no row 2"):
        images[np.arange(3)]


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.int64, np.bool_])
@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3, 4)], ids=str)
def test_rows_of_any_dtype_are_written_and_read(
    dtype: type, shape: tuple[int, ...], tmp_path: Path
) -> None:
    expected: AnyArray = (np.arange(np.prod(shape)) % 7).reshape(shape).astype(dtype)
    np.save(tmp_path / "rows.npy", np.zeros_like(expected))
    file = ArrayFile(tmp_path / "rows.npy", "r+b")
    file.require(dtype, *shape)
    for row in (4, 0, 2, 3, 1):
        file[row] = expected[row]
    file.flush()
    assert np.array_equal(file[np.array([3, 0, 3])], expected[[3, 0, 3]])
    assert np.array_equal(np.load(tmp_path / "rows.npy"), expected)
    for other in ((np.int16, shape), (dtype, (6, *shape[1:])), (dtype, (*shape, 1))):
        with pytest.raises(
            ValueError, match=rf"rows\.npy has \d+ bytes of {file.dtype} and the shape"
        ):
            file.require(other[0], *other[1])
    os.truncate(tmp_path / "rows.npy", (tmp_path / "rows.npy").stat().st_size - 1)
    with pytest.raises(ValueError, match=r"rows\.npy has"):
        file.require(dtype, *shape)


def test_python_objects_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}, "text"], object))
    with pytest.raises(ValueError, match=r"objects\.npy has Python objects, expected numbers"):
        ArrayFile(tmp_path / "objects.npy")


def test_a_row_that_does_not_fit_on_the_disk_names_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((2, 4096), np.uint8))
    file = ArrayFile(tmp_path / "rows.npy", "r+b")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        for row in (0, 1):  # of the first one, a part still fits
            with pytest.raises(OSError) as error:
                file[row] = np.ones(4096, np.uint8)
            assert error.value.filename == str(tmp_path / "rows.npy") and error.value.strerror
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


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
