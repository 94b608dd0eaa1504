"""data/corrections.csv: which photos it relabels or leaves out, and what it is refused for."""

import shutil
from pathlib import Path

import pytest
from helpers import CLASSES
from table_files import FEW, KAGGLE, labels_of, listed, make_images, needs_kaggle, refused, write

from hogwear.data import dataset
from hogwear.data.photos import Photos
from hogwear.data.split_assignments import SplitAssignments
from hogwear.data.splitting import Splitter


def correct(folder: Path, *rows: str, header: str = "file,class", **options: str) -> Path:
    return write(folder, header, *rows, name="corrections.csv", **options)


def note_of(photos: Photos) -> str:
    """What is said about the corrections, without the folder."""
    assert photos.corrections
    return photos.corrections.describe().removeprefix(f"{photos.folder}/")


def find(folder: Path, cache: Path) -> Photos:
    """As train finds photos, with a model folder beside the cache."""
    splitter = Splitter(SplitAssignments.read(cache.parent))
    photos = dataset.find_photos(folder, cache, FEW, splitter)
    splitter.assignments.write(cache.parent)
    return photos


@pytest.mark.parametrize("header", ["file,class", "Class ; reason; File ", "﻿file\tclass"])
def test_photos_are_relabelled_and_left_out(tens: Path, cache: Path, header: str) -> None:
    cells = {"file": "footwear/3.jpg", "class": "handbag", "reason": "seen"}
    separator = next(s for s in ";\t," if s in header)
    names = [name.strip("﻿ ").lower() for name in header.split(separator)]
    rows = [cells, cells | {"file": "handbag/4.jpg", "class": "-"}]
    before = labels_of(find(tens, cache))
    correct(tens, *(separator.join(row[name] for name in names) for row in rows), header=header)
    photos = find(tens, cache)
    expected = before | {"footwear/3.jpg": "handbag"}
    del expected["handbag/4.jpg"]
    assert labels_of(photos) == expected
    assert note_of(photos) == "corrections.csv: 1 photo relabelled, 1 left out."
    assert not photos.notes, "the file itself is used"


def test_a_file_in_another_folder_is_none_of_ours(planted: Path, cache: Path) -> None:
    correct(planted / "train", "topwear/1.jpg,handbag")
    photos = dataset.find_photos(planted, cache)
    assert photos.corrections is None
    assert photos.notes == ("Not used: 1 file in no class folder (train/corrections.csv).",)


def test_a_corrected_photo_keeps_its_split(tens: Path, cache: Path) -> None:
    before = listed(find(tens, cache))
    moved = [path for path, (_, name) in before.items() if name == "footwear"][::2]
    correct(tens, *(f"{path},handbag" for path in moved))
    after = listed(find(tens, cache))
    assert {after[path] for path in moved} == {(before[path][0], "handbag") for path in moved}
    assert {path: split for path, (split, _) in after.items()} == {
        path: split for path, (split, _) in before.items()
    }


@pytest.mark.parametrize(
    "spelling",
    ["train/footwear/a.jpg", "{data}/train/footwear/a.jpg", r"train\footwear\A.JPG".lower()],
)
def test_photos_in_split_folders_are_named_by_their_path(
    planted: Path, cache: Path, spelling: str
) -> None:
    """Within the data folder, or as the doctor prints it."""
    first = sorted((planted / "train/topwear").iterdir())[0]
    (planted / "train/footwear").mkdir()
    first.rename(planted / "train/footwear/a.jpg")
    for i, other in enumerate(sorted((planted / "train/topwear").iterdir())[:2]):
        other.rename(planted / "train/footwear" / f"{i}.jpg")
    correct(planted, f"{spelling.format(data=planted)},topwear")
    photos = dataset.find_photos(planted, cache)
    assert listed(photos)["train/footwear/a.jpg"] == ("train", "topwear")
    assert note_of(photos) == "corrections.csv: 1 photo relabelled, 0 left out."


def test_photos_of_a_table_are_named_as_there_or_by_their_path(
    tmp_path: Path, cache: Path, photo_files: list[Path]
) -> None:
    folder = make_images(tmp_path / "data", photo_files)
    write(folder, "image,label", *(f"{i},{('boots', 'hats')[i // 10]}" for i in range(20)))
    correct(folder, "3,hats", "images/4.jpg,-", r"images\5.JPG,hats", "15.jpg,-")
    photos = dataset.find_photos(folder, cache, FEW)
    labels = labels_of(photos)
    assert {labels[f"images/{i}.jpg"] for i in (3, 5)} == {"hats"}
    assert len(labels) == 18 and not {"images/4.jpg", "images/15.jpg"} & set(labels)
    assert note_of(photos) == "corrections.csv: 2 photos relabelled, 2 left out."
    assert not any("corrections" in note for note in photos.notes), "the file itself is used"


@needs_kaggle
def test_kaggles_table_is_corrected(cache: Path, tmp_path: Path) -> None:
    before = labels_of(dataset.find_photos(KAGGLE, cache))
    shoe = next(path for path, name in before.items() if name == "footwear")
    folder = Path(shutil.copytree(KAGGLE, tmp_path / "kaggle"))
    correct(folder, f"{Path(shoe).stem},handbag")
    photos = dataset.find_photos(folder, cache)
    assert labels_of(photos) == before | {shoe: "handbag"} and photos.class_names == CLASSES


def test_the_file_is_never_a_table_of_photos_and_does_not_make_a_folder_nonempty(
    tmp_path: Path, cache: Path, photo_files: list[Path]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    correct(folder, "a/1.jpg,b")
    assert dataset.is_empty(folder)
    photos = dataset.find_photos(folder, cache)
    assert photos.is_sample and photos.corrections is None
    assert photos.notes[-1] == (
        f"{folder}/corrections.csv is not used, because there are no photos in {folder}."
    )
    make_images(folder, photo_files)
    write(folder, "image,label", *(f"{i},{('boots', 'hats')[i // 10]}" for i in range(20)))
    correct(folder, "1,hats")
    assert labels_of(dataset.find_photos(folder, cache, FEW))["images/1.jpg"] == "hats"


def test_rows_without_an_effect_are_counted_with_an_example(tens: Path, cache: Path) -> None:
    (tens / "footwear/.hidden.jpg").write_bytes(b"x")
    correct(
        tens, "footwear/3.jpg,handbag", "footwear/99.jpg,handbag", "../../etc/passwd,-",
        "footwear/.hidden.jpg,handbag", ",handbag", "handbag/1.jpg,handbag", "footwear/3.jpg,handbag",
    )  # fmt: skip
    assert note_of(find(tens, cache)) == (
        "corrections.csv: 1 photo relabelled, 0 left out; "
        "1 row changes nothing (line 7: handbag/1.jpg); "
        "4 rows name no photo of the data set (line 3: footwear/99.jpg)."
    )


def test_names_with_spaces_and_classes_as_predictions_csv_has_them(tens: Path, cache: Path) -> None:
    (tens / "footwear").rename(tens / "=boots")
    for name in (" 1.jpg ", "3.jpg "):
        (tens / "=boots" / f"{name.strip()}").rename(tens / "=boots" / name)
    correct(tens, '"./=boots/3.jpg ",handbag', "  =boots/4.jpg ,handbag", "handbag/1.jpg,'=boots")
    photos = find(tens, cache)
    labels = labels_of(photos)
    assert {labels[f"=boots/{name}"] for name in ("3.jpg ", "4.jpg")} == {"handbag"}
    assert labels["handbag/1.jpg"] == "=boots" and labels["=boots/ 1.jpg "] == "=boots"
    assert note_of(photos) == "corrections.csv: 3 photos relabelled, 0 left out."


def test_a_file_with_a_header_only_changes_nothing(tens: Path, cache: Path) -> None:
    correct(tens)
    assert note_of(find(tens, cache)) == "corrections.csv: 0 photos relabelled, 0 left out."


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            ["footwear/1.jpg,boots"],
            "line 2: class 'boots' does not exist; expected footwear, handbag, "
            "or - to leave the photo out",
        ),
        (["footwear/1.jpg"], "line 2: class '' does not exist; expected footwear, handbag, or -"),
        (["footwear/1.jpg,\x1b[2J"], r"line 2: class '\x1b[2J' does not exist; expected"),
        (
            ["footwear/1.jpg,handbag", "handbag/1.jpg,-", "footwear/1.jpg,-"],
            "line 4: footwear/1.jpg has another class than in line 2; remove one of the two",
        ),
        (
            ["1.jpg,handbag", "2.jpg,-"],
            "no row names a photo (line 2: 1.jpg); expected paths within ",
        ),
        (
            [f"footwear/{i}.jpg,-" for i in range(10)],
            "leaves no photo of class footwear to train on; keep some, or remove the class",
        ),
        (['"footwear/1.jpg,handbag'], "line 2 is not valid CSV"),
    ],
)
def test_unusable_rows_are_refused(tens: Path, rows: list[str], said: str) -> None:
    assert refused(correct(tens, *rows)).startswith(f"data/corrections.csv: {said}")


@pytest.mark.parametrize("header", ["", "photo,label", "file", "class,files"])
def test_other_columns_are_refused(tens: Path, header: str) -> None:
    found = header.replace(",", ", ") or "nothing"
    assert refused(correct(tens, "footwear/1.jpg,handbag" if header else "", header=header)) == (
        "data/corrections.csv: expected a first line with the columns file and class, found "
        f"{found}; correct it, or rename the file"
    )


def test_two_files_that_differ_in_case_are_refused(tens: Path) -> None:
    correct(tens, "footwear/1.jpg,handbag")
    write(tens, "file,class", name="Corrections.CSV")
    assert refused(tens) == ("data: found both Corrections.CSV and corrections.csv; keep only one")


def test_a_link_that_leads_out_is_refused(tens: Path, tmp_path: Path) -> None:
    write(tmp_path, "file,class", name="elsewhere.csv")
    (tens / "corrections.csv").symlink_to(tmp_path / "elsewhere.csv")
    assert "corrections.csv: a link that leads out of " in refused(tens)
