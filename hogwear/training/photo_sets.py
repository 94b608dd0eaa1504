"""The photos that a run trains on and is validated with, so that a later run notices changes."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from hogwear.cluster.peers import SINGLE_MACHINE, SingleMachine
from hogwear.data.contents import shorten_hashes
from hogwear.data.photos import Split
from hogwear.data.pixels import Pixels
from hogwear.system.arrays import Int64Array


def add_photos(trained_on: Int64Array | None, train: Split) -> Int64Array:
    """`trained_on`, (k,), the shortened hashes of all photos trained on, with those of a split."""
    readable = shorten_hashes(train.hashes[train.is_readable])
    return np.unique(readable) if trained_on is None else np.union1d(trained_on, readable)


@dataclass(frozen=True)
class PhotoSet:
    """The readable photos of a split; equal if contents and classes are, whatever their names."""

    count: int
    sha256: str  # of the pairs of class and content, sorted

    @classmethod
    def from_pixels(
        cls, pixels: Pixels, class_names: tuple[str, ...], cluster: SingleMachine = SINGLE_MACHINE
    ) -> Self:
        """The photos of this split on all machines together; `class_names` are those of labels."""
        hashes, labels = cluster.all_gather([pixels.hashes, pixels.labels])
        digest = hashlib.sha256()
        for name, label in sorted(zip(class_names, range(len(class_names)), strict=True)):
            of_class = sorted(map(bytes, hashes[labels == label]))
            digest.update(json.dumps([name, len(of_class)]).encode())
            digest.update(b"".join(of_class))
        return cls(len(labels), digest.hexdigest())


@dataclass(frozen=True)
class PhotoSets:
    """The photos of a run."""

    is_sample: bool  # the built-in sample, not the user's photos
    train: PhotoSet
    val: PhotoSet

    def renamed_from(self, before: Self, saved: Self) -> Self:
        """The saved sets, with present names of the classes where nothing else has changed.

        `before` are the present photos with the names before.
        """
        return replace(
            self,
            train=self.train if saved.train == before.train else saved.train,
            val=self.val if saved.val == before.val else saved.val,
        )

    def changes_since(self, before: Self) -> Iterator[str]:
        """What is different now, one phrase per split."""
        splits = ((before.train, self.train, "training"), (before.val, self.val, "validation"))
        for old, new, kind in splits:
            if new.count != old.count:
                yield f"{old.count:,} {kind} photos before, {new.count:,} now"
            elif new != old:
                yield f"some of the {new.count:,} {kind} photos are new or in another class"
