"""A table in place of class folders: the rows of a CSV file -> {class: photos}.

    data/styles.csv, data/images/ID.jpg  Kaggle's "Fashion Product Images" as it is; its rows become
                                         the five classes of FASHION
    data/NAME.csv                        any other table: a column of paths or names, a column of
                                         classes, and perhaps one called split

A table is as untrusted as the photos: a path that leads out of its folder is never followed.
"""

import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hogwear.data.class_names import MAX_NAME, MAX_NAMES, SPLIT_NAMES, note_similar_names
from hogwear.data.csv_rows import read_rows
from hogwear.data.row_files import RowFiles, SkippedRow
from hogwear.system.errors import BadInput
from hogwear.system.text import escape, is_safe, join_some, normalize, plural, shorten

KAGGLE, KAGGLE_HEADER = "styles.csv", {"id", "masterCategory", "subCategory"}
FASHION = {  # subCategory -> class; rows of other subcategories have no class
    "Topwear": "topwear",
    "Bottomwear": "bottomwear",
    "Eyewear": "eyewear",
    "Bags": "handbag",
    "Shoes": "footwear",
    "Sandal": "footwear",
    "Flip Flops": "footwear",
}
NO_VALUE = ("", "NA", "nan")  # how Kaggle and pandas write a missing value
IMAGE_NAMES = "image imagepath imagefile imagename filename filepath file path photo picture img"
LABEL_NAMES = "label labels labelname class classname category categoryname target type"
# Usual names of columns without case and punctuation, the most reliable first
USUAL_NAMES = {"image": f"{IMAGE_NAMES} imageid id".split(), "label": LABEL_NAMES.split()}
MAX_CLASS_NAME = 255  # the longest name that a folder may have
MAX_COLUMNS, MAX_COLUMN_NAMES = 30, 500  # in a message: columns, and characters in total

NO_CLASS = "of no class"
DUPLICATE = "of a photo that came before"
CONFLICT = "of a photo with different classes"

Found = dict[str | None, dict[str, list[str]]]  # {split: {class: paths}}; None: no split column


@dataclass(frozen=True)
class Columns:
    """How to read a table, and what the products are."""

    image: str | None = None  # None: guessed
    label: str | None = None
    min_count: int = 10  # photos that make a class: 6 to train on, 2 each for val and test
    group: str | None = None  # None: rows say nothing about products
    group_by: str | None = None  # one of products.GROUP_BY, for folders; None: guessed


GUESSED = Columns()


class Row(NamedTuple):
    """What a row says about its photo."""

    split: str | None
    label: str
    product: str


class Table(NamedTuple):
    """The photos in a table."""

    found: Found  # paths within the folder, sorted
    notes: list[str]  # for people: how many rows gave a photo, and why others did not
    unnamed: list[str]  # paths within the folder: files beside the photos that no row names
    folders: set[str]  # in which rows look for files: the first parts of their paths
    products: dict[str, str]  # {path: the name of its product}, for photos of products


def find_table(folder: Path, entries: list[os.DirEntry[str]], columns: Columns) -> Path | None:
    """The table that says what the photos in a folder are; None if its folders do.

    Raises BadInput if there are several tables, or none although a column is named.
    """
    folders = {e.name for e in entries if e.is_dir()}
    tables = sorted(e.name for e in entries if e.name.lower().endswith(".csv") and e.is_file())
    if KAGGLE in tables and "images" in folders:
        return folder / KAGGLE
    if named := columns.image or columns.label or columns.group:
        if not tables:
            raise BadInput(
                f"{folder}: no table (*.csv), so there is no column {named!r}; leave out "
                "--image-column, --label-column and --group-column"
            )
    elif "train" in map(SPLIT_NAMES.get, map(str.lower, folders)) or len(folders) > 1:
        return None  # a single folder cannot be the classes
    if len(tables) > 1:
        shown = join_some(tables, MAX_NAMES)
        raise BadInput(f"{folder}: {len(tables)} tables, {shown}; keep one of them")
    return folder / tables[0] if tables else None


@dataclass(frozen=True)
class Layout:
    """Which column is what."""

    file: Path  # for messages
    image: int
    label: int
    split: int | None
    group: int | None
    is_fashion: bool  # Kaggle's table, with no other column asked for

    @classmethod
    def detect(cls, header: list[str], columns: Columns, file: Path) -> "Layout":
        """From `columns`, or from the columns' names. BadInput, with a list of them, if unclear."""
        names = [name.strip() for name in header]
        is_fashion = columns.label is None and set(names) >= KAGGLE_HEADER
        label_column = "subCategory" if is_fashion else columns.label
        image = find_column(names, columns.image, "image", file)
        label = find_column(names, label_column, "label", file)
        others = [name.lower() if i not in (image, label) else "" for i, name in enumerate(names)]
        split = others.index("split") if "split" in others else None
        group = find_column(names, columns.group, "group", file) if columns.group else None
        return cls(file, image, label, split, group, is_fashion)

    def read_label(self, row: list[str]) -> str:
        """The class of a row. Raises SkippedRow if it has none."""
        value = read_cell(row, self.label)
        name = normalize(FASHION.get(value, "") if self.is_fashion else value)
        if name in NO_VALUE:
            raise SkippedRow(NO_CLASS, value)
        return name

    def read_product(self, row: list[str]) -> str:
        """The product of a row; "" for none."""
        value = "" if self.group is None else read_cell(row, self.group)
        return "" if value in NO_VALUE else value

    def read_split(self, row: list[str], line: int) -> str | None:
        """The split of a row; None without such a column. BadInput for an unknown name."""
        if self.split is None:
            return None
        word = read_cell(row, self.split)
        if word.lower() not in SPLIT_NAMES:
            raise BadInput(
                f"{self.file}: line {line}: split {word[:MAX_CLASS_NAME]!r} is not one of "
                f"{', '.join(SPLIT_NAMES)}; correct it, or rename the column"
            )
        return SPLIT_NAMES[word.lower()]


def find_column(names: list[str], wanted: str | None, kind: str, file: Path) -> int:
    """The index of the `wanted` column, or of the first with a usual name for an image or label."""
    if wanted in names:
        return names.index(wanted)
    if wanted is None:
        simple = ["".join(filter(str.isalnum, name)).lower() for name in names]
        if usual := next((name for name in USUAL_NAMES[kind] if name in simple), None):
            return simple.index(usual)
    shown = ", ".join(filter(None, names[:MAX_COLUMNS])) + ", ..." * (len(names) > MAX_COLUMNS)
    problem = f"no column {wanted!r}" if wanted else f"it is unclear which column is the {kind}"
    raise BadInput(
        f"{file}: {problem}; choose one with --{kind}-column: "
        f"{shown[:MAX_COLUMN_NAMES] or 'there are none'}"
    )


def read_cell(row: list[str], column: int) -> str:
    return row[column].strip() if column < len(row) else ""


def read_table(file: Path, columns: Columns) -> Table:
    """The photos that a table names, in its own folder.

    A photo with different classes is left out, because nothing tells which one is right. Raises
    BadInput for a file that is not a table, unclear columns, and too few photos in every class.
    """
    rows = read_rows(file)
    layout = Layout.detect(next(rows, (0, []))[1], columns, file)
    files = RowFiles(file.parent)
    photos: dict[str, Row] = {}  # {path: its first row}
    equal: dict[Row, Row] = {}  # saves memory
    repeated: Counter[str] = Counter()  # {path: further rows with it}
    conflicts: dict[str, str] = {}  # {path: the first row that gives it another class}
    skipped: Counter[str] = Counter()  # {reason: rows}
    examples: dict[str, str] = {}  # {reason: the first row}
    for line, row in rows:
        try:
            path, name = files.find(read_cell(row, layout.image)), layout.read_label(row)
        except SkippedRow as error:
            value = shorten(error.value, MAX_NAME) or "empty"
            skipped[error.reason] += 1
            examples.setdefault(error.reason, f"line {line}: {value}")
            continue
        if path not in photos:
            photo = Row(layout.read_split(row, line), name, layout.read_product(row))
            photos[path] = equal.setdefault(photo, photo)
            continue
        repeated[path] += 1
        if name != (first := photos[path].label):
            shown = ", ".join(shorten(text, MAX_NAME) for text in (path, first, name))
            conflicts.setdefault(path, f"line {line}: {shown}")
    for path, example in conflicts.items():
        del photos[path]
        skipped[CONFLICT] += 1 + repeated.pop(path)
        examples.setdefault(CONFLICT, example)
    if repeated:
        skipped[DUPLICATE] = repeated.total()
        examples[DUPLICATE] = shorten(next(iter(repeated)), MAX_NAME)
    found: Found = defaultdict(lambda: defaultdict(list))
    for path, photo in photos.items():
        found[photo.split][photo.label].append(path)
    of_rows = f"{plural(len(photos), 'photo')} of {plural(len(photos) + skipped.total(), 'row')}"
    reasons = ", ".join(f"{n} {why} ({examples[why]})" for why, n in sorted(skipped.items()))
    summary = f"{file}: {of_rows}{'; left out: ' * bool(reasons)}{reasons}"
    found, notes = select_classes(found, columns.min_count, summary, file)
    unnamed = [path for path in files.unnamed() if path != file.name]
    folders = {path.partition("/")[0] for path in files.folders()}
    products = {path: photo.product for path, photo in photos.items() if photo.product}
    return Table(found, notes, unnamed, folders, products)


def select_classes(
    found: Found, min_count: int, summary: str, file: Path
) -> tuple[Found, list[str]]:
    """The classes with at least `min_count` photos, and notes for people.

    Raises BadInput if there are none, if one has no photos to train on, or if the name of one
    cannot be printed.
    """
    counts: Counter[str] = Counter()
    for classes in found.values():
        counts.update({name: len(paths) for name, paths in classes.items()})
    names = sorted(name for name, count in counts.items() if count >= min_count)
    if not names:
        raise BadInput(f"{summary}; no class has at least {min_count} photos (--min-count)")
    for name in names:
        if not is_safe(name) or len(name) > MAX_CLASS_NAME:
            raise BadInput(
                f"{file}: {name[:MAX_CLASS_NAME]!r} cannot be the name of a class; use up to "
                f"{MAX_CLASS_NAME} printable characters, in UTF-8"
            )
        if None not in found and name not in found["train"]:
            raise BadInput(
                f"{file}: no photo of class {name} is in split train; move some there, or raise "
                "--min-count"
            )
    notes = [f"{summary}.", *note_similar_names(counts)]
    if small := [item for item in counts.most_common() if item[1] < min_count]:
        shown = [f"{escape(name)[:MAX_CLASS_NAME]} {count}" for name, count in small]
        notes.append(
            f"{sum(count for _, count in small)} of these photos are left out, because their "
            f"classes have fewer than {min_count} (--min-count): {join_some(shown, MAX_NAMES)}."
        )
    kept = {
        split: {name: sorted(classes[name]) for name in names if name in classes}
        for split, classes in found.items()
    }
    return {split: classes for split, classes in kept.items() if classes}, notes
