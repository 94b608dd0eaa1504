"""Which photos there are: folders -> (path, class) for train, val and test.

    data/train/CLASS/*  data/val/CLASS/*  data/test/CLASS/*      val may be called valid or validation, test may be missing
    data/CLASS/*                                                 split here, the same way ever after
    data/ is empty                                               the built-in sample
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hogwear import sample
from hogwear.errors import BadInput

FOLDER_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
SHARES = {"val": 0.15, "test": 0.15}  # of each class, where the split is ours
SPLIT_SEED = 0  # not a setting: train and eval must agree on what is test


@dataclass(frozen=True)
class Split:
    """Photos of one split; row i of everything made from it is paths[i]."""

    name: str
    paths: tuple[Path, ...]
    labels: tuple[int, ...]  # indices into class_names

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

    @property
    def evaluated(self) -> Split:
        """What eval and infer look at: test, or val where there is no test."""
        return self.test or self.val


def find(data_dir: Path, cache_dir: Path) -> Photos:
    """The photos of `data_dir`; of the built-in sample, drawn into `cache_dir`, if it is empty.

    Raises BadInput for a folder that is missing or laid out otherwise, and for a class without photos.
    """
    if not data_dir.is_dir():
        raise BadInput(f"{data_dir}: no such folder; make it and put photos in {data_dir}/CLASS/")
    entries = visible(data_dir)
    if is_sample := not entries:
        data_dir = sample.ensure(cache_dir / "sample")
        entries = visible(data_dir)
    names = {entry.name for entry in entries if entry.is_dir()}
    if not names:
        raise BadInput(f"{data_dir}: {len(entries)} files but no folders; expected a folder a class: {data_dir}/CLASS/*.jpg")
    parts = {split: [n for n in folder_names if n in names] for split, folder_names in FOLDER_NAMES.items()}
    if parts["train"]:
        photos = from_split_folders(data_dir, parts, is_sample)
    elif parts["val"] or parts["test"]:
        raise BadInput(f"{data_dir}: there is {', '.join(parts['val'] + parts['test'])} but no train; expected train/CLASS/*")
    else:
        photos = from_class_folders(data_dir, cache_dir, is_sample)
    if len(photos.class_names) < 2:
        raise BadInput(f"{photos.folder}: one class only ({photos.class_names[0]}); a classifier needs two or more class folders")
    return photos


def visible(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name, without hidden entries (.gitkeep, .DS_Store)."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)


def classes_in(folder: Path) -> dict[str, list[Path]]:
    """{class: its files} for folder/CLASS/*. BadInput if a class is empty."""
    found = {}
    for entry in visible(folder):
        if entry.is_dir():
            found[entry.name] = [Path(e.path) for e in visible(Path(entry.path)) if e.is_file()]
            if not found[entry.name]:
                raise BadInput(f"{entry.path}: no photos in this class; add some or remove the folder")
    if not found:
        raise BadInput(f"{folder}: no class folders in it; expected {folder}/CLASS/*.jpg")
    return found


def make_split(name: str, class_names: tuple[str, ...], found: dict[str, list[Path]]) -> Split:
    pairs = [(path, label) for label, c in enumerate(class_names) for path in found.get(c, [])]
    return Split(name, tuple(path for path, _ in pairs), tuple(label for _, label in pairs))


def from_split_folders(data_dir: Path, parts: dict[str, list[str]], is_sample: bool) -> Photos:
    for split, folders in parts.items():
        if len(folders) > 1:
            raise BadInput(f"{data_dir}: both {' and '.join(folders)} are there; keep one of them as the {split} split")
    found = {split: classes_in(data_dir / folders[0]) for split, folders in parts.items() if folders}
    class_names = tuple(found["train"])
    for split in found:
        if unknown := sorted(set(found[split]) - set(class_names)):
            raise BadInput(f"{data_dir / parts[split][0]}: class {unknown[0]} is not in train; the classes there: {', '.join(class_names)}")
    if "val" not in found:
        found["train"], found["val"] = divide(found["train"], SHARES["val"])
    splits = {name: make_split(name, class_names, classes) for name, classes in found.items()}
    return Photos(data_dir, class_names, splits["train"], splits["val"], splits.get("test"), is_sample)


def divide(found: dict[str, list[Path]], share: float) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Each class in two, the second with about `share` of it and at least one photo, the same way every time."""
    keep, taken = {}, {}
    for name, paths in found.items():
        if len(paths) < 2:
            raise BadInput(f"{paths[0].parent}: one photo only; a class needs at least 2 to train on and to validate with")
        order = np.random.default_rng(SPLIT_SEED).permutation(len(paths))
        count = max(1, round(share * len(paths)))
        taken[name] = [paths[i] for i in sorted(order[:count])]
        keep[name] = [paths[i] for i in sorted(order[count:])]
    return keep, taken


def from_class_folders(data_dir: Path, cache_dir: Path, is_sample: bool) -> Photos:
    """Our own split, stratified by class. Its manifest in the cache keeps a photo where it once was.

    New photos are divided among themselves, so that adding some never moves another from test to train.
    """
    found = classes_in(data_dir)
    slot = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:12]
    manifest = cache_dir / f"split-{slot}.json"
    known: dict[str, str] = json.loads(manifest.read_text()) if manifest.exists() else {}
    rest = {c: [p for p in paths if f"{c}/{p.name}" not in known] for c, paths in found.items()}
    for name, paths in rest.items():
        if paths and len(found[name]) < 3:
            raise BadInput(f"{data_dir / name}: {len(found[name])} photos; a class needs at least 3, for train, val and test")
        order = np.random.default_rng(SPLIT_SEED).permutation(len(paths))
        already = {s: sum(known.get(f"{name}/{p.name}") == s for p in found[name]) for s in SHARES}
        for split, share in SHARES.items():
            count = max(0 if already[split] else 1, round(share * len(paths)))
            chosen, order = order[:count], order[count:]
            known |= {f"{name}/{paths[i].name}": split for i in chosen}
        known |= {f"{name}/{paths[i].name}": "train" for i in order}
    if any(rest.values()):
        write_atomically(manifest, json.dumps(known, indent=1).encode())
    class_names = tuple(found)
    train, val, test = (
        make_split(s, class_names, {c: [p for p in paths if known[f"{c}/{p.name}"] == s] for c, paths in found.items()})
        for s in FOLDER_NAMES
    )
    if missing := set(range(len(class_names))) - set(train.labels):
        folder = data_dir / class_names[min(missing)]
        raise BadInput(f"{folder}: all its photos to train on are gone; add some, or delete {manifest} to split anew")
    return Photos(data_dir, class_names, train, val, test, is_sample)


def write_atomically(path: Path, content: bytes) -> None:
    """All of it or nothing, whoever else writes at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
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
    per_class = np.bincount(np.asarray(split.labels, dtype=np.int64), minlength=len(tuple(class_names)))
    return dict(zip(class_names, per_class.tolist(), strict=True))
