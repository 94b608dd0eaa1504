"""Which photos there are: folders, or a table -> (path, class) for train, val and test.

    data/train/CLASS/*  data/val/CLASS/*  data/test/CLASS/*      val may be called valid or validation, test may be missing
    data/CLASS/*                                                 divided by us (division.py), the same way ever after
    data/NAME.csv, and photos that it names                      likewise, unless it has a column called split
    data/ is empty                                               the built-in sample
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hogwear import sample, tables
from hogwear.decoding import LIMITS, Limits
from hogwear.division import SHARES, Divider
from hogwear.errors import BadInput
from hogwear.files import Paths
from hogwear.tables import GUESSED, Columns, Table

FOLDER_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


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
    notes: tuple[str, ...] = ()  # on the rows of its table, and on how they were divided, for people

    @property
    def evaluated(self) -> Split:
        """What eval and infer look at: test, or val where there is no test."""
        return self.test or self.val


def find(data_dir: Path, cache_dir: Path, columns: Columns = GUESSED, limits: Limits = LIMITS) -> Photos:
    """The photos of `data_dir`; of the built-in sample, drawn into `cache_dir`, if it is empty. A table is read by its `columns`.

    New photos without a split are looked at, within the `limits`, to keep near duplicates on one side of ours.

    Raises BadInput for a folder that is missing or laid out otherwise, and for a class without photos.
    """
    if not data_dir.is_dir():
        raise BadInput(f"{data_dir}: no such folder; make it and put photos in {data_dir}/CLASS/")
    entries = visible(data_dir)
    table = tables.find(data_dir, entries, columns)
    if is_sample := not entries:
        data_dir = sample.ensure(cache_dir / "sample")
        entries = visible(data_dir)
    names = {entry.name for entry in entries if entry.is_dir()}
    if not names and not table:
        raise BadInput(f"{data_dir}: {len(entries)} files but no folders; expected a folder a class: {data_dir}/CLASS/*.jpg, or a table: *.csv")
    parts = {split: [n for n in folder_names if n in names] for split, folder_names in FOLDER_NAMES.items()}
    divide = Divider(data_dir, cache_dir, limits)
    if table:
        require_inside(table, data_dir)
        photos = from_table(tables.read(table, columns), data_dir, divide)
    elif parts["train"]:
        photos = from_split_folders(data_dir, parts, is_sample, divide)
    elif parts["val"] or parts["test"]:
        raise BadInput(f"{data_dir}: there is {', '.join(parts['val'] + parts['test'])} but no train; expected train/CLASS/*")
    else:
        photos = from_class_folders(data_dir, is_sample, divide)
    if len(photos.class_names) < 2:
        raise BadInput(f"{photos.folder}: one class only ({photos.class_names[0]}); a classifier needs two or more")
    return photos


def visible(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, in no order, without hidden entries (.gitkeep, .DS_Store)."""
    with os.scandir(folder) as entries:
        return [e for e in entries if not e.name.startswith(".")]


def require_inside(path: Path, root: Path) -> None:
    """BadInput for a folder or table that is a link to somewhere outside of `root`."""
    if path.is_symlink() and not (target := path.resolve()).is_relative_to(root.resolve()):
        what = "folder" if target.is_dir() else "file"
        raise BadInput(f"{path}: a link that leads out of {root}, to {target}; put the {what} itself there, or mount it there")


def classes_in(folder: Path, root: Path) -> dict[str, Paths]:
    """{class: names of its files} for folder/CLASS/*, both sorted.

    BadInput if a class is empty, leads out of `root`, or has a name that cannot be printed.
    """
    found = {}
    for entry in sorted(visible(folder), key=lambda e: e.name):
        if entry.is_dir():
            if not entry.name.isprintable():
                raise BadInput(f"{folder}: the name of the class folder {entry.name!r} cannot be printed; rename it")
            require_inside(folder / entry.name, root)
            # Links, FIFOs and what else is no folder are named as skipped later, when nobody can exchange them any more.
            found[entry.name] = Paths(sorted(e.name for e in visible(Path(entry.path)) if not e.is_dir(follow_symlinks=False)))
            if not len(found[entry.name]):
                raise BadInput(f"{entry.path}: no photos in this class; add some or remove the folder")
    if not found:
        raise BadInput(f"{folder}: no class folders in it; expected {folder}/CLASS/*.jpg")
    return found


def labelled(name: str, folders: list[Path], files: list[Paths], root: Path) -> Split:
    """A split of a folder, and names of files in it, for each class in order."""
    paths = Paths(f"{folder}/{file}" for folder, names in zip(folders, files, strict=True) for file in names.texts())
    return Split(name, paths, np.repeat(np.arange(len(files)), [len(names) for names in files]), root)


def from_split_folders(data_dir: Path, parts: dict[str, list[str]], is_sample: bool, divide: Divider) -> Photos:
    for split, names in parts.items():
        if len(names) > 1:
            raise BadInput(f"{data_dir}: both {' and '.join(names)} are there; keep one of them as the {split} split")
    folders = {split: data_dir / names[0] for split, names in parts.items() if names}
    for folder in folders.values():
        require_inside(folder, data_dir)
    found = {split: classes_in(folder, data_dir) for split, folder in folders.items()}
    class_names = tuple(found["train"])
    for split in found:
        if unknown := sorted(set(found[split]) - set(class_names)):
            raise BadInput(f"{folders[split]}: class {unknown[0]} is not in train; the classes there: {', '.join(class_names)}")
    if "val" not in found:
        folders["val"] = folders["train"]
        found |= divided(divide, folders["train"], found["train"], {"val": SHARES["val"]})
    splits = {
        name: labelled(name, [folders[name] / c for c in class_names], [classes.get(c, Paths()) for c in class_names], data_dir)
        for name, classes in found.items()
    }
    return Photos(data_dir, class_names, splits["train"], splits["val"], splits.get("test"), is_sample, divide.notes)


def from_class_folders(data_dir: Path, is_sample: bool, divide: Divider) -> Photos:
    found = classes_in(data_dir, data_dir)
    parts, class_names = divided(divide, data_dir, found, SHARES), tuple(found)
    folders = [data_dir / name for name in class_names]
    train, val, test = (labelled(split, folders, list(parts[split].values()), data_dir) for split in FOLDER_NAMES)
    return Photos(data_dir, class_names, train, val, test, is_sample, divide.notes)


def divided(divide: Divider, folder: Path, found: dict[str, Paths], shares: dict[str, float]) -> dict[str, dict[str, Paths]]:
    """The photos `found` in folder/CLASS/, by split and class."""
    parts = divide(folder, {name: list(files.texts()) for name, files in found.items()}, {name: folder / name for name in found}, shares)
    return {split: {name: Paths(files) for name, files in classes.items()} for split, classes in parts.items()}


def from_table(table: Table, data_dir: Path, divide: Divider) -> Photos:
    def divided(found: dict[str, list[str]], shares: dict[str, float]) -> dict[str, dict[str, list[str]]]:
        return divide(data_dir, found, dict.fromkeys(found, data_dir), shares)

    parts = divided(table.found[None], SHARES) if None in table.found else {str(split): found for split, found in table.found.items()}
    if "val" not in parts:
        parts |= divided(parts["train"], {"val": SHARES["val"]})
    class_names = tuple(sorted(parts["train"]))
    splits = {
        name: labelled(name, [data_dir] * len(class_names), [Paths(parts[name].get(c, [])) for c in class_names], data_dir)
        for name in FOLDER_NAMES if name in parts
    }  # fmt: skip
    return Photos(data_dir, class_names, splits["train"], splits["val"], splits.get("test"), False, (*table.notes, *divide.notes))


def counts(split: Split, class_names: Iterable[str]) -> dict[str, int]:
    """{class: photos of it}."""
    per_class = np.bincount(split.labels, minlength=len(tuple(class_names)))
    return dict(zip(class_names, per_class.tolist(), strict=True))


if __name__ == "__main__":  # python -m hogwear.dataset doctor
    from hogwear import doctor

    doctor.run()
