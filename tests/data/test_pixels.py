"""Photos of every kind -> letterboxed RGB; the cache of them; and the changes that training makes."""

import errno
import hashlib
import io
import os
import re
import shutil
import signal
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pytest
from helpers import SIZE, ForkedCall, wait_until
from PIL import Image, ImageOps, UnidentifiedImageError

from hogwear.data import cache_writer, contents, decoding, leakage, near_duplicates
from hogwear.data.array_file import ArrayFile
from hogwear.data.cache import PhotoCache
from hogwear.data.decoding import LIMITS, Limits, decode
from hogwear.data.photos import Split
from hogwear.data.pixels import ALL_ROWS, Pixels
from hogwear.system.arrays import Int64Array, UInt8Array
from hogwear.system.errors import BadInput
from hogwear.system.paths import Paths
from hogwear.system.workers import FORK, Workers

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

Flip = Image.Transpose
STORED = {  # what was done to an upright photo that is stored with this EXIF orientation
    2: Flip.FLIP_LEFT_RIGHT, 3: Flip.ROTATE_180, 4: Flip.FLIP_TOP_BOTTOM, 5: Flip.TRANSPOSE,
    6: Flip.ROTATE_90, 7: Flip.TRANSVERSE, 8: Flip.ROTATE_270,
}  # fmt: skip


@pytest.fixture(scope="module")
def photo(photo_files: list[Path]) -> Image.Image:
    """A real photo, made SIZE x SIZE, so that decoding need not resize it, and different on all sides."""
    with Image.open(photo_files[0]) as image:
        square = image.convert("RGB").resize((SIZE, SIZE))
    square.paste((200, 30, 30), (0, 0, SIZE, 8))
    square.paste((30, 30, 200), (0, 8, 8, SIZE))
    return square


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "photo"


def decoded(file: Path) -> Int64Array:
    array = decode(file, SIZE)
    assert array.shape == (SIZE, SIZE, 3) and array.dtype == np.uint8
    return array.astype(np.int64)


def difference(file: Path, expected: Image.Image) -> float:
    """Mean distance of a channel from what was expected, in 0..255."""
    return float(np.abs(decoded(file) - np.asarray(expected.convert("RGB"), np.int64)).mean())


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_give_the_very_pixels(photo: Image.Image, file: Path, format: str) -> None:
    photo.save(file, format, **({"lossless": True} if format == "WEBP" else {}))
    assert difference(file, photo) == 0


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_gives_nearly_the_pixels(
    photo: Image.Image, file: Path, options: dict[str, int]
) -> None:
    photo.save(file, "JPEG", quality=95, **options)
    assert difference(file, photo) < 3


def test_of_a_gif_the_first_frame_is_taken(photo: Image.Image, file: Path) -> None:
    first = photo.quantize(64)
    first.save(
        file,
        "GIF",
        save_all=True,
        append_images=[ImageOps.invert(photo).quantize(64)],
        duration=100,
    )
    assert difference(file, first) < 1


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_honoured(
    photo: Image.Image, file: Path, orientation: int, format: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.transpose(STORED[orientation]).save(file, format, exif=exif, quality=95)
    assert difference(file, photo) < 3


@pytest.mark.parametrize(
    "tag", [0x0101, 0x010E], ids=["a fraction for a height", "a fraction for a text"]
)
def test_a_photo_with_faulty_exif_data_is_read_and_upright(
    photo: Image.Image, file: Path, tag: int
) -> None:
    entries = sorted(
        [struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0), struct.pack(">HHII", tag, 5, 1, 38)]
    )
    exif = (
        b"Exif\0\0MM\0*"
        + struct.pack(">IH", 8, 2)
        + b"".join(entries)
        + struct.pack(">III", 0, 72, 1)
    )
    photo.transpose(STORED[6]).save(file, "JPEG", exif=exif, quality=95)
    assert difference(file, photo) < 3


def test_what_is_transparent_becomes_white(photo: Image.Image, file: Path) -> None:
    alpha = Image.linear_gradient("L").resize(photo.size)
    expected = Image.composite(photo, Image.new("RGB", photo.size, "white"), alpha)
    rgba = photo.copy()
    rgba.putalpha(alpha)
    rgba.save(file, "PNG")
    assert difference(file, expected) < 1
    rgba.convert("LA").save(file, "PNG")
    assert (
        difference(
            file, Image.composite(photo.convert("L"), Image.new("L", photo.size, 255), alpha)
        )
        < 1
    )


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_becomes_white(
    photo: Image.Image, file: Path, format: str
) -> None:
    palette = photo.quantize(16)
    indices = np.asarray(palette)
    palette.save(file, format, transparency=int(indices[32, 32]))
    expected = np.asarray(palette.convert("RGB")).copy()
    expected[indices == indices[32, 32]] = 255
    assert difference(file, Image.fromarray(expected)) == 0


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_greyscale_and_palettes_become_rgb(photo: Image.Image, file: Path, mode: str) -> None:
    photo.convert(mode).save(file, "PNG")
    assert difference(file, photo.convert(mode)) == 0


def test_cmyk_becomes_rgb(photo: Image.Image, file: Path) -> None:
    photo.convert("CMYK").save(file, "JPEG", quality=95)
    assert difference(file, photo) < 3


def test_of_sixteen_bits_the_upper_eight_count(photo: Image.Image, file: Path) -> None:
    grey = np.asarray(photo.convert("L"))
    Image.fromarray(grey.astype(np.uint16) << 8 | 0x80).save(file, "PNG")
    assert difference(file, Image.fromarray(grey)) == 0


@pytest.mark.parametrize(
    "shape", [(2 * SIZE, SIZE), (SIZE, 2 * SIZE), (SIZE // 4, SIZE // 8), (500, 250)], ids=str
)
def test_a_photo_is_fitted_into_the_middle_of_a_white_square(
    file: Path, shape: tuple[int, int]
) -> None:
    Image.new("RGB", shape, (10, 20, 30)).save(file, "PNG")
    square = decoded(file)
    if shape[0] < shape[1]:
        square = square.swapaxes(0, 1)
    quarter = SIZE // 4
    assert (square[quarter:-quarter] == (10, 20, 30)).all()
    assert (square[:quarter] == 255).all() and (square[-quarter:] == 255).all()


def test_a_large_jpeg_looks_as_if_it_had_been_decoded_at_full_size(
    photo_files: list[Path], file: Path
) -> None:
    with Image.open(photo_files[0]) as image:
        large = image.convert("RGB").resize((1200, 1600), Image.Resampling.LANCZOS)
    large.save(file, "JPEG", quality=90)
    plain = ImageOps.pad(large, (SIZE, SIZE), Image.Resampling.BILINEAR, color="white")
    assert difference(file, plain) < 2


# --- unreadable photos


def split_of(files: list[Path], labels: list[int] | None = None, limits: Limits = LIMITS) -> Split:
    paths, root = Paths(files), files[0].parent
    return Split(
        "train",
        paths,
        np.array(labels or [0] * len(files)),
        root,
        contents.read_contents(paths, root, root.parent / "cache", limits),
    )


@pytest.fixture
def copies(photo_files: list[Path], tmp_path: Path) -> list[Path]:
    """Nine photos in a folder of their own, to be changed."""
    (tmp_path / "data").mkdir()
    copies = [tmp_path / "data" / f"{i}.jpg" for i in range(9)]
    for copy, original in zip(copies, photo_files, strict=False):
        copy.write_bytes(original.read_bytes())
    return copies


def tiff(content: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(content)).save(buffer, "TIFF")
    return buffer.getvalue()


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "empty file"),
    "text": (lambda content: b"not a photo\n", "not one of JPEG, PNG, WEBP, BMP, GIF"),
    "tiff": (tiff, "not one of JPEG, PNG, WEBP, BMP, GIF"),
    "cut": (lambda content: content[: len(content) // 2], "truncated"),
}


@pytest.mark.parametrize(("damage", "why"), DAMAGE.values(), ids=list(DAMAGE))
def test_an_unreadable_photo_is_skipped_with_a_reason(
    copies: list[Path], tmp_path: Path, damage: Callable[[bytes], bytes], why: str
) -> None:
    copies[3].write_bytes(damage(copies[3].read_bytes()))
    for _ in range(2):  # decoded, and from the cache
        opened = PhotoCache(tmp_path / "cache", processes=2).open(
            split_of(copies, [0] * 5 + [1] * 4), SIZE
        )
        assert list(opened.skipped) == [copies[3]] and why in opened.skipped[copies[3]]
        assert opened.rows.tolist() == [0, 1, 2, 4, 5, 6, 7, 8] and len(opened) == 8
        assert opened.labels.tolist() == [0] * 4 + [1] * 4
        assert np.array_equal(
            opened.images[opened.rows], [decode(copies[i], SIZE) for i in opened.rows]
        )


def test_a_class_without_one_readable_photo_is_refused(copies: list[Path], tmp_path: Path) -> None:
    for broken in copies[7:]:
        broken.write_bytes(b"")
    with pytest.raises(
        BadInput, match=r"data: no readable photo in this class \(7\.jpg: empty file\)"
    ):
        PhotoCache(tmp_path / "cache", processes=2).open(split_of(copies, [0] * 7 + [1] * 2), SIZE)


# --- the cache


def caches(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("pixels/*/*") if path.name != "lock")


def test_the_cache_is_used_again(copies: list[Path], tmp_path: Path) -> None:
    first = PhotoCache(tmp_path / "cache", processes=2).open(split_of(copies), SIZE)
    written = (first.folder / "pixels.npy").stat()
    counts: list[int] = []
    again = PhotoCache(tmp_path / "cache", processes=2).open(
        split_of(copies), SIZE, on_progress=counts.append
    )
    assert again.folder == first.folder and (again.folder / "pixels.npy").stat() == written
    assert not counts


@pytest.mark.parametrize("processes", [1, 2, 20])
def test_every_photo_is_decoded_once_by_any_number_of_processes(
    copies: list[Path], tmp_path: Path, processes: int
) -> None:
    counts: list[int] = []
    opened = PhotoCache(tmp_path / "cache", processes=processes).open(
        split_of(copies), SIZE, on_progress=counts.append
    )
    assert sum(counts) == len(opened) == 9
    assert np.array_equal(opened.images[opened.rows], [decode(path, SIZE) for path in copies])


def test_photos_are_decoded_while_the_caller_does_something_else(
    copies: list[Path], tmp_path: Path, decoded_rows: "Synchronized[int]"
) -> None:
    job = PhotoCache(tmp_path / "cache", processes=2).start(split_of(copies), SIZE)
    wait_until(lambda: decoded_rows.value > 0)
    pixels = job.finish()
    assert np.array_equal(pixels.images[pixels.rows], [decode(path, SIZE) for path in copies])
    again = PhotoCache(tmp_path / "cache", processes=2).start(split_of(copies), SIZE)
    assert len(again.finish()) == 9 and decoded_rows.value == 9


def test_a_changed_photo_makes_a_new_cache_and_the_old_one_goes(
    copies: list[Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    before = PhotoCache(cache, processes=1).open(split_of(copies), SIZE)
    old = caches(cache)
    copies[0].write_bytes(copies[8].read_bytes())
    after = PhotoCache(cache, processes=1).open(split_of(copies), SIZE)
    assert np.array_equal(*after.images[np.array([0, 8])])
    assert len(caches(cache)) == 1 and caches(cache) != old and not before.folder.exists()


def test_other_splits_and_sizes_have_caches_of_their_own(
    copies: list[Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    opened = [
        PhotoCache(cache, processes=1).open(split, size)
        for split in (split_of(copies), replace(split_of(copies[:5]), name="val")) for size in (SIZE, 32)
    ]  # fmt: skip
    assert len({pixels.folder for pixels in opened}) == 4 and all(
        pixels.folder.exists() for pixels in opened
    )


def test_a_build_killed_half_way_counts_for_nothing_and_goes_on_from_what_was_noted(
    copies: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_writer, "SECONDS_BETWEEN_NOTES", 0.0)
    cache = tmp_path / "cache"
    copies[1].write_bytes(b"no photo")

    def die(count: int) -> None:
        if count == 4:  # the second chunk's; the first has five
            os.kill(os.getpid(), signal.SIGKILL)

    killed = ForkedCall(PhotoCache(cache, processes=1).open, split_of(copies), SIZE, ALL_ROWS, die)
    with pytest.raises(EOFError):
        killed.result()
    assert killed.process.exitcode == -signal.SIGKILL
    assert PhotoCache(cache).open_if_complete(split_of(copies), SIZE) is None
    counts: list[int] = []
    opened = PhotoCache(cache, processes=1).open(split_of(copies), SIZE, on_progress=counts.append)
    assert counts[0] == 5 and sum(counts) == 9 and list(opened.skipped) == [copies[1]]
    assert np.array_equal(
        opened.images[opened.rows], [decode(path, SIZE) for path in copies if path != copies[1]]
    )
    assert len(caches(cache)) == 1 and PhotoCache(cache).open_if_complete(split_of(copies), SIZE)


def test_a_part_is_decoded_without_the_rest_which_can_be_added_later(
    copies: list[Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    counts: list[int] = []
    part = PhotoCache(cache, processes=2).open(
        split_of(copies), SIZE, part=slice(1, None, 2), on_progress=counts.append
    )
    assert (
        part.rows.tolist() == [1, 3, 5, 7]
        and part.labels.tolist() == split_of(copies).labels[1::2].tolist()
        and sum(counts) == 4
    )
    assert np.array_equal(part.images[part.rows], [decode(path, SIZE) for path in copies[1::2]])
    assert (
        not part.images[np.array([0])].any()
        and PhotoCache(cache).open_if_complete(split_of(copies), SIZE) is None
    )
    counts.clear()
    whole = PhotoCache(cache, processes=2).open(split_of(copies), SIZE, on_progress=counts.append)
    assert counts[0] == 4 and sum(counts) == 9 and whole.folder == part.folder
    assert np.array_equal(whole.images[whole.rows], [decode(path, SIZE) for path in copies])


def test_of_two_processes_at_once_one_decodes_and_both_have_the_pixels(
    copies: list[Path], tmp_path: Path
) -> None:
    ready = FORK.Barrier(2)

    def open_together() -> tuple[UInt8Array, int]:
        counts: list[int] = []
        ready.wait()
        opened = PhotoCache(tmp_path / "cache", processes=2).open(
            split_of(copies), SIZE, on_progress=counts.append
        )
        return opened.images[opened.rows], sum(counts)

    both = [ForkedCall(open_together) for _ in range(2)]
    (first, one_decoded), (second, other_decoded) = (process.result() for process in both)
    assert np.array_equal(first, second) and len(first) == 9
    assert sorted([one_decoded, other_decoded]) == [0, 9]
    assert len(caches(tmp_path / "cache")) == 1


def test_the_cache_is_a_plain_npy_file(copies: list[Path], tmp_path: Path) -> None:
    opened = PhotoCache(tmp_path / "cache", processes=2).open(split_of(copies), SIZE)
    assert opened.images.shape == (9, SIZE, SIZE, 3)
    backwards = np.arange(8, -1, -1)
    assert np.array_equal(
        opened.images[backwards], np.load(opened.folder / "pixels.npy")[backwards]
    )
    assert opened.images[backwards[:0]].shape == (0, SIZE, SIZE, 3)


def test_a_row_that_is_not_there_is_no_photo(tmp_path: Path) -> None:
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


def test_decoding_maps_no_file_into_memory(
    copies: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(file: BinaryIO, size: int, *others: object, **more: object) -> UInt8Array:
        assert "pixels.npy" not in Path("/proc/self/maps").read_text()
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(decoding, "decode_verified", decode)
    assert not PhotoCache(tmp_path / "cache", processes=2).open(split_of(copies), SIZE).skipped


def test_a_full_disk_makes_no_photo_unreadable(
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
        PhotoCache(tmp_path / "cache", processes=1).open(split_of(copies), SIZE)
    assert not list((tmp_path / "cache").glob("pixels/*/*/skipped.json"))


# --- contents: what is not decoded again, and what is


@pytest.fixture
def decoded_rows(monkeypatch: pytest.MonkeyPatch) -> "Synchronized[int]":
    """How many photos have been decoded, by any process."""
    count, decode_verified = FORK.Value("i"), decoding.decode_verified

    def counted(*arguments: Any, **more: Any) -> UInt8Array:
        with count.get_lock():
            count.value += 1
        return decode_verified(*arguments, **more)

    monkeypatch.setattr(decoding, "decode_verified", counted)
    return count


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


def require_pixels_of(copies: list[Path], cache: Path) -> Pixels:
    """That what is opened are the photos' own pixels and hashes."""
    opened = PhotoCache(cache, processes=1).open(split_of(copies), SIZE)
    assert np.array_equal(opened.images[opened.rows], [decode(path, SIZE) for path in copies])
    assert [bytes(row) for row in opened.hashes] == [
        hashlib.blake2b(path.read_bytes(), digest_size=16).digest() for path in copies
    ]
    return opened


def test_photos_of_equal_size_and_time_that_are_exchanged_are_not_taken_for_each_other(
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
    require_pixels_of(files, tmp_path / "cache")
    folders[0].rename(tmp_path / "data" / "c")
    folders[1].rename(folders[0])
    (tmp_path / "data" / "c").rename(folders[1])
    require_pixels_of(files, tmp_path / "cache")
    assert hashed.value == 16


def test_a_photo_that_is_written_over_with_its_size_and_time_is_hashed_again(
    copies: list[Path], tmp_path: Path, hashed: "Synchronized[int]"
) -> None:
    with Image.open(copies[0]) as image:
        image.convert("RGB").resize((SIZE, SIZE)).save(copies[0], "BMP")
    status, content = copies[0].stat(), copies[0].read_bytes()
    require_pixels_of(copies, tmp_path / "cache")
    assert hashed.value == 9
    copies[0].write_bytes(content[:1000] + content[1000:][::-1])
    os.utime(copies[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    require_pixels_of(copies, tmp_path / "cache")
    assert hashed.value == 10


def test_a_chown_a_touch_a_copy_and_a_move_decode_nothing_again(
    copies: list[Path],
    tmp_path: Path,
    decoded_rows: "Synchronized[int]",
    hashed: "Synchronized[int]",
) -> None:
    cache = tmp_path / "cache"
    require_pixels_of(copies, cache)
    assert (hashed.value, decoded_rows.value) == (9, 9)
    require_pixels_of(copies, cache)
    assert hashed.value == 9, "nothing has changed"
    copies[0].touch()
    copies[1].chmod(0o600)
    shutil.copy(copies[2], tmp_path / "other")
    (tmp_path / "other").rename(copies[2])
    require_pixels_of(copies, cache)
    assert hashed.value == 9 + 3
    moved = [copy.parent.rename(tmp_path / "elsewhere") / copy.name for copy in copies[:1]]
    moved += [moved[0].with_name(copy.name) for copy in copies[1:]]
    require_pixels_of(moved, cache)
    shutil.copytree(moved[0].parent, tmp_path / "copied")
    require_pixels_of([tmp_path / "copied" / file.name for file in moved], cache)
    for index in cache.glob("contents-*"):
        index.unlink()
    require_pixels_of(moved, cache)
    assert decoded_rows.value == 9


def test_of_photos_that_are_added_renamed_or_removed_only_new_ones_are_decoded(
    copies: list[Path], tmp_path: Path, decoded_rows: "Synchronized[int]"
) -> None:
    cache = tmp_path / "cache"
    copies[4].write_bytes(b"no photo")
    before = PhotoCache(cache, processes=1).open(split_of(copies[:8]), SIZE)
    assert decoded_rows.value == 8
    renamed = [*copies[2:], copies[0].rename(copies[0].with_name("z.jpg"))]
    after = PhotoCache(cache, processes=1).open(split_of(renamed), SIZE)
    assert decoded_rows.value == 9 and list(after.skipped) == list(before.skipped) == [copies[4]]
    assert np.array_equal(
        after.images[after.rows], [decode(path, SIZE) for path in renamed if path != copies[4]]
    )
    assert np.array_equal(
        after.signatures,
        [near_duplicates.compute_signature(image) for image in after.images[after.rows]],
    )


def test_a_file_that_has_just_changed_is_not_trusted_to_stay_as_it_is(
    copies: list[Path], tmp_path: Path
) -> None:
    """A clock's tick may hold two changes; a clock that was set back, very many."""
    PhotoCache(tmp_path / "cache", processes=1).open(split_of(copies), SIZE)
    assert all(len(np.load(index)) == 0 for index in (tmp_path / "cache").glob("contents-*.npy"))


def test_a_damaged_index_is_said_and_made_anew(
    copies: list[Path],
    tmp_path: Path,
    hashed: "Synchronized[int]",
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = tmp_path / "cache"
    require_pixels_of(copies, cache)
    [index] = cache.glob("contents-*.npy")
    whole = index.read_bytes()
    for content in (b"", whole[:100], whole[:-1], b"text", bytes(len(whole))):
        index.write_bytes(content)
        require_pixels_of(copies, cache)
        assert (
            capsys.readouterr().err == f"Warning: {index} is damaged; the photos are read again\n"
        )
        assert index.read_bytes() == whole


def test_what_changes_between_hashing_and_decoding_is_skipped_this_time_only(
    copies: list[Path], tmp_path: Path
) -> None:
    split = split_of(copies)
    copies[3].write_bytes(copies[4].read_bytes())
    opened = PhotoCache(tmp_path / "cache", processes=1).open(split, SIZE)
    assert opened.skipped == {
        copies[3]: "changed while the photos were read; it is read again the next time"
    }
    assert PhotoCache(tmp_path / "cache").open_if_complete(split, SIZE) is None
    require_pixels_of(copies, tmp_path / "cache")


# --- what the system is to blame for


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


def test_a_photo_for_which_memory_was_short_is_tried_again_the_next_time(
    copies: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "decode_verified", NoMemory(copies[5], tmp_path / "short"))
    copies[1].write_bytes(b"no photo")
    for _ in range(2):
        opened = PhotoCache(tmp_path / "cache", processes=1).open(split_of(copies), SIZE)
        assert {path.name: why for path, why in opened.skipped.items()} == {
            "1.jpg": "not one of JPEG, PNG, WEBP, BMP, GIF", "5.jpg": "needs too much memory to decode",
        }  # fmt: skip
    (tmp_path / "short").unlink()
    counts: list[int] = []
    opened = PhotoCache(tmp_path / "cache", processes=1).open(
        split_of(copies), SIZE, on_progress=counts.append
    )
    assert list(opened.skipped) == [copies[1]] and counts == [8, 1], "and only that one"
    assert np.array_equal(
        opened.images[opened.rows], [decode(path, SIZE) for path in copies if path != copies[1]]
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody who may not read")
def test_a_photo_that_may_not_be_read_is_read_once_its_owner_has_changed(
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
        opened = PhotoCache(cache, processes=1).open(split_of(copies), SIZE)
        assert opened.skipped == {private: "Permission denied"} and decoded_rows.value == 8
        os.seteuid(0)
        os.chown(private, 65534, -1)
        os.seteuid(65534)
        require_pixels_of(copies, cache)
        assert decoded_rows.value == 9
    finally:
        os.seteuid(0)
        for place, mode in modes.items():
            place.chmod(mode)


@pytest.mark.parametrize(("error", "passing"), [
    (PermissionError(errno.EACCES, "Permission denied"), True), (OSError(errno.EIO, "Input/output error"), True), (MemoryError(), True),
    (OSError("out of memory error when reading image file"), True), (OSError("image file is truncated"), False), (ValueError("bad"), False),
    (UnidentifiedImageError("cannot identify image file"), False), (decoding.RejectedPhoto("empty file"), False),
], ids=repr)  # fmt: skip
def test_the_system_is_told_from_the_photo(error: Exception, passing: bool) -> None:
    assert decoding.is_transient(error) is passing


# --- a cache that is damaged, or gone


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
def test_a_damaged_cache_is_said_and_decoded_again(
    copies: list[Path],
    tmp_path: Path,
    name: str,
    damage: bytes | int | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = tmp_path / "cache"
    folder = require_pixels_of(copies, cache).folder
    file = folder / name
    if damage is None:
        file.unlink()
    elif isinstance(damage, bytes):
        file.write_bytes(damage)
    else:
        os.truncate(file, damage % file.stat().st_size)
    assert (
        PhotoCache(cache).open_if_complete(split_of(copies), SIZE) is None
        and capsys.readouterr().err == ""
    )
    assert require_pixels_of(copies, cache).folder == folder
    said = capsys.readouterr().err
    assert (
        said.startswith(f"Warning: the cache {folder} is damaged (")
        and said.endswith("); its photos are decoded again\n")
        and said.count("\n") == 1
    )
    assert require_pixels_of(copies, cache) and capsys.readouterr().err == ""


def test_a_count_of_leaks_that_is_damaged_is_counted_again(
    copies: list[Path], tmp_path: Path
) -> None:
    opened = PhotoCache(tmp_path / "cache", processes=1).open(split_of(copies), SIZE)
    assert leakage.count_leaked(opened, opened) == 9
    [known] = opened.folder.glob("leaked-*.json")
    known.write_bytes(b"")
    assert leakage.count_leaked(opened, opened) == 9 and known.read_text() == "9"


def test_pixels_can_be_read_whatever_becomes_of_the_cache_also_by_processes_that_are_forked_later(
    copies: list[Path], tmp_path: Path
) -> None:
    opened = require_pixels_of(copies, tmp_path / "cache")
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


@pytest.mark.parametrize("size", [(1000, 4), (4, 1000)])
def test_a_strip_keeps_at_least_one_row_of_pixels(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "black").save(tmp_path / "strip.png")
    assert (decode(tmp_path / "strip.png", 64) < 128).any()
