"""A table instead of folders: the rows of a CSV -> {class: photos}.

    data/styles.csv, data/images/ID.jpg    Kaggle's "Fashion Product Images" as it is; its rows become the five classes of FASHION
    data/NAME.csv                          any other: a column of paths or names, one of classes, and perhaps one called split

A table may come from strangers, as the photos may: whatever is in it, a path that leads out of its folder is never followed.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path

from hogwear.data.csv_rows import rows_of
from hogwear.system.errors import BadInput
from hogwear.system.text import escape, is_safe, normalize, shorten

KAGGLE, KAGGLE_HEADER = "styles.csv", {"id", "masterCategory", "subCategory"}
FASHION = {  # subCategory -> class; rows of other ones are of no class
    "Topwear": "topwear", "Bottomwear": "bottomwear", "Eyewear": "eyewear", "Bags": "handbag",
    "Shoes": "footwear", "Sandal": "footwear", "Flip Flops": "footwear",
}  # fmt: skip
NO_CLASS = ("", "NA", "nan")  # how Kaggle and pandas write that a cell has no value
SPLITS = {  # what they may be called, as folders too
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip
# What columns are usually called, the surest names first, without case and punctuation.
IMAGE_NAMES = (
    "image",
    "imagepath",
    "imagefile",
    "imagename",
    "filename",
    "filepath",
    "file",
    "path",
    "photo",
    "picture",
    "img",
    "imageid",
    "id",
)
LABEL_NAMES = (
    "label",
    "labels",
    "labelname",
    "class",
    "classname",
    "category",
    "categoryname",
    "target",
    "type",
)
ENDINGS = ("", ".jpg", ".jpeg", ".png")  # of a name that a row gives without one
LONGEST_PATH, LONGEST_NAME = (
    4096,
    255,
)  # what Linux allows for files; a class is a folder's name elsewhere
CLASSES_SHOWN, COLUMNS_SHOWN, LONGEST_SHOWN, LONGEST_EXAMPLE = 10, 30, 500, 60
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


@dataclass(frozen=True)
class Columns:
    """How to read a table."""

    image: str | None = None  # None: guessed
    label: str | None = None
    min_count: int = 10  # photos that make a class: 6 to train on, 2 each for val and test


GUESSED = Columns()


class LeftOut(Exception):
    """A row that gives no photo: why, to be counted with others, and what was in it, as an example."""

    def __init__(self, why: str, value: str) -> None:
        super().__init__(why)
        self.why, self.value = why, value


NO_IMAGE, OUTSIDE, NO_LABEL, AGAIN = (
    "without an image",
    "with a path out of the folder",
    "of no class",
    "of a photo that came before",
)
SEVERAL, CONFLICT = (
    "whose image has several spellings on the disk",
    "of a photo with different classes",
)


@dataclass(frozen=True)
class Table:
    """What the rows give."""

    found: dict[
        str | None, dict[str, list[str]]
    ]  # {split: {class: paths within the folder, sorted}}; under None: not split
    notes: tuple[str, ...]  # for people: how many rows gave a photo, and what became of the others


def find(folder: Path, entries: list[os.DirEntry[str]], columns: Columns) -> Path | None:
    """The table that tells what the photos in `folder` are, if it is not folders that do.

    BadInput if there are several, or none where a column is named.
    """
    folders = {e.name for e in entries if e.is_dir()}
    tables = sorted(e.name for e in entries if e.name.lower().endswith(".csv") and e.is_file())
    if KAGGLE in tables and "images" in folders:
        return folder / KAGGLE
    if named := columns.image or columns.label:
        if not tables:
            raise BadInput(
                f"{folder}: no table (*.csv) in it, so there is no column {named!r}; leave --image-column and --label-column out"
            )
    elif (
        "train" in map(SPLITS.get, map(str.lower, folders)) or len(folders) > 1
    ):  # one folder cannot be the classes
        return None
    if len(tables) > 1:
        raise BadInput(
            f"{folder}: {len(tables)} tables, {', '.join(tables[:CLASSES_SHOWN])}; keep one of them"
        )
    return folder / tables[0] if tables else None


@dataclass(frozen=True)
class Layout:
    """Which column is what."""

    image: int
    label: int
    split: int | None
    is_fashion: bool  # Kaggle's table, of which nobody asked for another column

    @classmethod
    def of(cls, header: list[str], columns: Columns, file: Path) -> "Layout":
        """As `columns` say, or as the columns are called. BadInput, listing them, where neither tells."""
        names = [name.strip() for name in header]
        is_fashion = columns.label is None and set(names) >= KAGGLE_HEADER
        image = position(names, columns.image, IMAGE_NAMES, "image", file)
        label = position(
            names, "subCategory" if is_fashion else columns.label, LABEL_NAMES, "label", file
        )
        split = next(
            (
                i
                for i, name in enumerate(names)
                if name.lower() == "split" and i not in (image, label)
            ),
            None,
        )
        return cls(image, label, split, is_fashion)

    def label_of(self, row: list[str]) -> str:
        """The class of a row. Raises LeftOut if it has none."""
        value = cell(row, self.label)
        name = normalize(FASHION.get(value, "") if self.is_fashion else value)
        if name in NO_CLASS:
            raise LeftOut(NO_LABEL, value)
        return name

    def split_of(self, row: list[str], line: int, file: Path) -> str | None:
        """The split that a row asks for; None where no column says. BadInput for any other word."""
        if self.split is None:
            return None
        word = cell(row, self.split)
        if word.lower() not in SPLITS:
            raise BadInput(
                f"{file}: line {line}: split {word[:LONGEST_NAME]!r} is not one of {', '.join(SPLITS)}; mend it, or give the column another name"
            )
        return SPLITS[word.lower()]


def position(
    names: list[str], wanted: str | None, usual: tuple[str, ...], kind: str, file: Path
) -> int:
    """Of the column `wanted`, or else of the first with a usual name."""
    simplified = ["".join(filter(str.isalnum, name)).lower() for name in names]
    found = (
        [names.index(wanted)]
        if wanted in names
        else [simplified.index(n) for n in usual if wanted is None and n in simplified]
    )
    if not found:
        shown = ", ".join(filter(None, names[:COLUMNS_SHOWN])) + (
            ", ..." if len(names) > COLUMNS_SHOWN else ""
        )
        problem = (
            f"no column {wanted!r}" if wanted else f"it is not plain which column is the {kind}"
        )
        raise BadInput(
            f"{file}: {problem}; name one with --{kind}-column: {shown[:LONGEST_SHOWN] or 'there are none'}"
        )
    return found[0]


def cell(row: list[str], column: int) -> str:
    return row[column].strip() if column < len(row) else ""


class Files:
    """What files there are in a folder and those below it, for a million rows: each folder is listed once, and no file is asked for."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        self.listed: dict[str, Listing] = {}  # {a real folder: its files}
        self.known: dict[
            str, Listing | None
        ] = {}  # {a folder as a row gives it: its files}; None: it leads out

    def find(self, value: str) -> str:
        r"""The path within the folder of what a row gives: a path in there, or a name in images/ with or without an ending.

        Of the file with exactly this name, else of the one that a table from another system means: `images\1.JPG`.
        Raises LeftOut if it is not there, if there are several such files, and if it would be somewhere else.
        """
        if not value or len(value) > LONGEST_PATH:
            raise LeftOut(NO_IMAGE, value)
        paths = [
            os.path.normpath(path) for path in dict.fromkeys((value, value.replace("\\", "/")))
        ]
        for path in paths:
            if f"{path}/".startswith(("/", "../")):
                raise LeftOut(OUTSIDE, value)
            for parent, name in places(path):
                if name in self.names_in(parent, value).names:
                    return f"{parent}{name}"
        for parent, name in (place for path in paths for place in places(path)):
            if same := self.names_in(parent, value).by_spelling.get(spelling(name)):
                if len(same) > 1:
                    raise LeftOut(SEVERAL, value)
                return f"{parent}{same[0]}"
        raise LeftOut(NO_IMAGE, value)

    def names_in(self, parent: str, value: str) -> "Listing":
        """The files of a folder, which ends with / or is empty. Raises LeftOut if it leads out, for the row that gave the value."""
        if parent not in self.known:
            self.known[parent] = self.files_in(parent)
        if (files := self.known[parent]) is None:
            raise LeftOut(OUTSIDE, value)
        return files

    def files_in(self, parent: str) -> "Listing | None":
        folder = f"{self.root}/{parent}"
        if not os.path.isdir(folder):  # noqa: PTH112 (Path's raises for a name too long); before realpath: that looks for every part of it
            return NOTHING
        real = os.path.realpath(folder)
        if not Path(real).is_relative_to(self.root):
            return None
        if real not in self.listed:
            with os.scandir(real) as entries:
                self.listed[real] = Listing(
                    e.name for e in entries if not e.is_dir(follow_symlinks=False)
                )
        return self.listed[real]


class Listing:
    """The files of one folder."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = frozenset(names)

    @cached_property
    def by_spelling(self) -> dict[str, list[str]]:
        """Those of one `spelling`; only of folders in which a row's file was not found at once."""
        found = defaultdict(list)
        for name in self.names:
            found[spelling(name)].append(name)
        return found


NOTHING = Listing()


def places(path: str) -> Iterator[tuple[str, str]]:
    """Folder and name, where the file of a row may be."""
    for candidate in (path, *(f"images/{path}{ending}" for ending in ENDINGS)):
        parent, slash, name = candidate.rpartition("/")
        yield parent + slash, name


def spelling(name: str) -> str:
    """The same for names that Windows and macOS may write in place of each other."""
    stem, dot, suffix = normalize(name).rpartition(".")
    return f"{stem}.{suffix.lower()}" if dot else suffix


def read(file: Path, columns: Columns) -> Table:
    """The photos that a table names, in the folder that it lies in.

    A photo to which rows give different classes is left out, because nothing tells which one is right.
    BadInput if it is no table, if its columns cannot be told, and if no class has photos enough.
    """
    rows = rows_of(file)
    layout = Layout.of(next(rows, (0, []))[1], columns, file)
    places: dict[str, tuple[str | None, str]] = {}  # {photo: its split and class}
    equal: dict[tuple[str | None, str], tuple[str | None, str]] = {}  # of a million rows
    repeated: Counter[str] = Counter()  # {photo: further rows with it}
    conflicts: dict[str, str] = {}  # {photo: the first that gives it another class}
    left_out: Counter[str] = Counter()  # {why: rows}
    examples: dict[str, str] = {}  # {why: the first of them}
    files = Files(file.parent)
    for line, row in rows:
        try:
            path, name = files.find(cell(row, layout.image)), layout.label_of(row)
        except LeftOut as error:
            left_out[error.why] += 1
            examples.setdefault(
                error.why, f"line {line}: {shorten(error.value, LONGEST_EXAMPLE) or 'empty'}"
            )
            continue
        if path not in places:
            place = layout.split_of(row, line, file), name
            places[path] = equal.setdefault(place, place)
            continue
        repeated[path] += 1
        if name != (first := places[path][1]):
            conflicts.setdefault(
                path,
                f"line {line}: {', '.join(shorten(text, LONGEST_EXAMPLE) for text in (path, first, name))}",
            )
    for path, example in conflicts.items():
        del places[path]
        left_out[CONFLICT] += 1 + repeated.pop(path)
        examples.setdefault(CONFLICT, example)
    if repeated:
        left_out[AGAIN] = repeated.total()
        examples[AGAIN] = shorten(next(iter(repeated)), LONGEST_EXAMPLE)
    found: dict[str | None, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path, (split, name) in places.items():
        found[split][name].append(path)
    summary = f"{file}: {len(places)} photos of {len(places) + left_out.total()} rows"
    if left_out:
        summary += f"; left out: {', '.join(f'{count} {why} ({examples[why]})' for why, count in sorted(left_out.items()))}"
    return of_classes(found, columns.min_count, summary, file)


def of_classes(
    found: dict[str | None, dict[str, list[str]]], min_count: int, summary: str, file: Path
) -> Table:
    """The classes with photos enough.

    BadInput if there are none, if one has none to train on, and if one has a name that cannot be printed.
    """
    photos: Counter[str] = Counter()
    for classes in found.values():
        photos.update({name: len(paths) for name, paths in classes.items()})
    names = sorted(name for name, count in photos.items() if count >= min_count)
    few = [(name, count) for name, count in photos.most_common() if count < min_count]
    if not names:
        raise BadInput(f"{summary}; no class has {min_count} of them (--min-count)")
    for name in names:
        if not is_safe(name) or len(name) > LONGEST_NAME:
            raise BadInput(
                f"{file}: {name[:LONGEST_NAME]!r} cannot be the name of a class; use up to {LONGEST_NAME} printable characters, in UTF-8"
            )
        if None not in found and name not in found["train"]:
            raise BadInput(
                f"{file}: no photo of class {name} is in split train; move some there, or raise --min-count"
            )
    notes = [f"{summary}.", *alike(photos)]
    if few:
        shown = ", ".join(
            f"{escape(name)[:LONGEST_NAME]} {count}" for name, count in few[:CLASSES_SHOWN]
        )
        more = f" and {len(few) - CLASSES_SHOWN} more" if len(few) > CLASSES_SHOWN else ""
        total = sum(count for _, count in few)
        notes.append(
            f"{total} of these photos are left out, of classes with fewer than {min_count} (--min-count): {shown}{more}."
        )
    kept = {
        split: {name: sorted(classes[name]) for name in names if name in classes}
        for split, classes in found.items()
    }
    return Table({split: classes for split, classes in kept.items() if classes}, tuple(notes))


def alike(names: Iterable[str]) -> list[str]:
    """What to say of classes that may be one: names that differ in case and spaces only, and numbers of one value."""
    groups: dict[object, list[str]] = defaultdict(list)
    for name in sorted(names):
        plain = " ".join(name.casefold().split())
        groups[Decimal(plain) if NUMBER.fullmatch(plain) else plain].append(name)
    same = [
        " and ".join(f"'{shorten(name, LONGEST_EXAMPLE)}'" for name in group)
        for group in groups.values()
        if len(group) > 1
    ]
    if not same:
        return []
    more = f", and {len(same) - CLASSES_SHOWN} more such names" if len(same) > CLASSES_SHOWN else ""
    return [
        f"Classes that look alike: {', '.join(same[:CLASSES_SHOWN])}{more}. They count as different; give them one name if they are the same."
    ]
