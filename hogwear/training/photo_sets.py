"""Which photos a run is trained on and validated with, so that a later one notices when they have changed.

What was measured on some photos is no figure of others.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hogwear.cluster.peers import SINGLE_MACHINE, SingleMachine
from hogwear.data.pixels import Pixels


@dataclass(frozen=True)
class PhotoSet:
    """The readable photos of one split; equal where contents and classes are, wherever the files lie."""

    count: int
    sha256: str  # of the pairs of class and content, sorted

    @classmethod
    def of(
        cls, pixels: Pixels, class_names: tuple[str, ...], others: SingleMachine = SINGLE_MACHINE
    ) -> "PhotoSet":
        """The photos of all machines together."""
        hashes, labels = others.all_gather([pixels.hashes, pixels.labels])
        digest = hashlib.sha256()
        for label, name in enumerate(class_names):
            of_class = sorted(map(bytes, hashes[labels == label]))
            digest.update(json.dumps([name, len(of_class)]).encode())
            digest.update(b"".join(of_class))
        return cls(len(labels), digest.hexdigest())


@dataclass(frozen=True)
class PhotoSets:
    """What a run learns from and what it is measured on."""

    is_sample: bool
    train: PhotoSet
    val: PhotoSet

    @classmethod
    def from_state(cls, photos: dict[str, Any]) -> "PhotoSets":
        """Those of a checkpoint, where they are kept as a dict."""
        return cls(photos["is_sample"], PhotoSet(**photos["train"]), PhotoSet(**photos["val"]))

    def changes_since(self, before: "PhotoSets") -> Iterator[str]:
        """What is no longer the same, for people."""
        for old, new, purpose in (
            (before.train, self.train, "to train on"),
            (before.val, self.val, "to validate with"),
        ):
            if new.count != old.count:
                yield f"{old.count:,} photos {purpose} before, {new.count:,} now"
            elif new != old:
                yield f"some of the {new.count:,} photos {purpose} are new or belong to another class"
