"""The photos of a data folder and of its splits: paths, classes and hashes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hogwear.data.corrections import Corrections
from hogwear.system.arrays import BoolArray, Int64Array, UInt8Array
from hogwear.system.paths import Paths


@dataclass(frozen=True, eq=False)
class Split:
    """The photos of one split; row i of everything made from it belongs to paths[i]."""

    name: str
    paths: Paths
    labels: Int64Array  # (n,) indices into class_names
    root: Path  # the folder that no link of a photo may lead out of
    hashes: UInt8Array  # (n, HASH_SIZE), of their contents; zeros for a photo that cannot be read
    products: UInt8Array  # (n, HASH_SIZE), equal for photos of one product; zeros: of none
    unread: dict[int, str]  # {row: why it cannot be read}

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def is_readable(self) -> BoolArray:
        return np.asarray(self.hashes.any(axis=1))

    def where(self, mask: BoolArray, name: str) -> "Split":
        """The photos where the mask, (n,), is true, as a split of this name."""
        rows = np.cumsum(mask) - 1
        unread = {int(rows[row]): why for row, why in self.unread.items() if mask[row]}
        paths, labels, hashes = self.paths.where(mask), self.labels[mask], self.hashes[mask]
        return Split(name, paths, labels, self.root, hashes, self.products[mask], unread)

    def count_per_class(self, class_names: tuple[str, ...]) -> dict[str, int]:
        """{class: number of photos}."""
        counts = np.bincount(self.labels, minlength=len(class_names))
        return dict(zip(class_names, counts.tolist(), strict=True))


@dataclass(frozen=True)
class Photos:
    """The photos of a data folder."""

    folder: Path
    class_names: tuple[str, ...]  # sorted; the order of the network's outputs
    train: Split
    val: Split
    test: Split | None
    is_sample: bool
    notes: tuple[str, ...] = ()  # for people: on the rows of a table, and on how photos were split
    corrections: Corrections | None = None  # what corrections.csv has changed
    warnings: tuple[str, ...] = ()  # of train: products that are in several splits

    @property
    def splits(self) -> list[Split]:
        """Train, val, and test if there is one."""
        return [self.train, self.val, *([self.test] if self.test else [])]

    @property
    def evaluated(self) -> Split:
        """The split that eval and infer use: test, or val if there is no test."""
        return self.test or self.val
