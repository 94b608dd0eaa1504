"""Photos without a split -> train, val and test: by class, near duplicates on one side, and the same way ever after.

A manifest in the cache keeps every photo where it once was, so that adding some never moves another from test to train.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from hogwear import decoding, similar
from hogwear.decoding import Array, Limits
from hogwear.errors import BadInput
from hogwear.files import Paths, write_atomically

SHARES = {"val": 0.15, "test": 0.15}  # of each class
SEED = 0  # not a setting: train and eval must agree on what is test
SIZE = 160  # the side that photos are compared at, in pixels; the doctor's, so that it finds no pair of ours across splits

Classes = dict[str, list[str]]  # {class: names of its files, sorted}
Known = dict[str, str]  # {CLASS/NAME: split}


class Divider:
    """Divides photos within `root`.

    divide = Divider(data_dir, cache_dir, LIMITS)
    parts = divide(data_dir, {"hats": ["1.jpg", "2.jpg", "3.jpg"]}, {"hats": data_dir / "hats"})    # {"train": {"hats": ["2.jpg"]}, ...}
    """

    def __init__(self, root: Path, cache_dir: Path, limits: Limits) -> None:
        self.root, self.cache_dir, self.limits = root, cache_dir, limits
        self.notes: tuple[str, ...] = ()  # on what was done, for people

    def __call__(self, folder: Path, found: Classes, folders: dict[str, Path], shares: dict[str, float] = SHARES) -> dict[str, Classes]:
        """{split: {class: its files}} of what is `found` in `folder`, a class's photos in `folders[class]`.

        Raises BadInput for a class with fewer photos than splits, and for one that has none left to train on.
        """
        slot = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
        manifest = self.cache_dir / f"split-{slot}{'' if 'test' in shares else '-val'}.json"
        known: Known = json.loads(manifest.read_text()) if manifest.exists() else {}
        if not known.keys() >= set(keys(found)):
            for name, files in found.items():
                if len(files) <= len(shares):
                    raise BadInput(f"{folder / name}: too few photos ({len(files)}); each of {', '.join(['train', *shares])} needs one of each class")
            groups = self.alike(found, folders)
            known = assigned(found, known, groups, shares)
            write_atomically(manifest, json.dumps(known, indent=1).encode())
            whole = sum(len({known[key] for key in group}) == 1 for group in groups)
            if groups:
                self.notes = (f"Split: {sum(map(len, groups))} photos are nearly the same as others; {whole} of their {len(groups)} groups are on one side.",)
        parts: dict[str, Classes] = {split: {name: [] for name in found} for split in ("train", *shares)}
        for name, files in found.items():
            for file in files:
                parts[known[f"{name}/{file}"]][name].append(file)
            if not parts["train"][name]:
                raise BadInput(f"{folder / name}: all its photos to train on are gone; add some, or delete {manifest} to split anew")
        return parts

    def alike(self, found: Classes, folders: dict[str, Path]) -> list[tuple[str, ...]]:
        """Groups of near duplicates among the photos that can be read."""
        photos = keys(found)
        signatures, readable = np.zeros((len(photos), similar.LENGTH), np.uint8), np.zeros(len(photos), bool)
        paths = Paths(folders[name] / file for name, files in found.items() for file in files)
        for row, answer in decoding.look_at(paths, SIZE, self.limits, self.root, signature, "comparing"):
            if not isinstance(answer, str):
                signatures[row], readable[row] = answer, True
        rows = np.flatnonzero(readable).tolist()
        groups = similar.groups(len(rows), similar.near_pairs(signatures[readable]))
        return [tuple(photos[rows[i]] for i in group) for group in groups]


def keys(found: Classes) -> list[str]:
    return [f"{name}/{file}" for name, files in found.items() for file in files]


def signature(path: Path, size: int, limits: Limits, within: frozenset[str] | None) -> Array:
    """In a worker. Raises as `decode` does."""
    return similar.signature(decoding.decode(path, size, limits, within))


def assigned(found: Classes, known: Known, groups: list[tuple[str, ...]], shares: dict[str, float]) -> Known:
    """Where each photo belongs: where it was, if it is `known`; else with those of its group that are; else by the `shares` of its class.

    A group too large for what a split still wants goes to train. Where a class has fewer groups than splits, one is broken up.
    """
    splits = dict(known)
    unit_of = {key: group for group in groups for key in group}

    def put(unit: tuple[str, ...], split: str) -> None:
        splits.update({key: split for key in unit if key not in splits})

    for group in groups:
        if there := {known[key] for key in group if key in known}:
            put(group, "train" if "train" in there else min(there))
    for name, files in found.items():
        photos = [f"{name}/{file}" for file in files]
        new = [key for key in photos if key not in known]
        shuffled = [new[i] for i in np.random.default_rng(SEED).permutation(len(new))]

        def of(split: str, photos: list[str]) -> list[str]:
            return [key for key in photos if splits.get(key) == split]

        for split, share in shares.items():
            units = list(dict.fromkeys(unit_of.get(key, (key,)) for key in shuffled if key not in splits))
            wanted = max(not of(split, photos), round(share * len(new)) - len(of(split, new)))
            for unit in units:
                if len(unit) <= wanted:
                    put(unit, split)
                    wanted -= len(unit)
            if not of(split, photos) and len(units) > 1:
                put(min(units, key=len), split)
        put(tuple(new), "train")
        for split in ("train", *shares):
            largest = max((of(other, new) for other in ("train", *shares)), key=len)
            if not of(split, photos) and len(largest) > 1:
                splits[largest[-1]] = split
    return splits
