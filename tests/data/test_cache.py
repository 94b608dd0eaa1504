"""The cache: each photo is decoded once, and damage, interruptions and full disks are survived."""

import errno
import io
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pytest
from helpers import SIZE, ForkedCall, damage_file, make_split, open_pixels, wait_until
from PIL import Image

from hogwear.data import cache_folder, decoding, near_duplicates
from hogwear.data.array_file import ArrayFile
from hogwear.data.cache import PhotoCache
from hogwear.data.decoding import Limits, decode
from hogwear.data.pixels import ALL_ROWS
from hogwear.system.arrays import UInt8Array
from hogwear.system.errors import BadInput
from hogwear.system.workers import FORK

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized


def tiff(content: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(content)).save(buffer, "TIFF")
    return buffer.getvalue()


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "empty file"),
    "text": (lambda content: b"not a photo\n", "not one of JPEG, PNG, WEBP, BMP, GIF, AVIF"),
    "tiff": (tiff, "TIFF or a raw photo, which is not read; convert it to JPEG: magick mogrify"),
    "cut": (lambda content: content[: len(content) // 2], "truncated"),
}


@pytest.mark.parametrize(("damage", "why"), DAMAGE.values(), ids=list(DAMAGE))
def test_an_unreadable_photo_is_skipped_with_a_reason(
    copies: list[Path], tmp_path: Path, damage: Callable[[bytes], bytes], why: str
) -> None:
    copies[3].write_bytes(damage(copies[3].read_bytes()))
    for _ in range(2):  # decoded, and from the cache
        opened = PhotoCache(tmp_path / "cache", processes=2).open(
            make_split(copies, [0] * 5 + [1] * 4), SIZE
        )
        assert list(opened.skipped) == [copies[3]] and why in opened.skipped[copies[3]]
        assert opened.rows.tolist() == [0, 1, 2, 4, 5, 6, 7, 8] and len(opened) == 8
        assert opened.labels.tolist() == [0] * 4 + [1] * 4
        assert np.array_equal(
            opened.images[opened.rows], [decode(copies[i], SIZE) for i in opened.rows]
        )


def test_a_class_without_a_readable_photo_is_refused(copies: list[Path], tmp_path: Path) -> None:
    for broken in copies[7:]:
        broken.write_bytes(b"")
    with pytest.raises(
        BadInput, match=r"data: no readable photo in this class \(7\.jpg: empty file\)"
    ):
        PhotoCache(tmp_path / "cache", processes=2).open(
            make_split(copies, [0] * 7 + [1] * 2), SIZE
        )


def caches(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("pixels/*/*") if path.name != "lock")


def test_the_cache_is_reused(copies: list[Path], tmp_path: Path) -> None:
    first = PhotoCache(tmp_path / "cache", processes=2).open(make_split(copies), SIZE)
    written = (first.folder / "pixels.npy").stat()
    counts: list[int] = []
    again = PhotoCache(tmp_path / "cache", processes=2).open(
        make_split(copies), SIZE, on_progress=counts.append
    )
    assert again.folder == first.folder and (again.folder / "pixels.npy").stat() == written
    assert not counts


@pytest.mark.parametrize("processes", [1, 2, 20])
def test_every_photo_is_decoded_once_by_any_number_of_processes(
    copies: list[Path], tmp_path: Path, processes: int
) -> None:
    counts: list[int] = []
    opened = PhotoCache(tmp_path / "cache", processes=processes).open(
        make_split(copies), SIZE, on_progress=counts.append
    )
    assert sum(counts) == len(opened) == 9
    assert np.array_equal(opened.images[opened.rows], [decode(path, SIZE) for path in copies])


def test_photos_are_decoded_while_the_caller_does_something_else(
    copies: list[Path], tmp_path: Path, decoded_rows: "Synchronized[int]"
) -> None:
    job = PhotoCache(tmp_path / "cache", processes=2).start(make_split(copies), SIZE)
    wait_until(lambda: decoded_rows.value > 0)
    pixels = job.finish()
    assert np.array_equal(pixels.images[pixels.rows], [decode(path, SIZE) for path in copies])
    again = PhotoCache(tmp_path / "cache", processes=2).start(make_split(copies), SIZE)
    assert len(again.finish()) == 9 and decoded_rows.value == 9


def test_a_changed_photo_gets_a_new_folder_and_the_old_one_is_removed(
    copies: list[Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    before = PhotoCache(cache, processes=1).open(make_split(copies), SIZE)
    old = caches(cache)
    copies[0].write_bytes(copies[8].read_bytes())
    after = PhotoCache(cache, processes=1).open(make_split(copies), SIZE)
    assert np.array_equal(*after.images[np.array([0, 8])])
    assert len(caches(cache)) == 1 and caches(cache) != old and not before.folder.exists()


def test_each_split_and_size_has_its_own_folder(copies: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    opened = [
        PhotoCache(cache, processes=1).open(split, size)
        for split in (make_split(copies), replace(make_split(copies[:5]), name="val")) for size in (SIZE, 32)
    ]  # fmt: skip
    assert len({pixels.folder for pixels in opened}) == 4 and all(
        pixels.folder.exists() for pixels in opened
    )


def test_decoding_that_was_killed_resumes_from_the_last_note(
    copies: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_folder, "SECONDS_BETWEEN_NOTES", 0.0)
    cache = tmp_path / "cache"
    copies[1].write_bytes(b"no photo")

    def die(count: int) -> None:
        if count == 4:  # the second chunk's; the first has five
            os.kill(os.getpid(), signal.SIGKILL)

    killed = ForkedCall(
        PhotoCache(cache, processes=1).open, make_split(copies), SIZE, ALL_ROWS, die
    )
    with pytest.raises(EOFError):
        killed.result()
    assert killed.process.exitcode == -signal.SIGKILL
    assert PhotoCache(cache).open_if_complete(make_split(copies), SIZE) is None
    counts: list[int] = []
    opened = PhotoCache(cache, processes=1).open(
        make_split(copies), SIZE, on_progress=counts.append
    )
    assert counts[0] == 5 and sum(counts) == 9 and list(opened.skipped) == [copies[1]]
    assert np.array_equal(
        opened.images[opened.rows], [decode(path, SIZE) for path in copies if path != copies[1]]
    )
    assert len(caches(cache)) == 1 and PhotoCache(cache).open_if_complete(make_split(copies), SIZE)


def test_a_part_can_be_decoded_first_and_the_rest_later(copies: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    counts: list[int] = []
    part = PhotoCache(cache, processes=2).open(
        make_split(copies), SIZE, part=slice(1, None, 2), on_progress=counts.append
    )
    assert (
        part.rows.tolist() == [1, 3, 5, 7]
        and part.labels.tolist() == make_split(copies).labels[1::2].tolist()
        and sum(counts) == 4
    )
    assert np.array_equal(part.images[part.rows], [decode(path, SIZE) for path in copies[1::2]])
    assert (
        not part.images[np.array([0])].any()
        and PhotoCache(cache).open_if_complete(make_split(copies), SIZE) is None
    )
    counts.clear()
    whole = PhotoCache(cache, processes=2).open(make_split(copies), SIZE, on_progress=counts.append)
    assert counts[0] == 4 and sum(counts) == 9 and whole.folder == part.folder
    assert np.array_equal(whole.images[whole.rows], [decode(path, SIZE) for path in copies])


def test_when_two_processes_start_together_one_decodes_and_both_get_the_pixels(
    copies: list[Path], tmp_path: Path
) -> None:
    ready = FORK.Barrier(2)

    def open_together() -> tuple[UInt8Array, int]:
        counts: list[int] = []
        ready.wait()
        opened = PhotoCache(tmp_path / "cache", processes=2).open(
            make_split(copies), SIZE, on_progress=counts.append
        )
        return opened.images[opened.rows], sum(counts)

    both = [ForkedCall(open_together) for _ in range(2)]
    (first, one_decoded), (second, other_decoded) = (process.result() for process in both)
    assert np.array_equal(first, second) and len(first) == 9
    assert sorted([one_decoded, other_decoded]) == [0, 9]
    assert len(caches(tmp_path / "cache")) == 1


def test_pixels_are_in_a_plain_npy_file(copies: list[Path], tmp_path: Path) -> None:
    opened = PhotoCache(tmp_path / "cache", processes=2).open(make_split(copies), SIZE)
    assert opened.images.shape == (9, SIZE, SIZE, 3)
    backwards = np.arange(8, -1, -1)
    assert np.array_equal(
        opened.images[backwards], np.load(opened.folder / "pixels.npy")[backwards]
    )
    assert opened.images[backwards[:0]].shape == (0, SIZE, SIZE, 3)


def test_decoding_maps_no_file_into_memory(
    copies: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(file: BinaryIO, size: int, *others: object, **more: object) -> UInt8Array:
        assert "pixels.npy" not in Path("/proc/self/maps").read_text()
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(decoding, "decode_verified", decode)
    assert not PhotoCache(tmp_path / "cache", processes=2).open(make_split(copies), SIZE).skipped


def test_a_full_disk_is_an_error_and_not_an_unreadable_photo(
    copies: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        os, "pwrite", lambda descriptor, image, offset: 100
    )  # bytes that were still free
    np.save(tmp_path / "pixels.npy", np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(OSError, match="pixels") as error:
        ArrayFile(tmp_path / "pixels.npy", "r+b")[1] = np.ones((8, 8, 3), np.uint8)
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space left on device"):
        PhotoCache(tmp_path / "cache", processes=1).open(make_split(copies), SIZE)
    assert not list((tmp_path / "cache").glob("pixels/*/*/skipped.json"))


def test_only_new_photos_are_decoded_when_photos_are_added_renamed_or_removed(
    copies: list[Path], tmp_path: Path, decoded_rows: "Synchronized[int]"
) -> None:
    cache = tmp_path / "cache"
    copies[4].write_bytes(b"no photo")
    before = PhotoCache(cache, processes=1).open(make_split(copies[:8]), SIZE)
    assert decoded_rows.value == 8
    renamed = [*copies[2:], copies[0].rename(copies[0].with_name("z.jpg"))]
    after = PhotoCache(cache, processes=1).open(make_split(renamed), SIZE)
    assert decoded_rows.value == 9 and list(after.skipped) == list(before.skipped) == [copies[4]]
    assert np.array_equal(
        after.images[after.rows], [decode(path, SIZE) for path in renamed if path != copies[4]]
    )
    assert np.array_equal(
        after.signatures,
        [near_duplicates.compute_signature(image) for image in after.images[after.rows]],
    )


def test_a_photo_that_changes_between_hashing_and_decoding_is_skipped_once(
    copies: list[Path], tmp_path: Path
) -> None:
    split = make_split(copies)
    copies[3].write_bytes(copies[4].read_bytes())
    opened = PhotoCache(tmp_path / "cache", processes=1).open(split, SIZE)
    assert opened.skipped == {
        copies[3]: "changed while the photos were read; it is read again the next time"
    }
    assert PhotoCache(tmp_path / "cache").open_if_complete(split, SIZE) is None
    open_pixels(copies, tmp_path / "cache")


class NoMemory:
    """A decoder that runs out of memory for one photo, as long as there is this file."""

    def __init__(self, photo: Path, file: Path) -> None:
        self.file, self.decode = file, decoding.decode_verified
        self.hash = decoding.hash_content(photo.read_bytes())
        file.touch()

    def __call__(
        self, file: BinaryIO, size: int, limits: Limits, expected_hash: bytes
    ) -> UInt8Array:
        if expected_hash == self.hash and self.file.exists():
            raise MemoryError
        return self.decode(file, size, limits, expected_hash)


def test_a_photo_skipped_for_lack_of_memory_is_tried_again(
    copies: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "decode_verified", NoMemory(copies[5], tmp_path / "short"))
    copies[1].write_bytes(b"no photo")
    for _ in range(2):
        opened = PhotoCache(tmp_path / "cache", processes=1).open(make_split(copies), SIZE)
        assert {path.name: why for path, why in opened.skipped.items()} == {
            "1.jpg": "not one of JPEG, PNG, WEBP, BMP, GIF, AVIF", "5.jpg": "needs too much memory to decode",
        }  # fmt: skip
    (tmp_path / "short").unlink()
    counts: list[int] = []
    opened = PhotoCache(tmp_path / "cache", processes=1).open(
        make_split(copies), SIZE, on_progress=counts.append
    )
    assert list(opened.skipped) == [copies[1]] and counts == [8, 1], "and only that one"
    assert np.array_equal(
        opened.images[opened.rows], [decode(path, SIZE) for path in copies if path != copies[1]]
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody who may not read")
def test_a_photo_without_read_permission_is_read_once_it_has_one(
    copies: list[Path], tmp_path: Path, decoded_rows: "Synchronized[int]"
) -> None:
    private, cache = copies[0], tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    modes = {place: place.stat().st_mode for place in (tmp_path, *tmp_path.parents)}
    private.chmod(0o600)
    try:
        for place, mode in modes.items():
            place.chmod(mode | 0o011)
        os.seteuid(65534)
        opened = PhotoCache(cache, processes=1).open(make_split(copies), SIZE)
        assert opened.skipped == {private: "Permission denied"} and decoded_rows.value == 8
        os.seteuid(0)
        os.chown(private, 65534, -1)
        os.seteuid(65534)
        open_pixels(copies, cache)
        assert decoded_rows.value == 9
    finally:
        os.seteuid(0)
        for place, mode in modes.items():
            place.chmod(mode)


def zeros(*shape: int) -> bytes:
    np.save(content := io.BytesIO(), np.zeros(shape, np.uint8))
    return content.getvalue()


CACHE_DAMAGE: dict[str, tuple[str, bytes | int | None]] = {  # a file: its content, its length, or None where it is gone
    "no pixels": ("pixels.npy", None), "empty pixels": ("pixels.npy", b""), "pixels cut": ("pixels.npy", -1), "pixels cut in the header": ("pixels.npy", 50),
    "pixels of another shape": ("pixels.npy", zeros(9, 32, 32, 3)), "pixels that are text": ("pixels.npy", b"text"), "more pixels": ("pixels.npy", zeros(10, SIZE, SIZE, 3)),
    "no signatures": ("signatures.npy", None), "signatures cut": ("signatures.npy", -1), "no hashes": ("hashes.npy", None), "hashes cut": ("hashes.npy", -1),
    "no reasons": ("skipped.json", None), "empty reasons": ("skipped.json", b""), "reasons of another kind": ("skipped.json", b"[1]"), "a reason for no row": ("skipped.json", b'{"x": 1}'),
    "an empty list of what is done": ("done.npy", b""), "a short list of what is done": ("done.npy", zeros(3)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "damage"), CACHE_DAMAGE.values(), ids=list(CACHE_DAMAGE))
def test_a_damaged_cache_is_reported_and_decoded_again(
    copies: list[Path],
    tmp_path: Path,
    name: str,
    damage: bytes | int | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = tmp_path / "cache"
    folder = open_pixels(copies, cache).folder
    damage_file(folder / name, damage)
    assert (
        PhotoCache(cache).open_if_complete(make_split(copies), SIZE) is None
        and capsys.readouterr().err == ""
    )
    assert open_pixels(copies, cache).folder == folder
    said = capsys.readouterr().err
    assert (
        said.startswith(f"Warning: the cache {folder} is damaged (")
        and said.endswith("); its photos are decoded again\n")
        and said.count("\n") == 1
    )
    assert open_pixels(copies, cache) and capsys.readouterr().err == ""


def test_open_pixels_survive_changes_of_the_cache_in_forked_processes_too(
    copies: list[Path], tmp_path: Path
) -> None:
    opened = open_pixels(copies, tmp_path / "cache")
    shutil.rmtree(opened.folder)
    opened.folder.mkdir()
    (opened.folder / "pixels.npy").write_bytes(zeros(9, SIZE, SIZE, 3))
    assert np.array_equal(
        ForkedCall(lambda: opened.images[opened.rows]).result(),
        [decode(path, SIZE) for path in copies],
    )
    assert np.array_equal(
        opened.signatures,
        [near_duplicates.compute_signature(decode(path, SIZE)) for path in copies],
    )
