"""Which photos there are: folders, or a table -> (path, class) for train, val and test.

    data/train/CLASS/*  data/val/CLASS/*  data/test/CLASS/*      val may be called valid or validation, test may be missing
    data/CLASS/*                                                 split here, the same way ever after
    data/NAME.csv, and photos that it names                      likewise, unless it has a column called split
    data/ is empty                                               the built-in sample
"""

import hashlib
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hogwear import sample, tables
from hogwear.errors import BadInput, naming
from hogwear.tables import GUESSED, Columns, Table

FOLDER_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
SHARES = {"val": 0.15, "test": 0.15}  # of each class, where the split is ours
SPLIT_SEED = 0  # not a setting: train and eval must agree on what is test


class Paths:
    """Paths in one block of bytes, made into objects when asked for: 200,000 objects would be 40 MB."""

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self.encoded = os.fsencode("".join(f"{path}\0" for path in paths))  # NUL is the one byte that no path holds
        self.ends = np.flatnonzero(np.frombuffer(self.encoded, np.uint8) == 0)  # (n,)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> Path:
        start = self.ends[i - 1] + 1 if i else 0
        return Path(os.fsdecode(self.encoded[start : self.ends[i]]))

    def __iter__(self) -> Iterator[Path]:
        return map(Path, self.texts())

    def texts(self) -> list[str]:
        """All of them as str, for a moment: a tenth of the time that Path takes."""
        return os.fsdecode(self.encoded).split("\0")[:-1]


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
    notes: tuple[str, ...] = ()  # on the rows of its table, for people

    @property
    def evaluated(self) -> Split:
        """What eval and infer look at: test, or val where there is no test."""
        return self.test or self.val


def find(data_dir: Path, cache_dir: Path, columns: Columns = GUESSED) -> Photos:
    """The photos of `data_dir`; of the built-in sample, drawn into `cache_dir`, if it is empty. A table is read by its `columns`.

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
    if table:
        require_inside(table, data_dir)
        photos = from_table(tables.read(table, columns), data_dir, cache_dir)
    elif parts["train"]:
        photos = from_split_folders(data_dir, parts, is_sample)
    elif parts["val"] or parts["test"]:
        raise BadInput(f"{data_dir}: there is {', '.join(parts['val'] + parts['test'])} but no train; expected train/CLASS/*")
    else:
        photos = from_class_folders(data_dir, cache_dir, is_sample)
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


def classes_in(folder: Path, root: Path) -> dict[str, list[str]]:
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
            found[entry.name] = sorted(e.name for e in visible(Path(entry.path)) if not e.is_dir(follow_symlinks=False))
            if not found[entry.name]:
                raise BadInput(f"{entry.path}: no photos in this class; add some or remove the folder")
    if not found:
        raise BadInput(f"{folder}: no class folders in it; expected {folder}/CLASS/*.jpg")
    return found


def make_split(name: str, folder: Path, class_names: tuple[str, ...], found: dict[str, list[str]], root: Path) -> Split:
    return labelled(name, [(str(folder / c), found.get(c, [])) for c in class_names], root)


def labelled(name: str, classes: list[tuple[str, list[str]]], root: Path) -> Split:
    """A split of (folder, files in it) for each class, in order."""
    paths = Paths(f"{folder}/{file}" for folder, files in classes for file in files)
    return Split(name, paths, np.repeat(np.arange(len(classes)), [len(files) for _, files in classes]), root)


def from_split_folders(data_dir: Path, parts: dict[str, list[str]], is_sample: bool) -> Photos:
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
        found["train"], found["val"] = divide(folders["train"], found["train"], SHARES["val"])
    splits = {name: make_split(name, folders[name], class_names, classes, data_dir) for name, classes in found.items()}
    return Photos(data_dir, class_names, splits["train"], splits["val"], splits.get("test"), is_sample)


def divide(folder: Path, found: dict[str, list[str]], share: float) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Each class in two, the second with about `share` of it and at least one photo, the same way every time."""
    keep, taken = {}, {}
    for name, files in found.items():
        if len(files) < 2:
            raise BadInput(f"{folder / name}: one photo only; a class needs at least 2 to train on and to validate with")
        order = np.random.default_rng(SPLIT_SEED).permutation(len(files))
        count = max(1, round(share * len(files)))
        taken[name] = [files[i] for i in np.sort(order[:count])]
        keep[name] = [files[i] for i in np.sort(order[count:])]
    return keep, taken


def from_class_folders(data_dir: Path, cache_dir: Path, is_sample: bool) -> Photos:
    found = classes_in(data_dir, data_dir)
    parts, class_names = divide_by_manifest(data_dir, found, cache_dir), tuple(found)
    train, val, test = (make_split(split, data_dir, class_names, parts[split], data_dir) for split in FOLDER_NAMES)
    return Photos(data_dir, class_names, train, val, test, is_sample)


def from_table(table: Table, data_dir: Path, cache_dir: Path) -> Photos:
    parts = divide_by_manifest(data_dir, table.found[None], cache_dir) if None in table.found else dict(table.found)
    if "val" not in parts:
        parts["train"], parts["val"] = divide(data_dir, parts["train"], SHARES["val"])
    class_names = tuple(sorted(parts["train"]))
    splits = {
        name: labelled(name, [(str(data_dir), parts[name].get(c, [])) for c in class_names], data_dir)
        for name in FOLDER_NAMES if name in parts
    }  # fmt: skip
    return Photos(data_dir, class_names, splits["train"], splits["val"], splits.get("test"), False, table.notes)


def divide_by_manifest(folder: Path, found: dict[str, list[str]], cache_dir: Path) -> dict[str | None, dict[str, list[str]]]:
    """Our own split, stratified by class. Its manifest in the cache keeps a photo where it once was.

    New photos are divided among themselves, so that adding some never moves another from test to train.
    """
    slot = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    manifest = cache_dir / f"split-{slot}.json"
    known: dict[str, str] = json.loads(manifest.read_text()) if manifest.exists() else {}
    parts = by_split(found, known)
    for name, files in parts[None].items():
        if len(found[name]) < 3:
            raise BadInput(f"{folder / name}: {len(found[name])} photos; a class needs at least 3, for train, val and test")
        order = np.random.default_rng(SPLIT_SEED).permutation(len(files))
        for split, share in SHARES.items():
            count = max(0 if parts[split][name] else 1, round(share * len(files)))
            chosen, order = order[:count], order[count:]
            known |= {f"{name}/{files[i]}": split for i in chosen}
        known |= {f"{name}/{files[i]}": "train" for i in order}
    if parts[None]:
        write_atomically(manifest, json.dumps(known, indent=1).encode())
        parts = by_split(found, known)
    if gone := [name for name in found if not parts["train"][name]]:
        raise BadInput(f"{folder / gone[0]}: all its photos to train on are gone; add some, or delete {manifest} to split anew")
    return parts


def by_split(found: dict[str, list[str]], known: dict[str, str]) -> dict[str | None, dict[str, list[str]]]:
    """{split: {class: names of its files}} by a manifest {CLASS/NAME: split}; files that it does not know under None."""
    parts: dict[str | None, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, files in found.items():
        for file in files:
            parts[known.get(f"{name}/{file}")][name].append(file)
    return parts


def write_atomically(path: Path, content: bytes) -> None:
    """All of it or nothing, whoever else writes at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise


def counts(split: Split, class_names: Iterable[str]) -> dict[str, int]:
    """{class: photos of it}."""
    per_class = np.bincount(split.labels, minlength=len(tuple(class_names)))
    return dict(zip(class_names, per_class.tolist(), strict=True))


if __name__ == "__main__":  # python -m hogwear.dataset doctor
    from hogwear import doctor

    doctor.run()
