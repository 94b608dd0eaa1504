"""Problems in photos that show without a network: duplicates, leakage, bad files.

The results are entries for doctor.json; docs/doctor.md describes them.
"""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from hogwear.data import decoding, picture_quality
from hogwear.data.decoding import Limits
from hogwear.data.near_duplicates import SIGNATURE_SIZE, compute_signature, find_pairs, group_pairs
from hogwear.data.photos import Photos
from hogwear.data.products import find_divided
from hogwear.data.safe_decoder import read_all
from hogwear.data.splitting import COMPARED_SIZE
from hogwear.system.arrays import Int64Array, UInt8Array
from hogwear.system.paths import Paths

TINY_SIDE = 32  # pixels
SMALL_CLASS = 0.2  # under-represented: fewer training photos than that share of the largest class
FORMATS = dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG")
FORMATS |= {".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".avif": "AVIF"}

Entry = dict[str, Any]  # a photo in doctor.json


class Member(NamedTuple):
    """A photo of the data folder."""

    file: Path
    split: str
    class_name: str

    def to_entry(self, **more: Any) -> Entry:
        return {"file": str(self.file), "split": self.split, "class": self.class_name, **more}


class Facts(NamedTuple):
    """What a photo's file shows."""

    digest: bytes  # SHA-256 of the file
    format: str
    sides: tuple[int, int]  # the shorter and the longer, in pixels
    was_turned: bool  # by EXIF
    is_plain: bool  # almost one colour
    is_dark: bool
    is_blurred: bool
    signature: UInt8Array


def list_members(photos: Photos) -> list[Member]:
    return [
        Member(file, split.name, photos.class_names[label])
        for split in photos.splits
        for file, label in zip(split.paths, split.labels.tolist(), strict=True)
    ]


def examine_files(members: list[Member], root: Path, limits: Limits) -> list[Facts | str]:
    """The facts of each photo, or why it cannot be read; photos are decoded on all CPUs."""
    paths = Paths(member.file for member in members)
    results = dict(read_all(paths, root, limits, partial(examine, limits=limits), "examining"))
    return [results[row] for row in range(len(members))]


def examine(file: BinaryIO, limits: Limits) -> Facts:
    """In a worker: the facts of an open photo."""
    digest = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
    file.seek(0)
    decoded = decoding.decode_image(file, COMPARED_SIZE, limits)
    image, longer_side = decoded.image, decoded.sides[1]
    return Facts(
        digest,
        decoded.format,
        decoded.sides,
        decoded.was_turned,
        picture_quality.is_plain(image),
        picture_quality.is_dark(image),
        picture_quality.is_blurred(image, longer_side),
        compute_signature(decoding.letterbox(image, COMPARED_SIZE)),
    )


def check_counts(photos: Photos) -> dict[str, Any]:
    """The number of photos per split and class, and the classes that have too few."""
    counts = {split.name: split.count_per_class(photos.class_names) for split in photos.splits}
    missing = {
        split: [name for name, count in of_split.items() if not count]
        for split, of_split in counts.items()
    }
    largest = max(counts["train"].values())
    return {
        "counts": counts,
        "under_represented": [
            name for name, count in counts["train"].items() if count < SMALL_CLASS * largest
        ],
        "missing_classes": {split: names for split, names in missing.items() if names},
    }


def check_products(photos: Photos, members: list[Member]) -> dict[str, Any]:
    """For each product with photos in several splits: a photo in each of them."""
    starts = np.cumsum([0, *map(len, photos.splits)]).tolist()  # of the splits in `members`
    divided = [
        [members[starts[split] + row].to_entry() for split, row in product]
        for product in find_divided(photos.splits)
    ]
    return {"divided_products": divided}


def check_files(members: list[Member], results: list[Facts | str]) -> dict[str, Any]:
    """Photos, or groups of photos, with each problem; `results` are those of examine_files."""
    pairs = list(zip(members, results, strict=True))
    readable = [(member, facts) for member, facts in pairs if not isinstance(facts, str)]
    odd = [(m, f.sides) for m, f in readable if picture_quality.is_odd_shape(f.sides)]
    misnamed = [
        (m, f) for m, f in readable if FORMATS.get(m.file.suffix.lower(), f.format) != f.format
    ]
    return {
        **check_duplicates(readable),
        "unreadable": [m.to_entry(reason=why) for m, why in pairs if isinstance(why, str)],
        "tiny": [m.to_entry(side=f.sides[0]) for m, f in readable if f.sides[0] < TINY_SIDE],
        "misnamed": [m.to_entry(format=f.format) for m, f in misnamed],
        "rotated": [m.to_entry() for m, f in readable if f.was_turned],
        "blurred": [m.to_entry() for m, f in readable if f.is_blurred],
        "dark": [m.to_entry() for m, f in readable if f.is_dark],
        "odd_shape": [m.to_entry(ratio=round(long / short, 1)) for m, (short, long) in odd],
        "near_empty": [m.to_entry() for m, f in readable if f.is_plain],
    }


def check_duplicates(readable: list[tuple[Member, Facts]]) -> dict[str, Any]:
    """Photos in several splits or classes, and groups of identical or nearly identical photos."""
    members = [member for member, _ in readable]
    digests = [facts.digest for _, facts in readable]
    signatures = np.array([facts.signature for _, facts in readable], np.uint8)
    near = find_pairs(signatures.reshape(-1, SIGNATURE_SIZE))
    exact = pair_equal_files(digests)
    same = group_pairs(len(members), exact)
    similar = [
        group
        for group in group_pairs(len(members), np.concatenate([near, exact]))
        if len({digests[row] for row in group}) > 1
    ]
    in_similar = {row for group in similar for row in group}
    merged = sorted(similar + [group for group in same if group[0] not in in_similar])
    conflicting = [group for group in merged if len({members[row].class_name for row in group}) > 1]

    groups = {"conflicting": conflicting, "duplicates": same, "near_duplicates": similar}
    entries = [member.to_entry() for member in members]
    return {
        "leaked": find_leaked(members, same, near),
        **{key: [[entries[row] for row in group] for group in groups[key]] for key in groups},
    }


def pair_equal_files(digests: list[bytes]) -> Int64Array:
    """(k, 2) rows of files with equal digests: the first of them, and each other one."""
    first: dict[bytes, int] = {}
    pairs = [(first.setdefault(digest, row), row) for row, digest in enumerate(digests)]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2)


def find_leaked(members: list[Member], same: list[list[int]], near: Int64Array) -> list[Entry]:
    """The photos of val and test that are also in train, with a photo there.

    An identical photo in train is preferred to a nearly identical one.
    """

    def in_train(row: int) -> bool:
        return members[row].split == "train"

    pairs = [
        (first, other, True)
        for group in same
        for first in [row for row in group if in_train(row)][:1]
        for other in group
    ]
    for one, other in near.tolist():
        pairs += [(one, other, False), (other, one, False)]
    leaked: dict[int, Entry] = {}
    for train, other, is_exact in pairs:
        if in_train(train) and not in_train(other) and other not in leaked:
            leaked[other] = members[other].to_entry(
                in_train=members[train].to_entry(), exact=is_exact
            )
    return [leaked[row] for row in sorted(leaked)]
