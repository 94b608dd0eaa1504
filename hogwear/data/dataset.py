"""Which photos there are: folders, or a table -> (path, class) for train, val and test.

data/train/CLASS/*  data/val/CLASS/*  data/test/CLASS/*      in any case; other names: tables.SPLITS; val and test may be missing
data/CLASS/*                                                 divided by us (division.py), as model/split.json remembers
data/NAME.csv, and photos that it names                      likewise, unless it has a column called split
data/ is empty                                               the built-in sample
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hogwear.data import contents, tables
from hogwear.data.folders import DataFolder, require_inside
from hogwear.data.photos import Photos, Split
from hogwear.data.sample import garments
from hogwear.data.splitting import SHARES, Splitter
from hogwear.data.tables import GUESSED, Columns, Table
from hogwear.system.arrays import Int64Array
from hogwear.system.errors import BadInput
from hogwear.system.files import Paths


@dataclass(frozen=True)
class Listed:
    """What is found, before any file is opened."""

    class_names: tuple[str, ...]
    splits: dict[
        str | None, tuple[Paths, Int64Array]
    ]  # {split: photos and labels}; under None: not split
    divided: Path  # the folder of those that we divide, for messages
    notes: tuple[str, ...] = ()


def find_photos(
    data_dir: Path,
    cache_dir: Path,
    columns: Columns = GUESSED,
    splitter: Splitter | None = None,
    output_folders: Iterable[Path] = (),
) -> Photos:
    """The photos of `data_dir`; of the built-in sample, drawn into `cache_dir`, if it is empty. A table is read by its `columns`.

    Those without a split are divided by `splitter`; where that is None, as photos are that nobody has divided before.
    Folders of our `own` in there are not looked at.

    Raises BadInput for a folder that is missing or laid out otherwise, and for a class without photos.
    """
    is_sample = is_empty(data_dir, output_folders)
    data = DataFolder(data_dir, output_folders)
    table = tables.find(data_dir, data.entries, columns)
    if is_sample:
        data = DataFolder(garments.ensure_sample(cache_dir / "sample"), output_folders)
    if not data.folders and not table:
        raise BadInput(
            f"{data_dir}: {len(data.entries)} files but no folders; expected a folder a class: {data_dir}/CLASS/*.jpg, or a table: *.csv"
        )
    if table:
        require_inside(table, data_dir)
        listed = from_table(tables.read(table, columns), data_dir)
    elif folders := data.splits():
        listed = from_split_folders(data, folders)
    else:
        listed = from_class_folders(data)
    if len(listed.class_names) < 2:
        raise BadInput(
            f"{data.path}: one class only ({listed.class_names[0]}); a classifier needs two or more"
        )
    splitter = splitter or Splitter()
    splits = splits_of(listed, data.path, cache_dir, splitter)
    notes = (
        *data.notes,
        *listed.notes,
        *in_two_classes([splits["train"], splits["val"]], data.path),
        *splitter.notes,
    )
    return Photos(
        data.path,
        listed.class_names,
        splits["train"],
        splits["val"],
        splits.get("test"),
        is_sample,
        notes,
    )


def splits_of(listed: Listed, root: Path, cache_dir: Path, splitter: Splitter) -> dict[str, Split]:
    """{split: its photos}, test only where there is one. Each file is looked into unless the cache knows what is in it."""
    paths = Paths.joined(paths for paths, _ in listed.splits.values())
    whole = Split(
        "all",
        paths,
        np.concatenate([labels for _, labels in listed.splits.values()]),
        root,
        contents.read_contents(paths, root, cache_dir, splitter.limits),
    )
    if None in listed.splits:
        return splitter.split(whole, listed.class_names, SHARES, listed.divided)
    split_of = np.repeat(
        np.arange(len(listed.splits)), [len(labels) for _, labels in listed.splits.values()]
    )
    splits = {
        str(name): whole.where(split_of == i, str(name)) for i, name in enumerate(listed.splits)
    }
    if "val" not in splits:
        splits |= splitter.split(
            splits["train"], listed.class_names, {"val": SHARES["val"]}, listed.divided
        )
    return splits


def in_two_classes(splits: list[Split], root: Path) -> Iterator[str]:
    """Whether the same photo, to the byte, is in two classes, for people: one of them is wrong."""
    paths = Paths.joined(split.paths for split in splits)
    labels, hashes = (
        np.concatenate([split.labels for split in splits]),
        np.concatenate([split.contents.hashes for split in splits]),
    )
    order = np.lexsort((labels, contents.view_as_keys(hashes)))
    labels, hashes = labels[order], hashes[order]
    same = (
        (hashes[1:] == hashes[:-1]).all(axis=1)
        & hashes[1:].any(axis=1)
        & (labels[1:] != labels[:-1])
    )
    if same.any():
        one, other = (paths[int(order[same.argmax() + i])].relative_to(root) for i in (0, 1))
        yield f"In two classes: {same.sum()} photos, such as {one} and {other}; the doctor lists them."


def is_empty(data_dir: Path, output_folders: Iterable[Path] = ()) -> bool:
    """Whether there is nothing in it but folders of our `own`, so that the built-in sample is used. BadInput for a folder that is missing."""
    if not data_dir.is_dir():
        raise BadInput(f"{data_dir}: no such folder; make it and put photos in {data_dir}/CLASS/")
    return not DataFolder(data_dir, output_folders).entries


def labelled(folder: Path, files: Iterable[Paths]) -> tuple[Paths, Int64Array]:
    """Photos and labels, of paths within a folder for each class in order."""
    files = list(files)
    paths = Paths(f"{folder}/{file}" for of_class in files for file in of_class.strings())
    return paths, np.repeat(np.arange(len(files)), [len(of_class) for of_class in files])


def from_split_folders(data: DataFolder, folders: dict[str, Path]) -> Listed:
    found = {split: data.classes(folder) for split, folder in folders.items()}
    class_names = tuple(found["train"])
    for split in found:
        if unknown := sorted(set(found[split]) - set(class_names)):
            raise BadInput(
                f"{folders[split]}: class {unknown[0]} is not in train; the classes there: {', '.join(class_names)}"
            )
    splits: dict[str | None, tuple[Paths, Int64Array]] = {
        split: labelled(folders[split], (classes.get(name, Paths()) for name in class_names))
        for split, classes in found.items()
    }
    return Listed(class_names, splits, folders["train"], tuple(tables.alike(class_names)))


def from_class_folders(data: DataFolder) -> Listed:
    found = data.classes(data.path)
    return Listed(
        tuple(found),
        {None: labelled(data.path, found.values())},
        data.path,
        tuple(tables.alike(found)),
    )


def from_table(table: Table, data_dir: Path) -> Listed:
    class_names = tuple(sorted(table.found.get(None) or table.found["train"]))
    splits = {
        split: labelled(data_dir, (Paths(classes.get(name, [])) for name in class_names))
        for split, classes in table.found.items()
    }
    return Listed(class_names, splits, data_dir, table.notes)


def count_per_class(split: Split, class_names: Iterable[str]) -> dict[str, int]:
    """{class: photos of it}."""
    per_class = np.bincount(split.labels, minlength=len(tuple(class_names)))
    return dict(zip(class_names, per_class.tolist(), strict=True))
