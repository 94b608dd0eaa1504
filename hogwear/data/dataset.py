"""Find the photos: folders or a table -> paths and classes for train, val and test.

data/train/CLASS/*  data/val/CLASS/*  data/test/CLASS/*
                    in any case; see class_names.SPLIT_NAMES; val and test may be missing
data/CLASS/*        split here (splitting.py), and remembered in model/split.json
                    CLASS/* includes subfolders, at any depth
data/NAME.csv       and the photos that it names; split here unless it has a column called split
data/ is empty      the built-in sample

Beside any of these, data/corrections.csv changes classes: see corrections.py.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hogwear.data import contents, products, tables
from hogwear.data.class_names import note_similar_names
from hogwear.data.corrections import Corrections, Labelled, Listed, apply_corrections
from hogwear.data.folders import DataFolder, require_inside
from hogwear.data.photos import Photos, Split
from hogwear.data.sample import generate
from hogwear.data.splitting import SHARES, Splitter
from hogwear.data.tables import GUESSED, Columns, Table
from hogwear.system.arrays import Int64Array
from hogwear.system.errors import BadInput
from hogwear.system.paths import Paths
from hogwear.system.text import plural


class Listing(NamedTuple):
    """The photos by name, before any of them is opened."""

    class_names: tuple[str, ...]
    splits: Listed
    folder: Path  # of the photos that are to be split, for messages
    notes: list[str]


def find_photos(
    data_dir: Path,
    cache_dir: Path,
    columns: Columns = GUESSED,
    splitter: Splitter | None = None,
    output_folders: Iterable[Path] = (),
) -> Photos:
    """The photos in `data_dir`, or the built-in sample, drawn into `cache_dir`, if it is empty.

    A table is read by its `columns`, which also say what the products are. Photos without a split
    are split by `splitter`, by default as if they were all new. The `output_folders` are ignored.
    Raises BadInput for a folder that is missing or has another layout, and for a class without
    photos.
    """
    is_sample = is_empty(data_dir, output_folders)
    data = users_folder = DataFolder(data_dir, output_folders)
    table = tables.find_table(data_dir, data.entries, columns)
    if is_sample:
        data = DataFolder(generate.ensure_sample(cache_dir / "sample"), output_folders)
    if not data.folders and not table:
        raise BadInput(
            f"{data_dir}: {plural(len(data.entries), 'file')} but no folders; expected one folder "
            f"per class: {data_dir}/CLASS/*.jpg, or a table: *.csv"
        )
    if table:
        require_inside(table, data_dir)
        if columns.group_by == products.BY_FOLDER or (columns.group_by and columns.group):
            raise BadInput(
                f"{table}: --group-by {columns.group_by} is about folders, and this is a table; "
                "use --group-column alone"
            )
        found = tables.read_table(table, columns)
        data.add_unnamed(found.unnamed, found.folders)
        listing = list_table(found, data_dir, columns.group)
    elif folders := data.find_splits():
        listing = list_split_folders(data, folders, columns.group_by)
    else:
        listing = list_class_folders(data, columns.group_by)
    if len(listing.class_names) < 2:
        only = listing.class_names[0]
        raise BadInput(f"{data.path}: only one class ({only}); a classifier needs at least two")
    listing, corrections = correct(listing, users_folder, is_sample)
    splitter = splitter or Splitter()
    splits = make_splits(listing, data.path, cache_dir, splitter)
    train, val, test = splits["train"], splits["val"], splits.get("test")
    conflicts = note_conflicting_labels([train, val], data.path)
    notes = (*listing.notes, *data.notes, *conflicts, *splitter.notes)
    photos = Photos(data.path, listing.class_names, train, val, test, is_sample, notes, corrections)
    fix = products.OWN_SPLIT if None in listing.splits else products.USER_SPLIT
    return replace(photos, warnings=tuple(products.warn_about_divided(photos.splits, fix)))


def is_empty(data_dir: Path, output_folders: Iterable[Path] = ()) -> bool:
    """Whether it holds at most `output_folders`, so that the built-in sample is used.

    Raises BadInput if the folder is missing.
    """
    if not data_dir.is_dir():
        raise BadInput(f"{data_dir}: no such folder; make it and put photos in {data_dir}/CLASS/")
    return not DataFolder(data_dir, output_folders).entries


def correct(
    listing: Listing, folder: DataFolder, is_sample: bool
) -> tuple[Listing, Corrections | None]:
    """The photos as corrections.csv has them, if there is one in the user's folder.

    BadInput for several of them, and as apply_corrections.
    """
    if not folder.corrections:
        return listing, None
    file, *others = sorted(folder.corrections)
    if others:
        raise BadInput(f"{folder.path}: found both {file.name} and {others[0].name}; keep only one")
    if is_sample:
        note = f"{file} is not used, because there are no photos in {folder.path}."
        return listing._replace(notes=[*listing.notes, note]), None
    require_inside(file, folder.path)
    splits, corrections = apply_corrections(file, folder.path, listing.class_names, listing.splits)
    return listing._replace(splits=splits), corrections


def list_split_folders(data: DataFolder, folders: dict[str, Path], group_by: str | None) -> Listing:
    found = {split: data.find_classes(folder) for split, folder in folders.items()}
    class_names = tuple(found["train"])
    for split in found:
        if unknown := sorted(set(found[split]) - set(class_names)):
            raise BadInput(
                f"{folders[split]}: class {unknown[0]} is not in train; the classes there are "
                f"{', '.join(class_names)}"
            )
    whole = [
        {name: classes.get(name, Paths()) for name in class_names} for classes in found.values()
    ]
    grouped = products.group_by_folder(whole, group_by)
    splits: Listed = {
        split: Labelled(*label_photos(folders[split], classes.values()), keys)
        for split, classes, keys in zip(found, whole, grouped.keys, strict=True)
    }
    notes = [*note_similar_names(class_names), *grouped.notes]
    return Listing(class_names, splits, folders["train"], notes)


def list_class_folders(data: DataFolder, group_by: str | None) -> Listing:
    found = data.find_classes(data.path)
    (keys,), notes = products.group_by_folder([found], group_by)
    labelled = Labelled(*label_photos(data.path, found.values()), keys)
    notes = [*note_similar_names(found), *notes]
    return Listing(tuple(found), {None: labelled}, data.path, notes)


def list_table(table: Table, data_dir: Path, column: str | None) -> Listing:
    class_names = tuple(sorted(table.found.get(None) or table.found["train"]))
    ordered = {
        split: [classes.get(name, []) for name in class_names]
        for split, classes in table.found.items()
    }
    grouped = products.group_by_column(list(ordered.values()), table.products, column)
    splits: Listed = {
        split: Labelled(*label_photos(data_dir, map(Paths, classes)), keys)
        for (split, classes), keys in zip(ordered.items(), grouped.keys, strict=True)
    }
    return Listing(class_names, splits, data_dir, [*table.notes, *grouped.notes])


def label_photos(folder: Path, paths_by_label: Iterable[Paths]) -> tuple[Paths, Int64Array]:
    """Photos with their labels, from the paths of each class within a folder."""
    classes = list(paths_by_label)
    paths = Paths(f"{folder}/{file}" for files in classes for file in files.strings())
    return paths, np.repeat(np.arange(len(classes)), [len(files) for files in classes])


def make_splits(
    listing: Listing, root: Path, cache_dir: Path, splitter: Splitter
) -> dict[str, Split]:
    """{split: its photos}; test only if there is one. Reads photos that the cache does not know."""
    parts = listing.splits.values()
    paths = Paths.joined(part.paths for part in parts)
    labels = np.concatenate([part.labels for part in parts])
    keys = np.concatenate([part.products for part in parts])
    hashes, unread = contents.read_contents(paths, root, cache_dir, splitter.limits)
    whole = Split("all", paths, labels, root, hashes, keys, unread)
    if None in listing.splits:
        return splitter.split(whole, listing.class_names, SHARES, listing.folder)
    names = [str(name) for name in listing.splits]
    split_of = np.repeat(names, [len(part.labels) for part in parts])
    splits = {name: whole.where(split_of == name, name) for name in names}
    if "val" not in splits:
        shares = {"val": SHARES["val"]}
        splits |= splitter.split(splits["train"], listing.class_names, shares, listing.folder)
    return splits


def note_conflicting_labels(splits: list[Split], root: Path) -> Iterator[str]:
    """A note if the same file is in two classes, where one of them must be wrong."""
    paths = Paths.joined(split.paths for split in splits)
    labels = np.concatenate([split.labels for split in splits])
    hashes = np.concatenate([split.hashes for split in splits])
    order = np.lexsort((labels, contents.view_as_keys(hashes)))
    labels, hashes = labels[order], hashes[order]
    is_same = (hashes[1:] == hashes[:-1]).all(axis=1) & hashes[1:].any(axis=1)
    conflicts = np.flatnonzero(is_same & (labels[1:] != labels[:-1]))
    if len(conflicts):
        one, other = (paths[int(order[conflicts[0] + i])].relative_to(root) for i in (0, 1))
        yield (
            f"In two classes: {plural(len(conflicts), 'photo')}, for example {one} and {other}; "
            "the doctor lists all of them."
        )
