"""The features of photos in the cache: computed once, whatever ends, damages or shares the file."""

import io
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import SIZE, ForkedCall, damage_file, decode_some, pixels_of

from hogwear.data import feature_file
from hogwear.data.feature_file import FeatureFile
from hogwear.data.pixels import Pixels
from hogwear.system.arrays import Float16Array, FloatArray, Int64Array
from hogwear.system.workers import FORK, Workers

PHOTOS = 20
NAME = "features-abc"
FILES = [f"{NAME}-done.npy", f"{NAME}.npy", "features.lock"]


@pytest.fixture
def photos(photo_files: list[Path], tmp_path: Path) -> Pixels:
    """20 real photos in a cache, but for two of them, which could not be read."""
    images = decode_some(photo_files, PHOTOS + 2, SIZE)
    pixels = replace(pixels_of(images, np.arange(PHOTOS + 2) % 5), folder=tmp_path / "cache")
    pixels.folder.mkdir()
    return pixels.where(~np.isin(np.arange(PHOTOS + 2), [3, 21]))


def mean_colours(photos: Pixels, index: Int64Array) -> FloatArray:
    """(k, 3)"""
    return photos.images[photos.rows[index]].mean((1, 2))


def expected_rows(photos: Pixels) -> Float16Array:
    return mean_colours(photos, np.arange(PHOTOS)).astype(np.float16)


def compute(file: FeatureFile, photos: Pixels, until: int = PHOTOS) -> int:
    """Compute what is missing in two workers, at most `until`. How many rows that were."""

    def write(place: int) -> None:
        index = np.array([place])
        file.write(index, mean_colours(photos, index))

    missing = file.missing.tolist()[:until]
    with Workers(2, lambda rank: {"write": write}) as workers:
        for place, _ in workers.run("write", missing):
            file.note(np.array([place]))
    return len(missing)


def complete(photos: Pixels, name: str | None = NAME) -> tuple[int, Float16Array]:
    """In a process of its own: complete the file. Returns how many rows that took, and all."""

    def run() -> tuple[int, Float16Array]:
        file = FeatureFile(photos, name, (3,))
        computed = compute(file, photos)
        file.save_progress()
        assert not len(file.missing)
        return computed, file[np.arange(PHOTOS)]

    computed, rows = ForkedCall(run).result()
    return computed, rows


def names(photos: Pixels) -> list[str]:
    return sorted(path.name for path in photos.folder.iterdir())


def test_rows_are_computed_once_and_kept_across_processes(photos: Pixels) -> None:
    for expected in (PHOTOS, 0, 0):
        computed, rows = complete(photos)
        assert computed == expected
        assert rows.dtype == np.float16 and np.array_equal(rows, expected_rows(photos))
    assert names(photos) == FILES
    assert np.load(photos.folder / f"{NAME}-done.npy").sum() == PHOTOS, "others have no row"


def test_photos_that_others_have_computed_are_not_computed_again(photos: Pixels) -> None:
    assert complete_part(photos, slice(0, 7)) == 7
    assert complete_part(photos, slice(5, 12)) == 5
    computed, rows = complete(photos)
    assert computed == PHOTOS - 12 and np.array_equal(rows, expected_rows(photos))


def complete_part(photos: Pixels, part: slice) -> int:
    """How many rows it took to complete those of some photos."""
    some = photos.where(np.isin(np.arange(PHOTOS), np.arange(PHOTOS)[part]))

    def run() -> int:
        file = FeatureFile(some, NAME, (3,))
        computed = compute(file, some)
        file.save_progress()
        return computed

    computed: int = ForkedCall(run).result()
    return computed


@pytest.mark.parametrize(("seconds", "left"), [(0.0, PHOTOS - 8), (1e6, PHOTOS)])
def test_an_interrupted_write_goes_on_from_the_last_note(
    seconds: float, left: int, photos: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_file, "SECONDS_BETWEEN_NOTES", seconds)

    def run() -> None:
        compute(FeatureFile(photos, NAME, (3,)), photos, until=8)
        os.kill(os.getpid(), signal.SIGKILL)

    killed = ForkedCall(run)
    with pytest.raises(EOFError):
        killed.result()
    assert killed.process.exitcode == -signal.SIGKILL
    computed, rows = complete(photos)
    assert computed == left and np.array_equal(rows, expected_rows(photos))


def test_another_network_takes_the_place_of_the_one_before(photos: Pixels) -> None:
    complete(photos, "trunk-1")
    complete(photos)
    computed, rows = complete(photos, "features-2")
    assert computed == PHOTOS and np.array_equal(rows, expected_rows(photos))
    assert names(photos) == [
        "features-2-done.npy", "features-2.npy", "features.lock", "trunk-1-done.npy", "trunk-1.npy",
    ]  # fmt: skip
    assert complete(photos, "trunk-1")[0] == 0


def test_a_second_process_gets_a_file_of_its_own(photos: Pixels) -> None:
    opened, may_end = FORK.Event(), FORK.Event()

    def hold() -> int:
        file = FeatureFile(photos, NAME, (3,))
        compute(file, photos, until=8)
        opened.set()
        assert may_end.wait(60)
        return compute(file, photos)

    first = ForkedCall(hold)
    assert opened.wait(60)
    assert names(photos) == FILES[1:], "that of the first one; nothing is noted yet"
    computed, rows = complete(photos)
    assert computed == PHOTOS and np.array_equal(rows, expected_rows(photos))
    assert names(photos) == FILES[1:], "the other one is gone"
    may_end.set()
    assert first.result() == PHOTOS - 8


def test_a_process_may_open_several_files_and_holds_the_folder_until_it_ends(
    photos: Pixels,
) -> None:
    def in_another_process() -> int:
        feature_file.LOCKS.clear()  # which a fork inherits, unlike the lock
        return complete(photos, "trunk-1")[0]

    def open_several() -> list[int]:
        for name in ("trunk-1", NAME, None):
            FeatureFile(photos, name, (3,))
        return [ForkedCall(in_another_process).result() for _ in range(2)]

    assert ForkedCall(open_several).result() == [PHOTOS, PHOTOS]
    assert in_another_process() == PHOTOS, "those were temporary files"
    assert ForkedCall(in_another_process).result() == 0


def test_without_a_name_nothing_is_left(photos: Pixels) -> None:
    for _ in range(2):
        computed, rows = complete(photos, None)
        assert computed == PHOTOS and np.array_equal(rows, expected_rows(photos))
    assert names(photos) == []


def test_a_folder_that_cannot_be_written_is_left_alone(photos: Pixels) -> None:
    photos.folder.chmod(0o555)

    def as_nobody() -> tuple[int, Float16Array]:
        if os.getuid() == 0:
            os.setuid(65534)
        return complete(photos)

    computed, rows = ForkedCall(as_nobody).result()
    assert computed == PHOTOS and np.array_equal(rows, expected_rows(photos))
    assert names(photos) == []


def npy(*shape: int, dtype: type = np.float16) -> bytes:
    np.save(content := io.BytesIO(), np.ones(shape, dtype))
    return content.getvalue()


DAMAGE: dict[str, tuple[str, bytes | int | None]] = {  # a file: its content, its length, or None where it is gone
    "no rows": (f"{NAME}.npy", None), "no bytes": (f"{NAME}.npy", b""), "rows cut": (f"{NAME}.npy", -1),
    "rows cut in the header": (f"{NAME}.npy", 50), "text": (f"{NAME}.npy", b"text"),
    "rows of another shape": (f"{NAME}.npy", npy(22, 4)), "too few rows": (f"{NAME}.npy", npy(21, 3)),
    "rows of another dtype": (f"{NAME}.npy", npy(22, 3, dtype=np.float32)),
    "no note": (f"{NAME}-done.npy", None), "an empty note": (f"{NAME}-done.npy", b""), "a note cut": (f"{NAME}-done.npy", -1),
    "a short note": (f"{NAME}-done.npy", npy(21, dtype=np.bool_)), "a note of numbers": (f"{NAME}-done.npy", npy(22)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "damage"), DAMAGE.values(), ids=list(DAMAGE))
def test_rows_of_a_damaged_file_are_computed_again(
    name: str, damage: bytes | int | None, photos: Pixels
) -> None:
    complete(photos)
    damage_file(photos.folder / name, damage)
    computed, rows = complete(photos)
    assert computed == PHOTOS and np.array_equal(rows, expected_rows(photos))
    assert complete(photos)[0] == 0


def fail_when_files_may_not_grow(function: Callable[[], object], size: int) -> str:
    """Call it in a process that may not write beyond `size`: the name that the OSError has."""

    def run() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            function()
        except OSError as error:
            return str(error.filename)
        return "nothing was raised"

    name: str = ForkedCall(run).result()
    return name


def test_a_full_disk_is_an_error_that_names_the_file(photos: Pixels) -> None:
    path = str(photos.folder / f"{NAME}.npy")
    assert fail_when_files_may_not_grow(lambda: FeatureFile(photos, NAME, (3,)), 128) == path
    complete(photos)
    np.save(photos.folder / f"{NAME}-done.npy", np.zeros(PHOTOS + 2, bool))

    def go_on() -> None:
        compute(FeatureFile(photos, NAME, (3,)), photos)

    assert fail_when_files_may_not_grow(go_on, 128 + 60) == path
