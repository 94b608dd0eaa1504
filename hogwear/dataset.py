"""Which photos there are: folders, or a table -> (path, class) for train, val and test.

    data/train/CLASS/*  data/val/CLASS/*  data/test/CLASS/*      in any case; other names: tables.SPLITS; val and test may be missing
    data/CLASS/*                                                 divided by us (division.py), the same way ever after
    data/NAME.csv, and photos that it names                      likewise, unless it has a column called split
    data/ is empty                                               the built-in sample
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hogwear import sample, tables
from hogwear.decoding import LIMITS, Limits
from hogwear.division import SHARES, Divider
from hogwear.errors import BadInput
from hogwear.files import Paths
from hogwear.folders import ClassFolder, DataFolder, require_inside
from hogwear.tables import GUESSED, Columns, Table

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """Photos of one split; row i of everything made from it is paths[i]."""

    name: str
    paths: Paths
    labels: npt.NDArray[np.int64]  # (n,) indices into class_names
    root: Path  # the folder that no link of a photo may lead out of

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Photos:
    """A whole data folder."""

    folder: Path
    class_names: tuple[str, ...]  # sorted; the order of the network's outputs
    train: Split
    val: Split
    test: Split | None
    is_sample: bool
    notes: tuple[str, ...] = ()  # on folders that are not used, on the rows of its table, on how they were divided; for people

    @property
    def evaluated(self) -> Split:
        """What eval and infer look at: test, or val where there is no test."""
        return self.test or self.val


def find(data_dir: Path, cache_dir: Path, columns: Columns = GUESSED, limits: Limits = LIMITS, own: Iterable[Path] = ()) -> Photos:
    """The photos of `data_dir`; of the built-in sample, drawn into `cache_dir`, if it is empty. A table is read by its `columns`.

    New photos without a split are looked at, within the `limits`, to keep near duplicates on one side of ours. Folders
    of our `own` in there are not looked at.

    Raises BadInput for a folder that is missing or laid out otherwise, and for a class without photos.
    """
    if not data_dir.is_dir():
        raise BadInput(f"{data_dir}: no such folder; make it and put photos in {data_dir}/CLASS/")
    folder = DataFolder(data_dir, own)
    table = tables.find(data_dir, folder.entries, columns)
    if is_sample := not folder.entries:
        folder = DataFolder(sample.ensure(cache_dir / "sample"), own)
    if not folder.folders and not table:
        raise BadInput(f"{data_dir}: {len(folder.entries)} files but no folders; expected a folder a class: {data_dir}/CLASS/*.jpg, or a table: *.csv")
    divide = Divider(folder.path, cache_dir, limits)
    if table:
        require_inside(table, data_dir)
        photos = from_table(tables.read(table, columns), data_dir, divide)
    elif splits := folder.splits():
        photos = from_split_folders(folder, splits, divide)
    else:
        photos = from_class_folders(folder, divide)
    photos = replace(photos, is_sample=is_sample, notes=folder.notes + photos.notes)
    if len(photos.class_names) < 2:
        raise BadInput(f"{photos.folder}: one class only ({photos.class_names[0]}); a classifier needs two or more")
    return photos


def labelled(name: str, classes: list[ClassFolder], root: Path) -> Split:
    """A split of the photos of each class in order."""
    paths = Paths(f"{folder}/{file}" for folder, files in classes for file in files.texts())
    return Split(name, paths, np.repeat(np.arange(len(classes)), [len(files) for _, files in classes]), root)


def from_split_folders(data: DataFolder, folders: dict[str, Path], divide: Divider) -> Photos:
    found = {split: data.classes(folder) for split, folder in folders.items()}
    class_names = tuple(found["train"])
    for split in found:
        if unknown := sorted(set(found[split]) - set(class_names)):
            raise BadInput(f"{folders[split]}: class {unknown[0]} is not in train; the classes there: {', '.join(class_names)}")
    if "val" not in found:
        found |= divided(divide, folders["train"], found["train"], {"val": SHARES["val"]})
    nothing = ClassFolder(data.path, Paths())
    splits = {name: labelled(name, [classes.get(c, nothing) for c in class_names], data.path) for name, classes in found.items()}
    return Photos(data.path, class_names, splits["train"], splits["val"], splits.get("test"), False, (*tables.alike(class_names), *divide.notes))


def from_class_folders(data: DataFolder, divide: Divider) -> Photos:
    found = data.classes(data.path)
    parts = divided(divide, data.path, found, SHARES)
    train, val, test = (labelled(split, list(parts[split].values()), data.path) for split in SPLITS)
    return Photos(data.path, tuple(found), train, val, test, False, (*tables.alike(found), *divide.notes))


def divided(divide: Divider, folder: Path, found: dict[str, ClassFolder], shares: dict[str, float]) -> dict[str, dict[str, ClassFolder]]:
    """The photos `found` in folder/CLASS/, by split and class."""
    folders = {name: where.folder for name, where in found.items()}
    parts = divide(folder, {name: list(where.files.texts()) for name, where in found.items()}, folders, shares)
    return {split: {name: ClassFolder(folders[name], Paths(files)) for name, files in classes.items()} for split, classes in parts.items()}


def from_table(table: Table, data_dir: Path, divide: Divider) -> Photos:
    def divided(found: dict[str, list[str]], shares: dict[str, float]) -> dict[str, dict[str, list[str]]]:
        return divide(data_dir, found, dict.fromkeys(found, data_dir), shares)

    parts = divided(table.found[None], SHARES) if None in table.found else {str(split): found for split, found in table.found.items()}
    if "val" not in parts:
        parts |= divided(parts["train"], {"val": SHARES["val"]})
    class_names = tuple(sorted(parts["train"]))
    splits = {
        name: labelled(name, [ClassFolder(data_dir, Paths(parts[name].get(c, []))) for c in class_names], data_dir)
        for name in SPLITS if name in parts
    }  # fmt: skip
    return Photos(data_dir, class_names, splits["train"], splits["val"], splits.get("test"), False, (*table.notes, *divide.notes))


def counts(split: Split, class_names: Iterable[str]) -> dict[str, int]:
    """{class: photos of it}."""
    per_class = np.bincount(split.labels, minlength=len(tuple(class_names)))
    return dict(zip(class_names, per_class.tolist(), strict=True))


if __name__ == "__main__":  # python -m hogwear.dataset doctor
    from hogwear import doctor

    doctor.run()
