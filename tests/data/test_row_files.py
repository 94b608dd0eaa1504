"""The files that rows name: found in several spellings, and never outside the folder."""

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from table_files import FEW, labels_of, listed, make_images, of_two, write

from hogwear.data import dataset, tables
from hogwear.data.tables import Columns


@pytest.fixture
def folder(tmp_path: Path, photo_files: list[Path]) -> Path:
    return make_images(tmp_path / "data", photo_files)


ROWS = of_two([str(i) for i in range(8)])


def test_names_of_any_bytes_are_found(folder: Path, cache: Path) -> None:
    names = [
        os.fsdecode(name)
        for name in (b"\xff.jpg", "zażółć.jpg".encode(), b"a\x1b[31m.jpg", b"-rf", b"$x", b"%s")
    ]
    for name in names:
        (folder / name).touch()
    write(folder, "image,label", *of_two(names))
    assert set(labels_of(dataset.find_photos(folder, cache, FEW))) == set(names)


@pytest.mark.parametrize("value", [r"images\{}.JPG", r".\images\{}.jpg", "{}.Jpg", "images/{}.JPG"])
def test_windows_paths_are_found(value: str, folder: Path, cache: Path) -> None:
    write(folder, "image,label", *of_two([value.format(i) for i in range(8)]))
    assert labels_of(dataset.find_photos(folder, cache, FEW)) == {
        f"images/{i}.jpg": ("boots", "hats")[i >= 4] for i in range(8)
    }


def test_a_name_without_a_suffix_finds_a_file_with_one_in_capitals(
    folder: Path, cache: Path
) -> None:
    for i in range(8):
        (folder / "images" / f"{i}.jpg").rename(folder / "images" / f"{i}.JPG")
    write(folder, "id,label", *of_two([str(i) for i in range(8)]))
    assert set(labels_of(dataset.find_photos(folder, cache, FEW))) == {
        f"images/{i}.JPG" for i in range(8)
    }


def test_an_exact_path_is_preferred(folder: Path, cache: Path) -> None:
    names = [*(f"{i}.JPG" for i in range(4)), r"images\0.jpg", r"a\b.jpg", "c.jpg", "C.jpg"]
    for i, name in enumerate(names):
        shutil.copy(folder / "images" / f"{i}.jpg", folder / name)
    write(folder, "image,label", *of_two(names))
    assert set(labels_of(dataset.find_photos(folder, cache, FEW))) == set(names)


def test_a_path_that_matches_several_files_is_left_out_and_named(folder: Path, cache: Path) -> None:
    for name in ("19.JPG", "19.Jpg"):
        shutil.copy(folder / "images" / "0.jpg", folder / "images" / name)
    (folder / "images" / "19.jpg").unlink()
    photos = dataset.find_photos(
        write(folder, "image,label", *of_two([str(i) for i in range(8)]), "19.jpg,hats"), cache, FEW
    )
    assert photos.notes[0].endswith(
        "left out: 1 whose image has several spellings on the disk (line 10: 19.jpg)."
    )


@pytest.mark.parametrize(
    "value",
    [r"..\outside.jpg", r"images\..\..\outside.jpg", r"\outside.jpg", r"..\data\images\0.jpg"],
)
def test_backslashes_do_not_lead_out_of_the_folder_either(
    value: str, folder: Path, cache: Path
) -> None:
    shutil.copy(folder / "images" / "0.jpg", folder.parent / "outside.jpg")
    photos = dataset.find_photos(
        write(folder, "image,label", *of_two([str(i) for i in range(8)]), f"{value},hats"),
        cache,
        FEW,
    )
    assert photos.notes[0].endswith(
        f"left out: 1 with a path out of the folder (line 10: {value})."
    )


OUT = [
    "../outside.jpg",
    "/etc/passwd",
    "images/../../outside.jpg",
    "..",
    "../data/images/1.jpg",
    "away/outside.jpg",
    "{folder}/images/1.jpg",
]


def test_paths_that_lead_out_of_the_folder_are_never_followed(folder: Path, cache: Path) -> None:
    shutil.copy(folder / "images" / "0.jpg", folder.parent / "outside.jpg")
    (folder / "away").symlink_to("..")
    (folder / "photos").symlink_to("images")
    rows = [
        *of_two([f"photos/{i}.jpg" for i in range(8)]),
        *(f"{path.format(folder=folder)},hats" for path in OUT),
    ]
    photos = dataset.find_photos(
        write(folder, "image,label", *rows), cache, Columns(label="label", min_count=3)
    )
    assert set(listed(photos)) == {f"photos/{i}.jpg" for i in range(8)}
    assert photos.notes[0].endswith(
        "8 photos of 15 rows; left out: 7 with a path out of the folder (line 10: ../outside.jpg)."
    )


def test_more_rows_cause_no_more_file_system_calls(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Counter[str]()

    def count(name: str) -> None:
        ask = getattr(os, name)

        def counting(path: Any, *arguments: Any, **options: Any) -> Any:
            asked[name] += 1
            return ask(path, *arguments, **options)

        monkeypatch.setattr(os, name, counting)

    def questions(*rows: str) -> Counter[str]:
        file = write(folder, "id,label", *ROWS, *rows) / "table.csv"
        asked.clear()
        assert (
            tables.read_table(file, FEW)
            .notes[0]
            .startswith(f"{file}: 8 photos of {8 + len(rows)} rows")
        )
        return Counter(asked)

    for name in ("stat", "lstat", "scandir"):
        count(name)
    few = questions("100,hats", "a/b,hats")
    assert few["scandir"] == 2, "of the folder itself and of images/"
    assert questions(*(f"{i},hats" for i in range(100, 1100)), *["a/b,hats"] * 100) == few
    assert questions("100,hats", "a/b,hats", *["a/" * 2100 + "b,hats", ",hats"] * 10) == few, (
        "no file has a path so long"
    )
    deep = "/".join("abcdefgh" * 200)
    assert questions("100,hats", f"{deep}/b,hats") == few, (
        "a folder that is not there is one question, however deep it would be"
    )
