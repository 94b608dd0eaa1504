"""The hashes of contents: which files are read again, and that no photo is mistaken for another."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pytest
from helpers import SIZE, make_split, open_pixels
from PIL import Image

from hogwear.data import contents
from hogwear.data.cache import PhotoCache
from hogwear.system.workers import FORK

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> "Synchronized[int]":
    """How many files have been looked into to hash them; all are taken to have settled."""
    count, hash_file = FORK.Value("i"), contents.hash_file

    def counted(file: BinaryIO) -> bytes:
        with count.get_lock():
            count.value += 1
        return hash_file(file)

    monkeypatch.setattr(contents, "hash_file", counted)
    monkeypatch.setattr(contents, "SETTLED_SECONDS", -1000.0)
    return count


def test_swapped_photos_with_equal_size_and_time_are_told_apart(
    copies: list[Path], tmp_path: Path, hashed: "Synchronized[int]"
) -> None:
    folders = [tmp_path / "data" / name for name in "ab"]
    for folder, photos in zip(folders, (copies[:4], copies[4:8]), strict=True):
        folder.mkdir()
        for i, photo in enumerate(photos):
            Image.open(photo).convert("RGB").resize((SIZE, SIZE)).save(folder / f"{i}.bmp")
            os.utime(folder / f"{i}.bmp", ns=(0, 10**18))
    files = [folder / f"{i}.bmp" for folder in folders for i in range(4)]
    assert (
        len({(file.stat().st_size, file.stat().st_mtime_ns, file.stat().st_mode) for file in files})
        == 1
    )
    open_pixels(files, tmp_path / "cache")
    folders[0].rename(tmp_path / "data" / "c")
    folders[1].rename(folders[0])
    (tmp_path / "data" / "c").rename(folders[1])
    open_pixels(files, tmp_path / "cache")
    assert hashed.value == 16


def test_a_photo_overwritten_with_equal_size_and_time_is_hashed_again(
    copies: list[Path], tmp_path: Path, hashed: "Synchronized[int]"
) -> None:
    with Image.open(copies[0]) as image:
        image.convert("RGB").resize((SIZE, SIZE)).save(copies[0], "BMP")
    status, content = copies[0].stat(), copies[0].read_bytes()
    open_pixels(copies, tmp_path / "cache")
    assert hashed.value == 9
    copies[0].write_bytes(content[:1000] + content[1000:][::-1])
    os.utime(copies[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    open_pixels(copies, tmp_path / "cache")
    assert hashed.value == 10


def test_chmod_touch_copy_and_move_decode_nothing_again(
    copies: list[Path],
    tmp_path: Path,
    decoded_rows: "Synchronized[int]",
    hashed: "Synchronized[int]",
) -> None:
    cache = tmp_path / "cache"
    open_pixels(copies, cache)
    assert (hashed.value, decoded_rows.value) == (9, 9)
    open_pixels(copies, cache)
    assert hashed.value == 9, "nothing has changed"
    copies[0].touch()
    copies[1].chmod(0o600)
    shutil.copy(copies[2], tmp_path / "other")
    (tmp_path / "other").rename(copies[2])
    open_pixels(copies, cache)
    assert hashed.value == 9 + 3
    moved = [copy.parent.rename(tmp_path / "elsewhere") / copy.name for copy in copies[:1]]
    moved += [moved[0].with_name(copy.name) for copy in copies[1:]]
    open_pixels(moved, cache)
    shutil.copytree(moved[0].parent, tmp_path / "copied")
    open_pixels([tmp_path / "copied" / file.name for file in moved], cache)
    for index in cache.glob("contents-*"):
        index.unlink()
    open_pixels(moved, cache)
    assert decoded_rows.value == 9


def test_a_file_that_has_just_changed_is_not_indexed(copies: list[Path], tmp_path: Path) -> None:
    """A clock's tick may hold two changes; a clock that was set back, very many."""
    PhotoCache(tmp_path / "cache", processes=1).open(make_split(copies), SIZE)
    assert all(len(np.load(index)) == 0 for index in (tmp_path / "cache").glob("contents-*.npy"))


def test_a_damaged_index_is_reported_and_rebuilt(
    copies: list[Path],
    tmp_path: Path,
    hashed: "Synchronized[int]",
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = tmp_path / "cache"
    open_pixels(copies, cache)
    [index] = cache.glob("contents-*.npy")
    whole = index.read_bytes()
    for content in (b"", whole[:100], whole[:-1], b"text", bytes(len(whole))):
        index.write_bytes(content)
        open_pixels(copies, cache)
        assert (
            capsys.readouterr().err == f"Warning: {index} is damaged; the photos are read again\n"
        )
        assert index.read_bytes() == whole
