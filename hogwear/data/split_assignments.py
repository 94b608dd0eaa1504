"""model/split.json: which photo belongs to train, val or test.

Photos are known by their content. An entry never changes, whatever photos are added, renamed, moved
or relabelled, and new photos are appended. So the number of entries and a hash over them tell
whether this is still the split that a checkpoint was trained with.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from hogwear.data.contents import find_rows
from hogwear.data.decoding import HASH_SIZE
from hogwear.system.arrays import Int8Array, UInt8Array
from hogwear.system.artifacts import SPLIT
from hogwear.system.errors import BadInput
from hogwear.system.files import write_atomically

FORMAT = 2
OLDER = 1  # without products
EMPTY = f'{{"format": {OLDER}, "split": {{}}, "group": {{}}}}'
SPLITS = ("train", "val", "test")
UNASSIGNED = -1  # in place of an index into SPLITS
NO_GROUP = "00" * HASH_SIZE


class SplitVersion(TypedDict):
    """What a checkpoint keeps of the split that it was trained with."""

    count: int  # of photos
    sha256: str  # of their entries


@dataclass(frozen=True, eq=False)
class SplitAssignments:
    """The split of each photo, in the order in which the photos came."""

    file: Path  # for messages
    hashes: UInt8Array  # (m, HASH_SIZE), of the photos' contents
    splits: Int8Array  # (m,), indices into SPLITS
    groups: UInt8Array  # (m, HASH_SIZE): near duplicates have the hash of one of them; else zeros
    products: UInt8Array  # (m, HASH_SIZE): see products.py; zeros for a photo of none

    def __len__(self) -> int:
        return len(self.splits)

    @classmethod
    def read(cls, model_dir: Path) -> "SplitAssignments":
        """Those in a model folder; none if there is no file. Raises like `parse`."""
        file = model_dir / SPLIT
        return cls.parse(file.read_bytes() if file.exists() else b"", file)

    @classmethod
    def parse(cls, content: bytes, file: Path) -> "SplitAssignments":
        """Those in a file with this content; none if it is empty. BadInput if it is damaged."""
        try:
            parsed = json.loads(content or EMPTY)
            if parsed["format"] not in (OLDER, FORMAT):
                raise ValueError(f"format {parsed['format']}")
            products = parsed["product"] if parsed["format"] == FORMAT else {}
            new = NO_ASSIGNMENTS.extended(parsed["split"], parsed["group"], products)
            return replace(new, file=file)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadInput(
                f"{file}: damaged ({error}); restore it, or move it away and train with --fresh"
            ) from None

    def to_json(self) -> bytes:
        """The content of the file: one line per photo."""
        splits = (SPLITS[i] for i in self.splits.tolist())
        split = dict(zip(to_hex(self.hashes), splits, strict=True))
        of_photos = {"group": self.groups_by_photo(), "product": self.products_by_photo()}
        content = {"format": FORMAT, "split": split, **of_photos}
        return json.dumps(content, separators=(",\n", ": ")).encode() + b"\n"

    def write(self, model_dir: Path) -> None:
        """Write the file into the model folder, unless it is there already."""
        file, content = model_dir / SPLIT, self.to_json()
        if not (file.exists() and file.read_bytes() == content):
            write_atomically(file, content)

    def version(self, count: int | None = None) -> SplitVersion:
        """The version, or the earlier one that had only the first `count` photos."""
        count = len(self) if count is None else count
        digest = hashlib.sha256()
        for entries in self.hashes, self.splits, self.groups:
            digest.update(entries[:count].tobytes())
        if self.products[:count].any():  # so that a split without them has the version it had
            digest.update(self.products[:count].tobytes())
        return {"count": count, "sha256": digest.hexdigest()}

    def require(self, version: SplitVersion) -> "SplitAssignments":
        """These assignments; BadInput if they are not this version, or one with more photos."""
        if self.version(version["count"]) != version:
            problem = "changed" if len(self) else "missing"
            raise BadInput(
                f"{self.file}: {problem} since the checkpoint was trained, so it is unknown which "
                "photos it has not seen; restore it, or train with --fresh"
            )
        return self

    def splits_of(self, hashes: UInt8Array) -> Int8Array:
        """(n, HASH_SIZE) -> (n,), indices into SPLITS, or UNASSIGNED."""
        rows = find_rows(self.hashes, hashes)
        splits = np.full(len(hashes), UNASSIGNED, np.int8)
        splits[rows >= 0] = self.splits[rows[rows >= 0]]
        return splits

    def groups_by_photo(self) -> dict[str, str]:
        """{photo: group} as hashes, for photos with near duplicates."""
        return self.keys_by_photo(self.groups)

    def products_by_photo(self) -> dict[str, str]:
        """{photo: product} as hashes, for photos of products."""
        return self.keys_by_photo(self.products)

    def products_splits(self) -> dict[str, str]:
        """{photo: split} of photos of products."""
        rows = np.flatnonzero(self.products.any(axis=1))
        splits = (SPLITS[i] for i in self.splits[rows].tolist())
        return dict(zip(to_hex(self.hashes[rows]), splits, strict=True))

    def keys_by_photo(self, keys: UInt8Array) -> dict[str, str]:
        pairs = zip(to_hex(self.hashes), to_hex(keys), strict=True)
        return {photo: key for photo, key in pairs if key != NO_GROUP}

    def extended(
        self, splits: dict[str, str], groups: dict[str, str], products: dict[str, str]
    ) -> "SplitAssignments":
        """These and more photos: {hash: split}, {hash: group} of near duplicates, {hash: product}.

        Raises ValueError for an invalid hash or split.
        """
        indices = [SPLITS.index(split) for split in splits.values()]
        hashes = from_hex(list(splits))
        group_keys, product_keys = (
            from_hex([keys.get(photo, NO_GROUP) for photo in splits]) for keys in (groups, products)
        )
        return SplitAssignments(
            self.file,
            np.concatenate([self.hashes, hashes]),
            np.concatenate([self.splits, np.array(indices, np.int8)]),
            np.concatenate([self.groups, group_keys]),
            np.concatenate([self.products, product_keys]),
        )


def from_hex(texts: list[str]) -> UInt8Array:
    """(n, HASH_SIZE)"""
    if any(len(text) != 2 * HASH_SIZE for text in texts):
        raise ValueError("a hash of another length")
    return np.frombuffer(bytes.fromhex("".join(texts)), np.uint8).reshape(len(texts), HASH_SIZE)


def to_hex(hashes: UInt8Array) -> list[str]:
    text = hashes.tobytes().hex()
    return [text[start : start + 2 * HASH_SIZE] for start in range(0, len(text), 2 * HASH_SIZE)]


NO_HASHES = np.empty((0, HASH_SIZE), np.uint8)
NO_SPLITS = np.empty(0, np.int8)
NO_ASSIGNMENTS = SplitAssignments(Path(SPLIT), NO_HASHES, NO_SPLITS, NO_HASHES, NO_HASHES)
