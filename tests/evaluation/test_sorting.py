"""Sorted photos: whole copies under safe names; nothing is overwritten, deleted or linked."""

import fcntl
import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hogwear.data.decoding import LIMITS, hash_content
from hogwear.evaluation import sorting
from hogwear.evaluation.prediction import Photo, Prediction
from hogwear.evaluation.sorting import Sorter, name_folders, to_safe_name
from hogwear.system.errors import BadInput

CLASSES = ("boots", "hats")
PIXELS = np.zeros((8, 8, 3), np.uint8)
Sort = Callable[..., Prediction]


@pytest.fixture
def inbox(tmp_path: Path, photo_files: list[Path]) -> Path:
    """Five different photos, 0.jpg to 4.jpg."""
    (folder := tmp_path / "inbox").mkdir()
    for i, photo in enumerate(photo_files[:5]):
        (folder / f"{i}.jpg").write_bytes(photo.read_bytes())
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "responses" / "sorted"


def predicted(
    file: Path, name: str = "boots", unsure: bool = False, unknown: bool | None = None
) -> Prediction:
    photo = Photo(file, None, PIXELS, content_hash=hash_content(file.read_bytes()))
    probabilities = {other: float(other == name) for other in CLASSES}
    return Prediction(photo, probabilities, unsure, unknown)


def sorter(folder: Path, inbox: Path) -> Sorter:
    return Sorter(folder, CLASSES, LIMITS, [inbox])


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_each_photo_is_copied_to_the_folder_of_its_class_or_of_its_doubt(
    inbox: Path, folder: Path
) -> None:
    (inbox / "link.jpg").symlink_to("3.jpg")
    for_classes = {"0.jpg": "boots", "1.jpg": "hats", "link.jpg": "hats"}
    this = sorter(folder, inbox)
    places = [this.sort(predicted(inbox / file, name)) for file, name in for_classes.items()]
    places.append(this.sort(predicted(inbox / "2.jpg", "boots", unsure=True)))
    places.append(this.sort(predicted(inbox / "3.jpg", "boots", unsure=True, unknown=True)))
    assert [place.sorted_to for place in places] == [
        "sorted/boots/0.jpg", "sorted/hats/1.jpg", "sorted/hats/link.jpg", "sorted/unsure/2.jpg",
        "sorted/unknown/3.jpg",
    ]  # fmt: skip
    for place in places:
        copy = folder.parent / str(place.sorted_to)
        assert copy.read_bytes() == place.photo.file.read_bytes()
        status, source = copy.lstat(), place.photo.file.stat()
        assert (status.st_nlink, status.st_mode & 0o777) == (1, 0o644) and copy.is_file()
        assert status.st_ino != source.st_ino and not copy.is_symlink()
    assert this.summary() == f"Sorted: 5 photos copied to {folder}."
    assert {path.name for path in folder.iterdir()} == {"boots", "hats", "unsure", "unknown"}


def test_photos_of_one_name_get_different_names_and_runs_can_be_repeated(
    inbox: Path, folder: Path
) -> None:
    files = [inbox / name / "shoe.jpg" for name in ("a", "b", "c", "copy of a")]
    for i, file in enumerate(files):
        file.parent.mkdir()
        file.write_bytes((inbox / f"{i % 3}.jpg").read_bytes())
    this = sorter(folder, inbox)
    first = [this.sort(predicted(file)).sorted_to for file in files]
    hashes = [hash_content(file.read_bytes()).hex()[:8] for file in files]
    assert first == [
        "sorted/boots/shoe.jpg",
        f"sorted/boots/shoe_{hashes[1]}.jpg",
        f"sorted/boots/shoe_{hashes[2]}.jpg",
        "sorted/boots/shoe.jpg",
    ]
    assert (this.copied, this.already_there) == (3, 1)
    before = contents(folder)
    again = sorter(folder, inbox)
    assert [again.sort(predicted(file)).sorted_to for file in reversed(files)] == first[::-1]
    assert contents(folder) == before
    assert again.summary() == f"Sorted: 0 photos copied to {folder}, 4 there already."


def test_a_photo_that_was_moved_by_hand_stays_there(inbox: Path, folder: Path) -> None:
    sorter(folder, inbox).sort(predicted(inbox / "0.jpg", "boots", unsure=True))
    (folder / "hats").mkdir()
    (folder / "unsure" / "0.jpg").rename(folder / "hats" / "0.jpg")
    assert sorter(folder, inbox).sort(predicted(inbox / "0.jpg")).sorted_to == "sorted/hats/0.jpg"
    assert list(contents(folder)) == ["hats/0.jpg"]


def test_files_of_the_user_are_neither_overwritten_nor_followed(
    inbox: Path, folder: Path, tmp_path: Path
) -> None:
    hashed = [f"_{hash_content((inbox / f'{i}.jpg').read_bytes()).hex()[:8]}.jpg" for i in range(4)]
    (folder / "boots").mkdir(parents=True)
    (folder / "boots" / "0.jpg").write_bytes(b"mine")
    (folder / "boots" / f"0{hashed[0]}").write_bytes(b"mine, too")
    (folder / "boots" / "1.jpg").symlink_to(inbox / "1.jpg")
    (folder / "boots" / "2.jpg").symlink_to(tmp_path / "nowhere")
    (folder / "boots" / "3.jpg").mkdir()
    this = sorter(folder, inbox)
    assert [this.sort(predicted(inbox / f"{i}.jpg")).sorted_to for i in range(4)] == [
        f"sorted/boots/0{hashed[0].removesuffix('.jpg')}_2.jpg",
        *(f"sorted/boots/{i}{hashed[i]}" for i in (1, 2, 3)),
    ]
    assert (folder / "boots" / "0.jpg").read_bytes() == b"mine"
    assert (folder / "boots" / f"0{hashed[0]}").read_bytes() == b"mine, too"
    assert not (tmp_path / "nowhere").exists() and (folder / "boots" / "1.jpg").is_symlink()


@pytest.mark.parametrize("place", ["sorted", "sorted/hats", "sorted/unsure"])
@pytest.mark.parametrize("what", ["a link", "a file"])
def test_a_folder_that_is_none_is_refused_before_anything_is_copied(
    place: str, what: str, inbox: Path, folder: Path, tmp_path: Path
) -> None:
    path = folder.parent / place
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path) if what == "a link" else path.touch()
    with pytest.raises(BadInput, match=f"^{path}: not a folder; move it away, or choose another "):
        sorter(folder, inbox)


def test_a_photo_that_changes_or_goes_is_named_with_the_reason(inbox: Path, folder: Path) -> None:
    predictions = [predicted(inbox / f"{i}.jpg") for i in range(4)]
    predictions.append(Prediction(Photo(inbox / "5.jpg", None, None, error="empty file"), {}))
    (inbox / "0.jpg").unlink()
    (inbox / "1.jpg").write_bytes(b"another photo")
    (inbox / "2.jpg").unlink()
    (inbox / "2.jpg").symlink_to("/etc/passwd")
    this = sorter(folder, inbox)
    results = [this.sort(prediction) for prediction in predictions]
    assert [(result.photo.error or "")[:32] for result in results] == [
        "No such file or directory", "changed while the photos were re",
        "a link that leads out of the fol", "", "empty file",
    ]  # fmt: skip
    assert [result.sorted_to for result in results] == [None] * 3 + ["sorted/boots/3.jpg", None]
    assert all(not result.probabilities for result in results if result.photo.error)
    assert results[0].line().startswith("not readable")
    assert list(contents(folder)) == ["boots/3.jpg"]
    assert this.summary() == f"Sorted: 1 photo copied to {folder}, 4 not readable."


# --- file systems


def test_a_full_disk_leaves_no_half_copy_and_names_the_file(inbox: Path, folder: Path) -> None:
    this, limit = sorter(folder, inbox), resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (inbox / "1.jpg").stat().st_size
    (inbox / "0.jpg").write_bytes(b"small")
    this.sort(predicted(inbox / "0.jpg"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            this.sort(predicted(inbox / "1.jpg"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert error.value.filename == str(folder / "boots" / "1.jpg")
    assert list(contents(folder)) == ["boots/0.jpg"]


def test_what_a_killed_run_was_copying_is_removed(inbox: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / f"{sorting.UNFINISHED}x").write_bytes(b"half a ph")
    sorter(folder, inbox)
    assert not contents(folder)


def test_blocks_are_shared_where_the_file_system_can(
    inbox: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few file systems can, so one that can is simulated."""
    clones = []

    def clone(copy: int, request: int, source: int) -> int:
        assert request == 0x40049409 and os.fstat(copy).st_size == 0
        clones.append(os.fstat(source).st_ino)
        os.pwrite(copy, os.pread(source, 10_000_000, 0), 0)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", clone)
    place = sorter(folder, inbox).sort(predicted(inbox / "0.jpg")).sorted_to
    assert clones == [(inbox / "0.jpg").stat().st_ino]
    assert (folder.parent / str(place)).read_bytes() == (inbox / "0.jpg").read_bytes()


def test_a_file_system_without_hard_links_is_enough(
    inbox: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: object) -> None:
        raise PermissionError("no links on exFAT")

    monkeypatch.setattr(os, "link", refuse)
    (folder / "boots").mkdir(parents=True)
    (folder / "boots" / "0.jpg").write_bytes(b"mine")
    this = sorter(folder, inbox)
    places = [this.sort(predicted(inbox / f"{i}.jpg")).sorted_to for i in range(2)]
    assert places[1] == "sorted/boots/1.jpg" and places[0] != "sorted/boots/0.jpg"
    found = contents(folder)
    assert len(found) == 3 and found["boots/0.jpg"] == b"mine"


# --- names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("boots", "boots"),
        ("high heels, size 39", "high heels, size 39"),
        ("Stiefel für Mädchen 写真", "Stiefel für Mädchen 写真"),
        ("a/b\\c", "a_b_c"),
        ("../../etc", "_._.._etc"),
        (".", "_"),
        ("..", "__"),
        (".hidden", "_hidden"),
        ('<:"|?*>', "_______"),
        ("\x1b[31mred\n", "_x1b[31mred_n"),
        ("\u202egpj", "_u202egpj"),
        ("\udcff", "_udcff"),
        ("ends with dots...", "ends with dots_"),
        ("..", "__"),
        ("CON", "_CON"),
        ("com1.boots", "_com1.boots"),
        ("console", "console"),
        ("写" * 100, "写" * 60),
    ],
)
def test_names_are_safe_on_all_common_file_systems(text: str, name: str, tmp_path: Path) -> None:
    assert to_safe_name(text, 180) == name
    (tmp_path / name).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_classes_have_different_folders_even_where_case_is_ignored() -> None:
    names = [
        "Boots",
        "boots",
        "a/b",
        "a\\b",
        "unsure",
        "Unknown",
        "x" * 200,
        "x" * 201,
        "u\u0308",
        "ü",
    ]
    folders = name_folders(names)
    assert list(folders) == names
    assert list(folders.values()) == [
        "Boots", "boots_2", "a_b", "a_b_2", "unsure_2", "Unknown_2", "x" * 180, f"{'x' * 180}_2", "u\u0308", "ü_2",
    ]  # fmt: skip


def test_the_longest_and_strangest_names_of_photos_can_be_copied(inbox: Path, folder: Path) -> None:
    names: list[str | bytes] = [
        "写" * 83 + ".jpg",
        ".jpg",
        "CON.jpg",
        b"\xff\x1b.jpg",
        "a." + "b" * 240,
        "no suffix ",
    ]
    this = sorter(folder, inbox)
    copies = []
    for i, name in enumerate(names):
        file = inbox / os.fsdecode(name)
        file.write_bytes(b"%d" % i)
        copies.append(this.sort(predicted(file)).sorted_to)
    assert copies[1:4] == [
        "sorted/boots/_jpg",
        "sorted/boots/_CON.jpg",
        r"sorted/boots/_udcff_x1b.jpg",
    ]
    assert sorted(contents(folder).values()) == [b"%d" % i for i in range(6)]
    assert all(str(copy).isprintable() for copy in copies)
