"""CSV files as programs and people write them."""

from pathlib import Path

import pytest
from table_files import FEW, labels_of, make_images, of_two, refused, write

from hogwear.data import dataset, tables
from hogwear.data.tables import Columns


@pytest.fixture
def folder(tmp_path: Path, photo_files: list[Path]) -> Path:
    return make_images(tmp_path / "data", photo_files)


def test_surplus_commas_belong_to_the_last_column(folder: Path, cache: Path) -> None:
    kinds = ["Shoes", "Sandal", "Flip Flops", "Topwear", "Topwear", "Topwear"]
    rows = [
        f"{i},Men,Apparel,{kind},Casual,{kind}, 2 of them, in a pack"
        for i, kind in enumerate(kinds)
    ]
    write(
        folder,
        "id,gender,masterCategory,subCategory,usage,productDisplayName",
        *rows,
        name="styles.csv",
    )
    assert labels_of(dataset.find_photos(folder, cache, FEW)) == {
        f"images/{i}.jpg": tables.FASHION[kind] for i, kind in enumerate(kinds)
    }
    write(
        folder,
        "id,label",
        *of_two([str(i) for i in range(6)], ("socks, 2 pairs", "hats")),
        name="styles.csv",
    )
    assert dataset.find_photos(folder, cache, FEW).class_names == ("hats", "socks, 2 pairs")
    write(
        folder,
        "id,label",
        *of_two([str(i) for i in range(6)], ('"socks,"', "hats")),
        name="styles.csv",
    )
    assert dataset.find_photos(folder, cache, FEW).class_names == ("hats", "socks,"), (
        "a comma in quotes is not too many"
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_how_spreadsheets_save_a_table_does_not_matter(
    encoding: str, separator: str, folder: Path, cache: Path
) -> None:
    rows = [
        separator.join(
            [str(i), f'"two\nlines{separator} ""{i}"""', "bottes d'été" if i < 4 else ""]
        )
        for i in range(5)
    ]
    write(folder, separator.join(["id", "remark", "class"]) + "\r", *rows, *["", separator * 2], *(f"{i}{separator}" for i in range(5, 8)),
          separator.join(["8", "", " bottes d'été\r"]), *(f"{i}{separator * 2}chapeaux{separator}" for i in range(10, 14)), encoding=encoding)  # fmt: skip
    photos = dataset.find_photos(folder, cache, Columns("id", min_count=3))
    expected = dict.fromkeys((0, 1, 2, 3, 8), "bottes d'été") | dict.fromkeys(
        range(10, 14), "chapeaux"
    )
    assert labels_of(photos) == {f"images/{i}.jpg": label for i, label in expected.items()}
    assert photos.notes[0].endswith(
        "table.csv: 9 photos of 14 rows; left out: 4 of no class (line 10: empty), 1 without an image (line 13: empty)."
    )


def test_a_line_break_within_a_name_is_kept_as_it_is(folder: Path, cache: Path) -> None:
    names = [f"{i}{end}.jpg" for end in ("\r", "\n", "\r\n") for i in range(2)]
    for name in names:
        (folder / name).touch()
    write(folder, "image,label", *of_two([f'"{name}"' for name in names]))
    assert set(labels_of(dataset.find_photos(folder, cache, FEW))) == set(names)


@pytest.mark.parametrize("first", ["sep=;", "SEP=;\r", '"sep=;"'])
def test_a_first_line_may_name_the_separator(first: str, folder: Path, cache: Path) -> None:
    rows = [
        row.replace(",", ";", 1) for row in of_two([str(i) for i in range(8)], ("a, b, c", "d"))
    ]
    write(folder, first, "id,1;label", *rows, "99;d")
    photos = dataset.find_photos(folder, cache, Columns("id,1", min_count=3))
    assert labels_of(photos) == {f"images/{i}.jpg": ("a, b, c", "d")[i >= 4] for i in range(8)}
    assert photos.notes[0].endswith("1 without an image (line 11: 99)."), (
        "lines are counted from the first one"
    )
    write(folder, first, "id,1;label", *rows, '"9')
    assert "line 11 is not valid CSV" in refused(folder, Columns("id,1", min_count=3))


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (500_000_000, "line 2 has more than 1,048,576 characters"),
        (500_000_001, "500 megabytes, over the limit of 500"),
    ],
)
def test_a_table_may_have_500_megabytes_and_not_a_byte_more(
    size: int, said: str, folder: Path
) -> None:
    with write(folder, "id,label").joinpath("table.csv").open("a") as file:
        file.truncate(size)
    assert refused(folder).startswith(f"data/table.csv: {said}")


def test_an_invalid_header_is_named_by_its_line(folder: Path) -> None:
    assert "line 1 is not valid CSV" in refused(write(folder, 'id,"label', "0,hats"))
