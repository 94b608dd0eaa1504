"""Which photos there are: folders, or a table -> (path, class) for train, val and test.

    data/train/CLASS/*  data/val/CLASS/*  data/test/CLASS/*      val may be called valid or validation, test may be missing
    data/CLASS/*                                                 divided by us (division.py), as model/split.json remembers
    data/NAME.csv, and photos that it names                      likewise, unless it has a column called split
    data/ is empty                                               the built-in sample
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hogwear import contents, sample, tables
from hogwear.contents import Contents
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
    contents: Contents

    def __len__(self) -> int:
        return len(self.paths)

    def where(self, mask: npt.NDArray[np.bool_], name: str) -> "Split":
        """Those where the mask, (n,), is true, as a split of this name."""
        return Split(name, self.paths.where(mask), self.labels[mask], self.root, self.contents.where(mask))


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


@dataclass(frozen=True)
class Listed:
    """What is found, before any file is opened."""

    class_names: tuple[str, ...]
    splits: dict[str | None, tuple[Paths, npt.NDArray[np.int64]]]  # {split: photos and labels}; under None: not split
    divided: Path  # the folder of those that we divide, for messages
    notes: tuple[str, ...] = ()


def find(
    data_dir: Path, cache_dir: Path, columns: Columns = GUESSED, limits: Limits = LIMITS, divide: Divider | None = None
) -> Photos:
    """The photos of `data_dir`; of the built-in sample, drawn into `cache_dir`, if it is empty. A table is read by its `columns`.

    Those without a split are divided by `divide`; where that is None, as photos are that nobody has divided before.

    Raises BadInput for a folder that is missing or laid out otherwise, and for a class without photos.
    """
    is_sample = is_empty(data_dir)
    entries = visible(data_dir)
    table = tables.find(data_dir, entries, columns)
    if is_sample:
        data_dir = sample.ensure(cache_dir / "sample")
        entries = visible(data_dir)
    names = {entry.name for entry in entries if entry.is_dir()}
    if not names and not table:
        raise BadInput(f"{data_dir}: {len(entries)} files but no folders; expected a folder a class: {data_dir}/CLASS/*.jpg, or a table: *.csv")
    parts = {split: [n for n in folder_names if n in names] for split, folder_names in FOLDER_NAMES.items()}
    if table:
        require_inside(table, data_dir)
        listed = from_table(tables.read(table, columns), data_dir)
    elif parts["train"]:
        listed = from_split_folders(data_dir, parts)
    elif parts["val"] or parts["test"]:
        raise BadInput(f"{data_dir}: there is {', '.join(parts['val'] + parts['test'])} but no train; expected train/CLASS/*")
    else:
        listed = from_class_folders(data_dir)
    if len(listed.class_names) < 2:
        raise BadInput(f"{data_dir}: one class only ({listed.class_names[0]}); a classifier needs two or more")
    divide = divide or Divider(limits=limits)
    splits = splits_of(listed, data_dir, cache_dir, limits, divide)
    return Photos(data_dir, listed.class_names, splits["train"], splits["val"], splits.get("test"), is_sample, (*listed.notes, *divide.notes))


def splits_of(listed: Listed, root: Path, cache_dir: Path, limits: Limits, divide: Divider) -> dict[str, Split]:
    """{split: its photos}, test only where there is one. Each file is looked into unless the cache knows what is in it."""
    paths = Paths(path for paths, _ in listed.splits.values() for path in paths.texts())
    whole = Split("all", paths, np.concatenate([labels for _, labels in listed.splits.values()]), root, contents.of(paths, root, cache_dir, limits))
    if None in listed.splits:
        return divide(whole, listed.class_names, SHARES, listed.divided)
    split_of = np.repeat(np.arange(len(listed.splits)), [len(labels) for _, labels in listed.splits.values()])
    splits = {str(name): whole.where(split_of == i, str(name)) for i, name in enumerate(listed.splits)}
    if "val" not in splits:
        splits |= divide(splits["train"], listed.class_names, {"val": SHARES["val"]}, listed.divided)
    return splits


def is_empty(data_dir: Path) -> bool:
    """Whether there is nothing in it, so that the built-in sample is used. BadInput for a folder that is missing."""
    if not data_dir.is_dir():
        raise BadInput(f"{data_dir}: no such folder; make it and put photos in {data_dir}/CLASS/")
    return not visible(data_dir)


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


def labelled(folders: list[Path], files: list[Paths]) -> tuple[Paths, npt.NDArray[np.int64]]:
    """Photos and labels, of a folder, and names of files in it, for each class in order."""
    paths = Paths(f"{folder}/{file}" for folder, names in zip(folders, files, strict=True) for file in names.texts())
    return paths, np.repeat(np.arange(len(files)), [len(names) for names in files])


def from_split_folders(data_dir: Path, parts: dict[str, list[str]]) -> Listed:
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
    splits: dict[str | None, tuple[Paths, npt.NDArray[np.int64]]] = {
        name: labelled([folders[name] / c for c in class_names], [classes.get(c, Paths()) for c in class_names])
        for name, classes in found.items()
    }
    return Listed(class_names, splits, folders["train"])


def from_class_folders(data_dir: Path) -> Listed:
    found = classes_in(data_dir, data_dir)
    return Listed(tuple(found), {None: labelled([data_dir / name for name in found], list(found.values()))}, data_dir)


def from_table(table: Table, data_dir: Path) -> Listed:
    class_names = tuple(sorted(table.found.get(None) or table.found["train"]))
    splits = {
        name: labelled([data_dir] * len(class_names), [Paths(classes.get(c, [])) for c in class_names])
        for name, classes in table.found.items()
    }
    return Listed(class_names, splits, data_dir, table.notes)


def counts(split: Split, class_names: Iterable[str]) -> dict[str, int]:
    """{class: photos of it}."""
    per_class = np.bincount(split.labels, minlength=len(tuple(class_names)))
    return dict(zip(class_names, per_class.tolist(), strict=True))


if __name__ == "__main__":  # python -m hogwear.dataset doctor
    from hogwear import doctor

    doctor.run()
