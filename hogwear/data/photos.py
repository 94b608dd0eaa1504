"""The photos of a data folder, and of one split of it: their paths, classes and contents."""

from dataclasses import dataclass
from pathlib import Path

from hogwear.data.contents import Contents
from hogwear.system.arrays import BoolArray, Int64Array
from hogwear.system.files import Paths


@dataclass(frozen=True, eq=False)
class Split:
    """Photos of one split; row i of everything made from it is paths[i]."""

    name: str
    paths: Paths
    labels: Int64Array  # (n,) indices into class_names
    root: Path  # the folder that no link of a photo may lead out of
    contents: Contents

    def __len__(self) -> int:
        return len(self.paths)

    def where(self, mask: BoolArray, name: str) -> "Split":
        """Those where the mask, (n,), is true, as a split of this name."""
        return Split(
            name, self.paths.where(mask), self.labels[mask], self.root, self.contents.where(mask)
        )


@dataclass(frozen=True)
class Photos:
    """A whole data folder."""

    folder: Path
    class_names: tuple[str, ...]  # sorted; the order of the network's outputs
    train: Split
    val: Split
    test: Split | None
    is_sample: bool
    notes: tuple[
        str, ...
    ] = ()  # on the rows of its table, and on how they were divided, for people

    @property
    def evaluated(self) -> Split:
        """What eval and infer look at: test, or val where there is no test."""
        return self.test or self.val
