"""Photos without a split -> train, val and test: by class, near duplicates on one side; and model/split.json, which remembers it.

That file knows photos by their content. What is in it never changes, whatever photos are added, renamed, moved or relabelled, and new ones are added
at its end: so a checkpoint knows by the number of its entries, and a hash over them, whether the split is still the one that it was trained with.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hogwear.data import decoding, near_duplicates
from hogwear.data.contents import find_rows
from hogwear.data.decoding import HASH_SIZE, LIMITS, Limits
from hogwear.data.photos import Split
from hogwear.data.safe_decoder import read_all
from hogwear.system.arrays import Int8Array, UInt8Array
from hogwear.system.artifacts import SPLIT
from hogwear.system.errors import BadInput
from hogwear.system.files import write_atomically
from hogwear.system.text import escape

FORMAT = 1  # of model/split.json
SIDES = ("train", "val", "test")
UNKNOWN = -1  # the side of a photo that has none yet
ALONE = "00" * HASH_SIZE  # the group of a photo without near duplicates
SHARES = {"val": 0.15, "test": 0.15}  # of each class
SEED = 0  # not a setting: train and eval must agree on what is test
SIZE = 160  # the side that photos are compared at, in pixels; the doctor's, so that it finds no pair of ours across splits
SHOWN = 5  # names in a note

SplitVersion = dict[str, Any]  # {"count": of photos, "sha256": of what is known of them}


@dataclass(frozen=True, eq=False)
class SplitAssignments:
    """On which side photos are, in the order in which they came: what split.json holds."""

    file: Path  # for messages
    hashes: UInt8Array  # (m, HASH_SIZE)
    sides: Int8Array  # (m,)
    groups: UInt8Array  # (m, HASH_SIZE), the same for near duplicates: the hash of one of them; zeros for a photo without

    @classmethod
    def read(cls, model_dir: Path) -> "SplitAssignments":
        """Of a model folder; with no photos where there is no file. Raises as `parse`."""
        file = model_dir / SPLIT
        return cls.parse(file.read_bytes() if file.exists() else b"", file)

    @classmethod
    def parse(cls, content: bytes, file: Path) -> "SplitAssignments":
        """What a file held, with no photos for no content. BadInput for what `written` does not give."""
        try:
            told: Any = (
                json.loads(content) if content else {"format": FORMAT, "split": {}, "group": {}}
            )
            if told["format"] != FORMAT:
                raise ValueError(f"format {told['format']}")
            return NOTHING.with_more(told["split"], told["group"], file)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadInput(
                f"{file}: damaged ({error}); restore it, or move it away and train with --fresh"
            ) from None

    def to_json(self) -> bytes:
        """As JSON, a line for each photo."""
        photos, groups = hexadecimal(self.hashes), hexadecimal(self.groups)
        split = ",\n".join(
            f'"{photo}": "{SIDES[side]}"'
            for photo, side in zip(photos, self.sides.tolist(), strict=True)
        )
        group = ",\n".join(
            f'"{photo}": "{key}"' for photo, key in zip(photos, groups, strict=True) if key != ALONE
        )
        return (
            f'{{"format": {FORMAT}, "split": {{\n{split}\n}}, "group": {{\n{group}\n}}}}\n'.encode()
        )

    def write(self, model_dir: Path) -> None:
        """Into the model folder, if it is not there already."""
        file, content = model_dir / SPLIT, self.to_json()
        if not (file.exists() and file.read_bytes() == content):
            write_atomically(file, content)

    def version(self) -> SplitVersion:
        """What a checkpoint keeps of it."""
        return self.version_of_first(len(self.sides))

    def version_of_first(self, photos: int) -> SplitVersion:
        """Of the first so many."""
        digest = hashlib.sha256()
        for entries in self.hashes, self.sides, self.groups:
            digest.update(entries[:photos].tobytes())
        return {"count": photos, "sha256": digest.hexdigest()}

    def require(self, identity: SplitVersion) -> "SplitAssignments":
        """Itself. BadInput if it is not this split, perhaps with more photos by now."""
        if self.version_of_first(identity["count"]) != identity:
            what = "changed" if len(self.sides) else "missing"
            raise BadInput(
                f"{self.file}: {what} since the checkpoint was trained, so nothing tells which photos it has not seen; restore it, or train with --fresh"
            )
        return self

    def sides_of(self, hashes: UInt8Array) -> Int8Array:
        """(n, HASH_SIZE) -> (n,), UNKNOWN for photos that are not in it."""
        rows = find_rows(self.hashes, hashes)
        sides = np.full(len(hashes), UNKNOWN, np.int8)
        sides[rows >= 0] = self.sides[rows[rows >= 0]]
        return sides

    def with_more(
        self, sides: dict[str, str], groups: dict[str, str], file: Path | None = None
    ) -> "SplitAssignments":
        """The same and more photos, {hash: side}, and the groups of those that have one. ValueError for what is no hash and no side."""
        more = [SIDES.index(side) for side in sides.values()]
        hashes, keys = (
            from_hexadecimal(texts)
            for texts in (list(sides), [groups.get(photo, ALONE) for photo in sides])
        )
        return SplitAssignments(
            file or self.file,
            np.concatenate([self.hashes, hashes]),
            np.concatenate([self.sides, np.array(more, np.int8)]),
            np.concatenate([self.groups, keys]),
        )


def from_hexadecimal(texts: list[str]) -> UInt8Array:
    if any(len(text) != len(ALONE) for text in texts):
        raise ValueError("a hash of another length")
    return np.frombuffer(bytes.fromhex("".join(texts)), np.uint8).reshape(len(texts), HASH_SIZE)


def hexadecimal(hashes: UInt8Array) -> list[str]:
    text = hashes.tobytes().hex()
    return [text[start : start + 2 * HASH_SIZE] for start in range(0, len(text), 2 * HASH_SIZE)]


NO_HASHES = np.empty((0, HASH_SIZE), np.uint8)
NOTHING = SplitAssignments(Path(SPLIT), NO_HASHES, np.empty(0, np.int8), NO_HASHES)


class Splitter:
    """Divides photos as they are `known`. New ones get a place if it `assigns_new` ones, as only train may; else they are left out.

    splitter = Splitter(SplitAssignments.read(model_dir))
    splitter(photos, ("hats", "socks"), SHARES, data_dir)    # {"train": ..., "val": ..., "test": ...}
    splitter.known.write(model_dir)
    """

    def __init__(
        self, known: SplitAssignments = NOTHING, limits: Limits = LIMITS, assigns_new: bool = True
    ) -> None:
        self.found = known  # before anything was added
        self.known, self.limits, self.assigns_new = known, limits, assigns_new
        self.notes: tuple[str, ...] = ()  # on what was done, for people

    def __call__(
        self, photos: Split, class_names: tuple[str, ...], shares: dict[str, float], folder: Path
    ) -> dict[str, Split]:
        """The photos of each split. What cannot be read is in train, where it is skipped.

        Raises BadInput for a class with fewer photos than splits, for one that has none left to train on, and where no photo of val or test is known.
        """
        sides = self.sides(photos, shares)
        if self.assigns_new and (sides == UNKNOWN).any():
            self.place(photos, class_names, sides, shares, folder)
            sides = self.sides(photos, shares)
        parts = {
            split: photos.where(sides == SIDES.index(split), split) for split in ("train", *shares)
        }
        if self.assigns_new:
            if gone := set(range(len(class_names))) - set(parts["train"].labels.tolist()):
                raise BadInput(
                    f"{folder / class_names[min(gone)]}: all its photos to train on are gone; add some, or move {self.known.file} away and train with --fresh"
                )
        elif unknown := int((sides == UNKNOWN).sum()):
            left_out = f"{unknown} of {len(photos)} photos in {folder} not in {self.known.file} yet"
            if not all(map(len, parts.values())):
                raise BadInput(
                    f"{left_out}; run train, which gives new photos a place, or put photos to measure in {folder}/test/CLASS/"
                )
            print(
                escape(f"Warning: {left_out}, ignored; run train to assign them to a split"),
                file=sys.stderr,
            )
        return parts

    def sides(self, photos: Split, shares: dict[str, float]) -> Int8Array:
        """(n,), of those that there are now: what once was to be another split's is to train on."""
        sides = self.known.sides_of(photos.contents.hashes)
        there_are = [UNKNOWN, *(SIDES.index(split) for split in ("train", *shares))]
        sides[~np.isin(sides, there_are) | ~photos.contents.hashes.any(axis=1)] = SIDES.index(
            "train"
        )
        return sides

    def place(
        self,
        photos: Split,
        class_names: tuple[str, ...],
        sides: Int8Array,
        shares: dict[str, float],
        folder: Path,
    ) -> None:
        """Add those that are not known yet."""
        hashes = hexadecimal(photos.contents.hashes)
        readable = np.flatnonzero(photos.contents.hashes.any(axis=1)).tolist()
        found: dict[str, dict[str, None]] = {name: {} for name in class_names}
        first: dict[str, int] = {}  # {hash: row}
        for row in readable:
            found[class_names[photos.labels[row]]][hashes[row]] = None
            first.setdefault(hashes[row], row)
        for name, different in found.items():
            if len(different) <= len(shares):
                raise BadInput(
                    f"{folder / name}: too few photos ({len(different)} different ones); each of {', '.join(['train', *shares])} needs one of each class"
                )
        known = {photo: SIDES[sides[row]] for photo, row in first.items() if sides[row] != UNKNOWN}
        groups = self.alike(photos, first)
        assigned_sides = assigned(
            {name: list(different) for name, different in found.items()}, known, groups, shares
        )
        new = {photo: side for photo, side in assigned_sides.items() if photo not in known}
        keys: dict[str, str] = {}
        joining: list[Path] = []
        key_of = {
            photo: key
            for photo, key in zip(
                *map(hexadecimal, (self.known.hashes, self.known.groups)), strict=True
            )
            if key != ALONE
        }
        for group in groups:
            member = next((photo for photo in group if photo in known), group[0])
            keys.update(dict.fromkeys(group, key_of.get(member, member)))
            if len({known[photo] for photo in group if photo in known}) > 1:
                joining += [photos.paths[first[photo]] for photo in group if photo in new]
        self.known = self.known.with_more(
            new, {photo: key for photo, key in keys.items() if photo in new}
        )
        whole = sum(len({assigned_sides[photo] for photo in group}) == 1 for group in groups)
        if groups:
            self.notes += (
                f"Near duplicates: {sum(map(len, groups))} photos in {len(groups)} groups; {whole} of the groups are kept in one split.",
            )
        if joining:
            names = ", ".join(escape(str(path)) for path in joining[:SHOWN]) + ", ..." * (
                len(joining) > SHOWN
            )
            self.notes += (
                f"Near duplicates of photos in two splits are trained on: {len(joining)} new photos, {names}.",
            )

    def alike(self, photos: Split, first: dict[str, int]) -> list[tuple[str, ...]]:
        """Groups of near duplicates among different photos, {hash: row}, those that can be decoded."""
        contents, mask = list(first), np.zeros(len(photos), bool)
        mask[list(first.values())] = True
        signatures, readable = (
            np.zeros((len(contents), near_duplicates.SIGNATURE_SIZE), np.uint8),
            np.zeros(len(contents), bool),
        )
        reader = partial(compute_signature, limits=self.limits)
        for i, answer in read_all(
            photos.paths.where(mask), photos.root, self.limits, reader, "comparing"
        ):
            if not isinstance(answer, str):
                signatures[i], readable[i] = answer, True
        rows = np.flatnonzero(readable).tolist()
        groups = near_duplicates.group_pairs(
            len(rows), near_duplicates.find_pairs(signatures[readable])
        )
        return [tuple(contents[rows[i]] for i in group) for group in groups]


def compute_signature(file: BinaryIO, limits: Limits) -> UInt8Array:
    """In a worker. Raises as `decode` does."""
    image = decoding.decode_image(file, SIZE, limits).image
    return near_duplicates.compute_signature(decoding.letterbox(image, SIZE))


def assigned(
    found: dict[str, list[str]],
    known: dict[str, str],
    groups: Sequence[tuple[str, ...]],
    shares: dict[str, float],
) -> dict[str, str]:
    """{photo: side} of the photos `found`, {class: photos}: where it is, if it is `known`; else with those of its group that are; else by the `shares` of its class.

    A group that joins two sides, and one too large for what a split still wants, goes to train. Where a class has fewer groups than splits, one is broken up.
    """
    splits = dict(known)
    unit_of = {key: group for group in groups for key in group}
    classes_of = Counter(key for photos in found.values() for key in photos)

    def put(unit: tuple[str, ...], split: str) -> None:
        splits.update({key: split for key in unit if key not in splits})

    for group in groups:
        if there := {known[key] for key in group if key in known}:
            put(group, there.pop() if len(there) == 1 else "train")
    for photos in found.values():
        new = [key for key in photos if key not in known]
        shuffled = [new[i] for i in np.random.default_rng(SEED).permutation(len(new))]

        def of(split: str, photos: list[str]) -> list[str]:
            return [key for key in photos if splits.get(key) == split]

        for split, share in shares.items():
            units = list(
                dict.fromkeys(unit_of.get(key, (key,)) for key in shuffled if key not in splits)
            )
            wanted = max(not of(split, photos), round(share * len(new)) - len(of(split, new)))
            for unit in units:
                if len(unit) <= wanted:
                    put(unit, split)
                    wanted -= len(unit)
            if not of(split, photos) and len(units) > 1:
                put(min(units, key=len), split)
        put(tuple(new), "train")
        own = [key for key in new if classes_of[key] == 1]
        for split in ("train", *shares):
            if not of(split, photos):
                sides = (
                    of(other, own) for other in ("train", *shares) if len(of(other, photos)) > 1
                )
                if largest := max(sides, key=len, default=[]):
                    splits[largest[-1]] = split
    return splits
