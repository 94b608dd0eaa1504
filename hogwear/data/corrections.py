"""data/corrections.csv: photos that belong to another class than their folder or table says.

    file,class
    boots/17.jpg,sandals
    boots/18.jpg,-          this photo is left out

Photos stay where they are, and in their split, which goes by content. The file is as untrusted as a
table: a path that leads out of the data folder names no photo.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hogwear.data.class_names import MAX_NAME, MAX_NAMES
from hogwear.data.csv_rows import read_rows
from hogwear.data.row_files import RowFiles, SkippedRow
from hogwear.system.arrays import Int64Array, UInt8Array
from hogwear.system.errors import BadInput
from hogwear.system.paths import Paths
from hogwear.system.text import join_some, normalize, plural, shorten, to_cell

CORRECTIONS = "corrections.csv"
COLUMNS = ("file", "class")
LEAVE_OUT = "-"  # in place of a class
LEFT_OUT = -1  # in place of a label


class Labelled(NamedTuple):
    """Photos with what is known of them by name."""

    paths: Paths
    labels: Int64Array  # (n,)
    products: UInt8Array  # (n, HASH_SIZE): see products.py


Listed = dict[str | None, Labelled]  # {split: its photos}; None: not split yet


class Row(NamedTuple):
    """What a row says about a photo."""

    line: int
    label: int  # or LEFT_OUT


class TableRow(NamedTuple):
    """A row of the file as it is."""

    line: int
    cells: list[str]
    path: str | None  # within the data folder, of the file that it names
    file: str  # how it names it
    class_name: str


class Table(NamedTuple):
    """The file as it is."""

    header: list[str]
    rows: Iterator[TableRow]


@dataclass(frozen=True)
class Corrections:
    """How many photos a file with corrections changes."""

    file: Path
    relabelled: int
    left_out: int
    unchanged: tuple[str, ...]  # rows of photos that are in that class anyway, as "line 3: a/1.jpg"
    unmatched: tuple[str, ...]  # rows that name no photo

    def describe(self) -> str:
        """One line for people."""
        parts = [f"{plural(self.relabelled, 'photo')} relabelled, {self.left_out} left out"]
        if self.unchanged:
            rows = plural(len(self.unchanged), "row changes", "rows change")
            parts.append(f"{rows} nothing ({self.unchanged[0]})")
        if self.unmatched:
            rows = plural(len(self.unmatched), "row names", "rows name")
            parts.append(f"{rows} no photo of the data set ({self.unmatched[0]})")
        return f"{self.file}: {'; '.join(parts)}."

    def to_json(self) -> dict[str, int]:
        return {
            "relabelled": self.relabelled,
            "left_out": self.left_out,
            "unchanged": len(self.unchanged),
            "unmatched": len(self.unmatched),
        }


def apply_corrections(
    file: Path, root: Path, class_names: Sequence[str], listed: Listed
) -> tuple[Listed, Corrections]:
    """The photos of the data folder `root`, corrected, and what the file with corrections changed.

    BadInput for a file that is not such a table, contradicts itself, names a class that does not
    exist or no photo at all, or takes all photos of a class out of train.
    """
    rows, unmatched = read_corrections(file, root, class_names)
    relabelled, left_out, unchanged = 0, 0, []
    corrected: Listed = {}
    for split, (paths, old, products) in listed.items():
        labels = old.copy()
        for i, path in enumerate(paths.strings()):
            if row := rows.pop(path := path.removeprefix(f"{root}/"), None):
                labels[i] = row.label
                if row.label == old[i]:
                    unchanged.append(describe_row(row.line, path))
        is_kept = labels != LEFT_OUT
        relabelled += int((labels != old)[is_kept].sum())
        left_out += int((~is_kept).sum())
        corrected[split] = Labelled(paths.where(is_kept), labels[is_kept], products[is_kept])
    unmatched += [describe_row(row.line, path) for path, row in rows.items()]
    if unmatched and not (relabelled or left_out or unchanged):
        example = next(path for photos in listed.values() for path in photos.paths.strings())
        raise BadInput(
            f"{file}: no row names a photo ({unmatched[0]}); expected paths within {root}, such as "
            f"{example.removeprefix(f'{root}/')}"
        )
    to_train_on = corrected.get(None) or corrected["train"]
    for label, count in enumerate(np.bincount(to_train_on.labels, minlength=len(class_names))):
        if not count:
            raise BadInput(
                f"{file}: leaves no photo of class {class_names[label]} to train on; keep some, or "
                "remove the class"
            )
    return corrected, Corrections(file, relabelled, left_out, tuple(unchanged), tuple(unmatched))


def read_corrections(
    file: Path, root: Path, class_names: Sequence[str]
) -> tuple[dict[str, Row], list[str]]:
    """{path within the data folder: what its row says}, and the rows that name no file.

    BadInput as in `apply_corrections`.
    """
    labels = {LEAVE_OUT: LEFT_OUT}
    for label, name in enumerate(class_names):
        labels |= {str(to_cell(name)): label, name: label}  # as a table of ours has it, or plain
    rows: dict[str, Row] = {}
    unmatched = []
    for row in read_table(file, root).rows:
        name = normalize(row.class_name)
        if name not in labels:
            raise BadInput(
                f"{file}: line {row.line}: class '{shorten(name, MAX_NAME)}' does not exist; "
                f"expected {join_some(class_names, MAX_NAMES)}, or {LEAVE_OUT} to leave the photo "
                "out"
            )
        if row.path is None:
            unmatched.append(describe_row(row.line, row.file or "empty"))
            continue
        first = rows.setdefault(row.path, Row(row.line, labels[name]))
        if first.label != labels[name]:
            raise BadInput(
                f"{file}: line {row.line}: {shorten(row.path, MAX_NAME)} has another class than in "
                f"line {first.line}; remove one of the two"
            )
    return rows, unmatched


def read_table(file: Path, root: Path) -> Table:
    """The rows of a file with corrections. Files are found as those of a table are.

    BadInput for a file that is not such a table.
    """
    lines = read_rows(file)
    header = next(lines, (1, []))[1]
    columns = [cell.strip().lower() for cell in header]
    if not set(COLUMNS) <= set(columns):
        raise BadInput(
            f"{file}: expected a first line with the columns {' and '.join(COLUMNS)}, found "
            f"{shorten(', '.join(columns), MAX_NAME) or 'nothing'}; correct it, or rename the file"
        )
    file_column, class_column = map(columns.index, COLUMNS)
    files = RowFiles(root)

    def read_row(line: int, cells: list[str]) -> TableRow:
        cells += [""] * (len(header) - len(cells))
        value, name = cells[file_column], cells[class_column].strip()
        return TableRow(line, cells, find_file(files, root, value), value.strip(), name)

    return Table(header, (read_row(line, cells) for line, cells in lines))


def find_file(files: RowFiles, root: Path, value: str) -> str | None:
    """The path within the data folder, or None for a row that names no file.

    It may have spaces around it, and be given with the folder, as the doctor prints it.
    """
    trimmed = value.strip()
    for spelling in (value, trimmed, trimmed.removeprefix(f"{root}/")):
        with suppress(SkippedRow):
            return files.find(spelling)
    return None


def describe_row(line: int, value: str) -> str:
    return f"line {line}: {shorten(value, MAX_NAME)}"
