"""Split photos into train, val and test: by class; near duplicates and products stay together.

A photo that has a split (see split_assignments.py) keeps it. Only new ones are assigned.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hogwear.data import decoding
from hogwear.data.decoding import LIMITS, Limits
from hogwear.data.near_duplicates import SIGNATURE_SIZE, compute_signature, find_pairs, group_pairs
from hogwear.data.photos import Split
from hogwear.data.safe_decoder import read_all
from hogwear.data.split_assignments import (
    NO_ASSIGNMENTS,
    NO_GROUP,
    SPLITS,
    UNASSIGNED,
    SplitAssignments,
    to_hex,
)
from hogwear.system.arrays import Int8Array, UInt8Array
from hogwear.system.errors import BadInput
from hogwear.system.text import escape, join_some, plural, warn

SHARES = {"val": 0.15, "test": 0.15}  # of each class
SEED = 0  # not a setting: train and eval must agree on what is test
COMPARED_SIZE = 160  # side of photos, in pixels; the doctor uses it, too, so both find the same
MAX_NAMES = 5  # in a note

Group = tuple[str, ...]  # hashes of photos that belong together


class Splitter:
    """Splits photos as they are assigned.

    If it `assigns_new`, which only train may, new photos are assigned; otherwise they are left out.

        splitter = Splitter(SplitAssignments.read(model_dir))
        splitter.split(photos, ("hats", "socks"), SHARES, data_dir)  # {"train": Split, ...}
        splitter.assignments.write(model_dir)
    """

    def __init__(
        self,
        assignments: SplitAssignments = NO_ASSIGNMENTS,
        limits: Limits = LIMITS,
        assigns_new: bool = True,
    ) -> None:
        self.initial = self.assignments = assignments
        self.limits, self.assigns_new = limits, assigns_new
        self.notes: list[str] = []  # for people

    def split(
        self, photos: Split, class_names: tuple[str, ...], shares: dict[str, float], folder: Path
    ) -> dict[str, Split]:
        """{split: its photos} for train and the splits with `shares`. `folder` is for messages.

        Unreadable photos are in train, where they are skipped. Raises BadInput for a class with
        fewer photos than splits or without photos to train on, and for a val or test without any
        assigned photo.
        """
        splits = self.current_splits(photos, shares)
        if self.assigns_new and (splits == UNASSIGNED).any():
            self.assign_new(photos, class_names, shares, folder)
            splits = self.current_splits(photos, shares)
        names = "train", *shares
        parts = {name: photos.where(splits == SPLITS.index(name), name) for name in names}
        if self.assigns_new:
            for name, count in parts["train"].count_per_class(class_names).items():
                if not count:
                    raise BadInput(
                        f"{folder / name}: all its photos to train on are gone; add some, or move "
                        f"{self.assignments.file} away and train with --fresh"
                    )
        elif unassigned := int((splits == UNASSIGNED).sum()):
            some = f"{unassigned} of {plural(len(photos), 'photo')} in {folder}"
            left_out = f"{some} not in {self.assignments.file} yet"
            if not all(map(len, parts.values())):
                raise BadInput(
                    f"{left_out}; run train, which assigns them to a split, or put photos to "
                    f"evaluate in {folder}/test/CLASS/"
                )
            warn(f"{left_out}, ignored; run train to assign them to a split")
        return parts

    def current_splits(self, photos: Split, shares: dict[str, float]) -> Int8Array:
        """(n,), indices into SPLITS or UNASSIGNED.

        A photo of a split that has no share is in train.
        """
        splits = self.assignments.splits_of(photos.hashes)
        allowed = [UNASSIGNED, *(SPLITS.index(split) for split in ("train", *shares))]
        splits[~np.isin(splits, allowed) | ~photos.is_readable] = SPLITS.index("train")
        return splits

    def assign_new(
        self, photos: Split, class_names: tuple[str, ...], shares: dict[str, float], folder: Path
    ) -> None:
        """Assign the photos without a split. Raises BadInput for a class with too few photos."""
        hashes = to_hex(photos.hashes)
        classes: dict[str, dict[str, None]] = {name: {} for name in class_names}
        rows: dict[str, int] = {}  # {photo: its first row}
        for row in np.flatnonzero(photos.is_readable).tolist():
            classes[class_names[photos.labels[row]]][hashes[row]] = None
            rows.setdefault(hashes[row], row)
        for name, different in classes.items():
            if len(different) <= len(shares):
                raise BadInput(
                    f"{folder / name}: too few photos ({len(different)}, not counting copies); "
                    f"each of {', '.join(['train', *shares])} needs at least one"
                )
        splits = self.current_splits(photos, shares)
        old = {photo: SPLITS[splits[row]] for photo, row in rows.items() if splits[row] >= 0}
        similar = self.find_near_duplicates(photos, rows)
        gone = self.assignments.products_splits()  # and those that are still there
        old = {photo: s if s in shares else "train" for photo, s in gone.items()} | old
        groups = merge_groups(similar + self.find_products(photos, rows))
        assigned = Assigner(old, groups, shares).assign_all(list(map(list, classes.values())))
        new = {photo: split for photo, split in assigned.items() if photo not in old}
        product_keys = to_hex(photos.products)
        products = {photo: product_keys[rows[photo]] for photo in new}
        self.assignments = self.assignments.extended(new, self.name_groups(similar, old), products)
        if similar:
            whole = sum(len({assigned[photo] for photo in group}) == 1 for group in similar)
            self.notes.append(
                f"Near duplicates: {plural(sum(map(len, similar)), 'photo')} in "
                f"{plural(len(similar), 'group')}, {whole} of them in one split each."
            )
        joining = [
            escape(str(photos.paths[rows[photo]]))
            for group in groups
            if len({old[photo] for photo in group if photo in old}) > 1
            for photo in group
            if photo in new
        ]
        if joining:
            self.notes.append(
                "New photos whose near duplicates or products are in two splits go to train: "
                f"{plural(len(joining), 'photo')}, {join_some(joining, MAX_NAMES)}."
            )

    def find_products(self, photos: Split, rows: dict[str, int]) -> list[Group]:
        """The different photos, {photo: row}, of each product, and those that once were assigned.

        A photo with copies in several products connects them.
        """
        products: dict[str, dict[str, None]] = defaultdict(dict)
        for photo, key in zip(to_hex(photos.hashes), to_hex(photos.products), strict=True):
            if key != NO_GROUP and photo in rows:
                products[key][photo] = None
        for photo, key in self.assignments.products_by_photo().items():
            products[key][photo] = None
        return [tuple(product) for product in products.values() if len(product) > 1]

    def find_near_duplicates(self, photos: Split, rows: dict[str, int]) -> list[Group]:
        """Groups of near duplicates among different photos, {photo: row}, that can be decoded."""

        def sign(file: BinaryIO) -> UInt8Array:
            return compute_signature(decoding.decode(file, COMPARED_SIZE, self.limits))

        hashes, mask = list(rows), np.zeros(len(photos), bool)
        mask[list(rows.values())] = True
        signatures = np.zeros((len(hashes), SIGNATURE_SIZE), np.uint8)
        is_decoded = np.zeros(len(hashes), bool)
        paths = photos.paths.where(mask)
        for i, result in read_all(paths, photos.root, self.limits, sign, "comparing"):
            if not isinstance(result, str):
                signatures[i], is_decoded[i] = result, True
        decoded = np.flatnonzero(is_decoded).tolist()
        groups = group_pairs(len(decoded), find_pairs(signatures[is_decoded]))
        return [tuple(hashes[decoded[i]] for i in group) for group in groups]

    def name_groups(self, groups: list[Group], old: dict[str, str]) -> dict[str, str]:
        """{photo: key of its group}: the key of an old photo in it, or else the first photo."""
        old_keys, keys = self.assignments.groups_by_photo(), {}
        for group in groups:
            member = next((photo for photo in group if photo in old), group[0])
            keys.update(dict.fromkeys(group, old_keys.get(member, member)))
        return keys


def merge_groups(groups: list[Group]) -> list[Group]:
    """Groups without a common photo: those with one become one."""
    photos = list(dict.fromkeys(photo for group in groups for photo in group))
    index = {photo: i for i, photo in enumerate(photos)}
    pairs = [(index[group[0]], index[photo]) for group in groups for photo in group[1:]]
    merged = group_pairs(len(photos), np.array(pairs, np.int64).reshape(-1, 2))
    return [tuple(photos[i] for i in group) for group in merged]


class Assigner:
    """Assigns photos to splits: {photo: split}, where `old` photos keep theirs.

    New photos go where the old ones of their group are, else by the `shares` of their class. A
    group may have photos of several classes. It goes to train if its old photos are in two splits,
    or if it is too large for the others. Where a class has fewer groups than splits, a group is
    broken up.
    """

    def __init__(
        self, old: dict[str, str], groups: Sequence[Group], shares: dict[str, float]
    ) -> None:
        self.old, self.shares, self.splits = old, shares, dict(old)
        self.group_of = {photo: group for group in groups for photo in group}
        self.room: dict[str, Counter[int]] = {}  # {split: {class: photos that it still needs}}
        self.classes: list[list[str]] = []
        self.classes_of: dict[str, list[int]] = defaultdict(list)  # of new photos
        for group in groups:
            if splits := {old[photo] for photo in group if photo in old}:
                self.put(group, splits.pop() if len(splits) == 1 else "train")

    def assign_all(self, classes: list[list[str]]) -> dict[str, str]:
        """Assign the photos of each class. A photo may be in several classes."""
        self.classes = classes
        new = [[photo for photo in photos if photo not in self.old] for photos in classes]
        for label, photos in enumerate(new):
            for photo in photos:
                self.classes_of[photo].append(label)
        self.room = {
            split: Counter(
                {label: self.count_room(split, label, each) for label, each in enumerate(new)}
            )
            for split in self.shares
        }
        for label, photos in enumerate(classes):
            self.fill_shares(label, photos, new[label])
            movable = [photo for photo in new[label] if len(self.classes_of[photo]) == 1]
            self.fill_empty_splits(photos, movable)
        return self.splits

    def count_room(self, split: str, label: int, new: list[str]) -> int:
        """How many of its new photos a class needs in a split: one at least if it has none."""
        room = round(self.shares[split] * len(new)) - len(self.photos_in(split, new))
        return max(room, not self.photos_in(split, self.classes[label]))

    def put(self, photos: Group, split: str) -> None:
        for photo in photos:
            if photo not in self.splits:
                self.splits[photo] = split
                if split in self.room:
                    self.room[split].subtract(self.classes_of[photo])

    def count_classes(self, group: Group) -> Counter[int]:
        return Counter(label for photo in group for label in self.classes_of[photo])

    def fits(self, group: Group, split: str) -> bool:
        """Whether a split still needs as many photos of each class as the group has."""
        counts = self.count_classes(group)
        return all(counts[label] <= self.room[split][label] for label in counts)

    def photos_in(self, split: str, photos: list[str]) -> list[str]:
        return [photo for photo in photos if self.splits.get(photo) == split]

    def fill_shares(self, label: int, photos: list[str], new: list[str]) -> None:
        """Assign the new photos of a class, whole groups at a time; train gets the rest."""
        shuffled = [new[i] for i in np.random.default_rng(SEED).permutation(len(new))]
        for split in self.shares:
            left = [photo for photo in shuffled if photo not in self.splits]
            whole = (self.group_of.get(photo, (photo,)) for photo in left)
            groups = list({group[0]: group for group in whole}.values())
            for group in groups:
                if self.room[split][label] <= 0:
                    break
                if self.fits(group, split):
                    self.put(group, split)
            if not self.photos_in(split, photos) and len(groups) > 1:
                self.put(min(groups, key=len), split)
        for photo in new:
            if photo not in self.splits:
                self.put(self.group_of.get(photo, (photo,)), "train")

    def fill_empty_splits(self, photos: list[str], movable: list[str]) -> None:
        """Where a class has no photo in a split, move some from the split with the most of them."""
        splits = ("train", *self.shares)
        for split in splits:
            if not self.photos_in(split, photos):
                donors = [
                    self.photos_in(donor, movable)
                    for donor in splits
                    if len(self.photos_in(donor, photos)) > 1
                ]
                if largest := max(donors, key=len, default=[]):
                    for photo in self.choose_to_move(largest):
                        self.splits[photo] = split

    def choose_to_move(self, photos: list[str]) -> Group:
        """The smallest group among these photos of a class in a split; one photo if no group can.

        Of each class of the group, a photo must remain in the split.
        """
        split = self.splits[photos[-1]]
        whole = (self.group_of.get(photo, (photo,)) for photo in reversed(photos))
        groups = {group[0]: group for group in whole}.values()
        for group in sorted(groups, key=len):
            counts = self.count_classes(group)
            if all(
                self.splits[photo] == split and photo not in self.old for photo in group
            ) and all(
                len(self.photos_in(split, self.classes[label])) > counts[label] for label in counts
            ):
                return group
        return (photos[-1],)
