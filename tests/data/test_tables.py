"""Tables -> splits and labels, and the messages about unusable tables."""

import csv
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers import CLASSES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from table_files import (
    FEW,
    KAGGLE,
    labels_of,
    listed,
    make_images,
    needs_kaggle,
    of_two,
    refused,
    write,
)

import eval
import infer
import train
from hogwear.commands import preparation
from hogwear.data import dataset, tables
from hogwear.data.cache import PhotoCache
from hogwear.data.splitting import Splitter
from hogwear.data.tables import Columns
from hogwear.evaluation import pictures
from hogwear.evaluation.prediction import Photo, Prediction
from hogwear.system import flags
from hogwear.system.errors import BadInput
from hogwear.system.text import escape


@pytest.fixture
def folder(tmp_path: Path, photo_files: list[Path]) -> Path:
    return make_images(tmp_path / "data", photo_files)


def by_hand(column: str) -> dict[str, str]:
    """{path: value of the column} of the rows of Kaggle's table that have a photo."""
    with (KAGGLE / "styles.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        path: row[column] for row in rows if (KAGGLE / (path := f"images/{row['id']}.jpg")).exists()
    }


@needs_kaggle
def test_kaggles_folder_is_recognised(cache: Path) -> None:
    photos = dataset.find_photos(KAGGLE, cache)
    expected = {
        path: tables.FASHION[value]
        for path, value in by_hand("subCategory").items()
        if value in tables.FASHION
    }
    assert photos.class_names == CLASSES and labels_of(photos) == expected
    assert photos.notes == (
        f"{KAGGLE}/styles.csv: 315 photos of 803 rows; left out: 476 of no class (line 2: Dress), 12 without an image (line 793: 59263).",
    )
    assert photos.train.count_per_class(CLASSES) == {
        "bottomwear": 31,
        "eyewear": 31,
        "footwear": 95,
        "handbag": 31,
        "topwear": 31,
    }
    assert photos.test and len(photos.val) == len(photos.test) == 48


@needs_kaggle
def test_another_column_of_kaggles_table_is_another_task(cache: Path) -> None:
    photos = dataset.find_photos(KAGGLE, cache, Columns(label="articleType", min_count=40))
    values = by_hand("articleType")
    enough = {value for value, count in Counter(values.values()).items() if count >= 40}
    assert set(photos.class_names) == enough and "Sunglasses" in enough
    assert labels_of(photos) == {path: value for path, value in values.items() if value in enough}
    assert photos.notes[0].endswith(
        "791 photos of 803 rows; left out: 12 without an image (line 793: 59263)."
    )
    assert photos.notes[1].startswith(
        "388 of these photos are left out, because their classes have fewer than 40 (--min-count): Handbags 31, Dresses 27, "
    )
    assert photos.notes[1].endswith(" more.")
    assert (
        "Topwear" in dataset.find_photos(KAGGLE, cache, Columns(label="subCategory")).class_names
    ), "a column that is named is taken as it is"


def test_kaggles_other_files_are_ignored(folder: Path, cache: Path) -> None:
    write(
        folder,
        "id,masterCategory,subCategory",
        *(f"{i},,{('Shoes', 'Bags')[i % 2]}" for i in range(8)),
        name="styles.csv",
    )
    write(folder, "filename,link", "0.jpg,http://example.com/0.jpg", name="images.csv")
    (folder / "styles").mkdir()
    photos = dataset.find_photos(folder, cache, FEW)
    assert photos.class_names == ("footwear", "handbag")
    assert photos.notes[1:] == (
        "Not used: 13 files that no row names (images.csv, images/10.jpg, images/11.jpg and 10 more);"
        " 1 folder that no row names (styles).",
    )


@pytest.mark.parametrize(
    ("header", "value"),
    [("image,label", "images/{}.jpg"), ("File Name,Category", "{}.jpg"), ("id,class", "{}"), ("Image Path,target", "./images//{}.jpg"),
     ("filename,type", "images/../images/{}.jpg")],
)  # fmt: skip
def test_columns_are_recognised_by_their_names(
    header: str, value: str, folder: Path, cache: Path
) -> None:
    write(folder, header, *of_two([value.format(i) for i in range(8)]))
    assert labels_of(dataset.find_photos(folder, cache, FEW)) == {
        f"images/{i}.jpg": ("boots", "hats")[i >= 4] for i in range(8)
    }


def test_a_chosen_column_beats_a_guessed_one(folder: Path, cache: Path) -> None:
    rows = [f"{i},{19 - i},{'ab'[i % 2]},{'cd'[i // 6]}" for i in range(12)]
    write(folder, "image,second,label,other", *rows)
    assert labels_of(dataset.find_photos(folder, cache, FEW)) == {
        f"images/{i}.jpg": "ab"[i % 2] for i in range(12)
    }
    columns = Columns("second", "other", 3)
    assert labels_of(dataset.find_photos(folder, cache, columns)) == {
        f"images/{19 - i}.jpg": "cd"[i // 6] for i in range(12)
    }


def test_rows_without_a_photo_are_counted_by_reason(folder: Path, cache: Path) -> None:
    rows = [
        *of_two([str(i) for i in range(10)]),
        "99,hats",
        ",hats",
        "images,hats",
        "10,",
        "11,NA",
        "12",
        "3,boots",
        "images/3.jpg,boots",
        "0\0,hats",
    ]
    photos = dataset.find_photos(write(folder, "id,label", *rows), cache, FEW)
    assert photos.notes == (
        f"{folder}/table.csv: 10 photos of 19 rows; left out: 2 of a photo that came before (images/3.jpg), "
        "3 of no class (line 15: empty), 4 without an image (line 12: 99).",
        "Not used: 7 files that no row names (images/13.jpg, images/14.jpg, images/15.jpg and 4 more).",
    )
    assert labels_of(photos)["images/3.jpg"] == "boots"


def test_a_photo_with_different_classes_is_left_out_and_named(folder: Path, cache: Path) -> None:
    rows = [
        *of_two([str(i) for i in range(10)]),
        "3,boots",
        "images/3.jpg,hats",
        "3,boots",
        "7,hats",
    ]
    photos = dataset.find_photos(write(folder, "id,label", *rows), cache, FEW)
    assert photos.notes == (
        f"{folder}/table.csv: 9 photos of 14 rows; left out: 1 of a photo that came before (images/7.jpg), "
        "4 of a photo with different classes (line 13: images/3.jpg, boots, hats).",
        "Not used: 10 files that no row names (images/10.jpg, images/11.jpg, images/12.jpg and 7 more).",
    )
    assert labels_of(photos) == {
        f"images/{i}.jpg": ("boots", "hats")[i >= 5] for i in range(10) if i != 3
    }


def test_an_example_is_short_and_printable(folder: Path, cache: Path) -> None:
    rows = [*of_two([str(i) for i in range(8)]), f"\x1b[31m{'9' * 100},hats"]
    assert (
        dataset.find_photos(write(folder, "id,label", *rows), cache, FEW)
        .notes[0]
        .endswith(rf"1 without an image (line 10: \x1b[31m{'9' * 51}…).")
    )


def test_a_class_in_two_unicode_forms_is_one(folder: Path, cache: Path) -> None:
    for i in (8, 9):
        (folder / "images" / f"{i}.jpg").rename(folder / "images" / f"cafe\u0301{i}.jpg")
    rows = [
        *of_two([str(i) for i in range(8)], ("cafe\u0301", "hats")),
        "caf\u00e98.jpg,caf\u00e9",
        "cafe\u03019.jpg,caf\u00e9",
    ]
    photos = dataset.find_photos(write(folder, "image,label", *rows), cache, FEW)
    assert photos.class_names == ("caf\u00e9", "hats") and len(photos.notes) == 2
    assert sum(label == "caf\u00e9" for label in labels_of(photos).values()) == 6, (
        "a photo's name may be in the other form, too"
    )


def test_class_names_may_have_joiners_and_non_breaking_spaces(folder: Path, cache: Path) -> None:
    names = ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "top\u00a0wear")
    assert set(
        dataset.find_photos(
            write(folder, "id,label", *of_two([str(i) for i in range(8)], names)), cache, FEW
        ).class_names
    ) == set(names)


def test_classes_with_too_few_photos_are_left_out_and_named(folder: Path, cache: Path) -> None:
    rows = [*of_two([str(i) for i in range(10)]), "10,rare\x1b[31m", "11,seldom", "12,seldom"]
    photos = dataset.find_photos(write(folder, "id,label", *rows), cache, Columns(min_count=5))
    assert photos.class_names == ("boots", "hats") and len(listed(photos)) == 10
    assert (
        photos.notes[1]
        == r"3 of these photos are left out, because their classes have fewer than 5 (--min-count): seldom 2, rare\x1b[31m 1."
    )


def test_at_most_ten_classes_with_too_few_photos_are_named(folder: Path, cache: Path) -> None:
    rows = [*of_two([str(i) for i in range(8)]), *(f"{i},rare {i}" for i in range(8, 18))]
    ten = (
        "10 of these photos are left out, because their classes have fewer than 3 (--min-count): "
        + ", ".join(f"rare {i} 1" for i in range(8, 18))
    )
    assert dataset.find_photos(write(folder, "id,label", *rows), cache, FEW).notes[1] == f"{ten}."
    more = dataset.find_photos(
        write(folder, "id,label", *rows, "18,rare 18", "19,rare 19"), cache, FEW
    ).notes[1]
    assert more == f"{ten.replace('10', '12', 1)} and 2 more."


def test_a_class_name_may_be_as_long_as_a_folder_name(folder: Path, cache: Path) -> None:
    names = ("a" * 255, "b")
    assert (
        dataset.find_photos(
            write(folder, "id,label", *of_two([str(i) for i in range(8)], names)), cache, FEW
        ).class_names
        == names
    )


def test_train_prints_how_many_rows_gave_a_photo(
    folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = dataset.find_photos(
        write(folder, "id,label", *of_two([str(i) for i in range(8)]), "99,hats"), cache, FEW
    )
    preparation.print_photos(photos)
    assert (
        f"\n{folder}/table.csv: 8 photos of 9 rows; left out: 1 without an image (line 10: 99).\n"
        in capsys.readouterr().out
    )


def test_class_folders_take_precedence_over_a_table(folder: Path, cache: Path) -> None:
    write(folder, "id,label", *of_two([str(i) for i in range(8)]))
    for name in ("a", "b"):
        shutil.copytree(folder / "images", folder / "train" / name)
    assert dataset.find_photos(folder, cache).class_names == ("a", "b")
    assert dataset.find_photos(folder, cache, Columns(label="label", min_count=3)).class_names == (
        "boots",
        "hats",
    ), "unless somebody asks for the table"
    shutil.rmtree(folder / "images")
    assert dataset.find_photos(folder, cache).class_names == ("a", "b")
    for name in ("a", "b"):
        (folder / "train" / name).rename(folder / name)
    (folder / "train").rmdir()
    assert dataset.find_photos(folder, cache).class_names == ("a", "b")


def test_new_rows_move_no_photo_to_another_split(folder: Path, cache: Path) -> None:
    rows = of_two([str(i) for i in range(12)])
    splitter = Splitter()
    before = listed(
        dataset.find_photos(write(folder, "id,label", *rows), cache, FEW, splitter=splitter)
    )
    assert Counter(before.values()) == {
        (split, name): n
        for split, n in (("train", 4), ("val", 1), ("test", 1))
        for name in ("boots", "hats")
    }
    assert (
        listed(
            dataset.find_photos(
                write(folder, "id,label", *reversed(rows)), cache, FEW, splitter=splitter
            )
        )
        == before
    )
    new = [f"{i},boots" for i in range(12, 16)] + [f"{i},scarves" for i in range(16, 20)]
    after = listed(
        dataset.find_photos(write(folder, "id,label", *new, *rows), cache, FEW, splitter=splitter)
    )
    assert before.items() < after.items() and len(after) == 20
    assert Counter(split for split, name in after.values() if name == "scarves") == {
        "train": 2,
        "val": 1,
        "test": 1,
    }


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_a_split_column_is_used(val: str, folder: Path, cache: Path) -> None:
    words = ["train", "train", val, "test", "train"] * 2
    rows = [
        f"{row},{word}"
        for row, word in zip(of_two([str(i) for i in range(10)]), words, strict=True)
    ]
    photos = dataset.find_photos(write(folder, "id,label,Split", *rows), cache, FEW)
    assert {path: split for path, (split, _) in listed(photos).items()} == {
        f"images/{i}.jpg": words[i] if words[i] != val else "val" for i in range(10)
    }
    assert not cache.exists()


def test_without_val_rows_some_of_train_become_val(folder: Path, cache: Path) -> None:
    shutil.copy(folder / "images" / "0.jpg", folder / "20.jpg")
    rows = [f"{row},train" for row in of_two([str(i) for i in range(20)])]
    photos = dataset.find_photos(write(folder, "id,label,split", *rows, "20.jpg,rare,val"), cache)
    assert (
        photos.val.count_per_class(photos.class_names) == {"boots": 2, "hats": 2}
        and photos.test is None
        and len(photos.train) == 16
    )
    assert listed(dataset.find_photos(folder, cache)) == listed(photos)


@pytest.mark.parametrize("script", [train, eval, infer], ids=lambda script: script.__name__)
def test_every_command_sees_the_same_photos(
    script: Any, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, "a,b,c,label", *(f"{i},{i + 8},{'xy'[i % 2]},{'pq'[i % 2]}" for i in range(8)))
    expected = {f"images/{i + 8}.jpg": "xy"[i % 2] for i in range(8)}
    arguments = [
        "--data-dir",
        str(folder),
        "--cache-dir",
        str(cache),
        "--image-column",
        "b",
        "--label-column",
        "c",
        "--min-count",
        "4",
    ]
    settings = flags.parse(script.Settings, arguments)
    assert labels_of(settings.photos(Splitter())) == expected
    for name, value in zip(arguments[::2], arguments[1::2], strict=True):
        monkeypatch.setenv("HOGWEAR_" + name[2:].replace("-", "_").upper(), value)
    assert flags.parse(script.Settings, []) == settings


def test_a_photo_that_links_out_of_the_folder_is_skipped_with_the_reason(
    folder: Path, cache: Path
) -> None:
    (folder / "images" / "0.jpg").rename(folder.parent / "outside.jpg")
    (folder / "images" / "0.jpg").symlink_to("../../outside.jpg")
    rows = [
        f"{row},{split}"
        for row, split in zip(
            of_two([str(i) for i in range(8)]), ["train", "train", "train", "val"] * 2, strict=True
        )
    ]
    photos = dataset.find_photos(write(folder, "id,label,split", *rows), cache, FEW)
    pixels = PhotoCache(cache, processes=1).open(photos.train, 32)
    assert pixels.skipped == {
        folder
        / "images"
        / "0.jpg": "a link that leads out of the folder; put the photo itself there"
    }
    assert len(pixels) == 5 and pixels.labels.tolist() == [0, 0, 1, 1, 1]


def test_a_table_that_links_out_of_the_folder_is_refused(folder: Path) -> None:
    write(folder.parent, "id,label", *of_two([str(i) for i in range(8)]))
    (folder / "table.csv").symlink_to("../table.csv")
    assert (
        refused(folder)
        == f"data/table.csv: a link that leads out of {folder}, to {folder.parent}/table.csv; put the file itself there, or mount it there"
    )


ROWS = of_two([str(i) for i in range(8)])


REFUSED: dict[str, tuple[list[str], Columns, str]] = {
    "no column for the image": (["a,label,b", *ROWS], FEW, "table.csv: it is unclear which column is the image; choose one with --image-column: a, label, b"),
    "no column for the class": (["id,b", *ROWS], FEW, "table.csv: it is unclear which column is the label; choose one with --label-column: id, b"),
    "no such column": (["id,label", *ROWS], Columns(label="Label"), "table.csv: no column 'Label'; choose one with --label-column: id, label"),
    "empty": ([""], FEW, "table.csv: it is unclear which column is the image; choose one with --image-column: there are none"),
    "no rows": (["id,label"], FEW, "table.csv: 0 photos of 0 rows; no class has at least 3 photos (--min-count)"),
    "no photos": (["id,label", "77,a", "78,b"], FEW, "table.csv: 0 photos of 2 rows; left out: 2 without an image (line 2: 77); no class has at least 3 photos (--min-count)"),
    "one class": (["id,label", *ROWS[:4]], FEW, "only one class (boots); a classifier needs at least two"),
    "a class that cannot be printed": (["id,label", *of_two(list("01234567"), ("a\x1b[31m", "b"))], FEW, r"table.csv: 'a\x1b[31m' cannot be the name of a class; "),
    "Latin-1": (["id,label", *of_two(list("01234567"), ("\udce9t\udce9", "b"))], FEW, r"table.csv: '\udce9t\udce9' cannot be the name of a class; "),
    "a class with an endless name": (["id,label", *of_two(list("01234567"), ("a" * 256, "b"))], FEW, f"table.csv: '{'a' * 255}' cannot be the name of a class; "),
    "another split": (["id,label,split", "0,a,train", "1,a,dev"], FEW, "table.csv: line 3: split 'dev' is not one of train, training, val, valid, validation, test, testing; "),
    "a class not in train": (
        ["id,label,split", *(f"{row},train" for row in ROWS), *(f"{i},z,val" for i in range(8, 11))], FEW,
        "table.csv: no photo of class z is in split train; ",
    ),
    "a quote that is not closed": (["id,label", *ROWS[:3], '7,"boots', *ROWS[4:]], FEW, "table.csv: line 5 is not valid CSV (unexpected end of data); "),
    "an endless cell": (["id,label", "7," + "a" * 140_000], FEW, "table.csv: line 2 is not valid CSV (field larger than field limit (131072)); "),
    "an endless line": (["id,label", "7," * (1 << 20)], FEW, "table.csv: line 2 has more than 1,048,576 characters, "),
}  # fmt: skip


@pytest.mark.parametrize(("text", "columns", "said"), REFUSED.values(), ids=list(REFUSED))
def test_a_table_that_cannot_be_used_is_named_with_the_fix(
    text: list[str], columns: Columns, said: str, folder: Path
) -> None:
    line = refused(write(folder, *text), columns)
    assert (
        line.startswith(("data/" + said, "data: " + said)) and "\n" not in line and len(line) < 600
    )


@pytest.mark.parametrize(("columns", "end"), [(30, ""), (31, ", ...")])
def test_at_most_thirty_columns_are_listed(columns: int, end: str, folder: Path) -> None:
    header = ",".join(f"c{i}" for i in range(columns))
    assert refused(write(folder, header)).endswith(
        "choose one with --image-column: " + ", ".join(f"c{i}" for i in range(30)) + end
    )


def test_one_folder_without_a_table_is_one_class(folder: Path) -> None:
    assert refused(folder) == "data: only one class (images); a classifier needs at least two"


def test_no_table_and_several_tables_are_refused(folder: Path) -> None:
    assert refused(folder, Columns(label="color")).startswith(
        "data: no table (*.csv), so there is no column 'color'; leave "
    )
    (folder / "folder.csv").mkdir()
    os.mkfifo(folder / "pipe.csv")
    assert refused(folder, Columns(image="x")).startswith(
        "data: no table (*.csv), so there is no column 'x'; leave "
    )
    (folder / "folder.csv").rmdir()
    for name in ("a.csv", "b.CSV"):
        write(folder, "id,label", *ROWS, name=name)
    assert refused(folder) == "data: 2 tables, a.csv, b.CSV; keep one of them"
    (folder / "b.CSV").unlink()
    with (folder / "a.csv").open("a") as file:
        file.truncate(501_000_000)
    assert refused(folder).startswith(
        "data/a.csv: 501 megabytes, over the limit of 500 for a table; "
    )
    write(folder, "id,label", *ROWS, name="a.csv", encoding="utf-16")
    assert refused(folder) == "data/a.csv: not in UTF-8; save it as CSV in UTF-8"


def test_a_class_name_need_not_be_a_valid_file_name(
    folder: Path, cache: Path, tmp_path: Path
) -> None:
    names = ("/etc/T-Shirts", "Tops/../..")
    photos = dataset.find_photos(
        write(folder, "id,label", *of_two([str(i) for i in range(8)], names)), cache, FEW
    )
    assert photos.class_names == names and set(listed(photos)) == {
        f"images/{i}.jpg" for i in range(8)
    }
    answer = Prediction(
        Photo(photos.train.paths[0], names[0], None), {names[0]: 0.25, names[1]: 0.75}
    )
    assert pictures.stem_of(answer) == f"{photos.train.paths[0].stem}_Tops_.._.."


CELLS = st.one_of(
    st.sampled_from(["0", "1", "images/2.jpg", "..", "../x", "/", "~", "away/0", "", '"', ",", "\n", "a", "b", "NA", "\0", "id", "label", "split", "train"]),
    st.text(max_size=8), st.integers(0, 19).map(str),
)  # fmt: skip


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.lists(st.lists(CELLS, max_size=4).map(",".join)).map(
            lambda rows: "\n".join(["id,label", *rows]).encode("utf-8", "replace")
        ),
    )
)
def test_whatever_a_table_holds_it_gives_photos_of_the_folder_or_one_line(
    content: bytes, folder: Path
) -> None:
    if not (folder / "away").is_symlink():
        (folder / "away").symlink_to("..")
    (folder / "table.csv").write_bytes(content)
    try:
        table = tables.read_table(folder / "table.csv", Columns(min_count=1))
    except BadInput as error:
        assert escape(str(error)).startswith(f"{folder}/table.csv: ")
    else:
        for path in [
            path for classes in table.found.values() for paths in classes.values() for path in paths
        ]:
            assert (folder / path).resolve().is_relative_to(folder) and (folder / path).exists()
