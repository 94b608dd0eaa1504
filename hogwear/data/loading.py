"""Loading a split: its photos decoded with a progress bar, and what must not be measured left out."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from hogwear.data import contents, pixels
from hogwear.data.cache import PhotoCache
from hogwear.data.photos import Split
from hogwear.data.pixels import ALL_ROWS, Pixels
from hogwear.system.arrays import Int64Array
from hogwear.system.errors import BadInput
from hogwear.system.text import escape

SKIPPED_SHOWN = 10


@dataclass(frozen=True)
class Loader:
    """Decodes the photos of a split that are not in the cache yet, and names those that cannot be read.

    In a cluster, `part` is this machine's share of the rows, `heartbeat` tells the others that it is still
    working, and only one machine shows progress.
    """

    cache: PhotoCache
    part: slice = field(default_factory=lambda: ALL_ROWS)
    heartbeat: Callable[[], object] = lambda: None
    shows_progress: bool = True

    def load(
        self, split: Split, size: int, meanwhile: Callable[[], object] = lambda: None
    ) -> Pixels:
        """The readable photos of a split as pixels. Raises as PhotoCache.open, which also calls `meanwhile`."""
        with tqdm(
            total=len(range(len(split))[self.part]),
            desc=f"decoding {split.name}",
            unit=" photos",
            disable=None if self.shows_progress else True,
            delay=0.5,
            leave=False,
        ) as bar:

            def on_photos(more: int) -> None:
                bar.update(more)
                self.heartbeat()

            opened = self.cache.open(split, size, self.part, on_photos, meanwhile)
        for path, why in list(opened.skipped.items())[:SKIPPED_SHOWN]:
            print(escape(f"Warning: skipped '{path}': {why}"), file=sys.stderr)
        if (more := len(opened.skipped) - SKIPPED_SHOWN) > 0:
            print(f"Warning: skipped {more} more photos of {split.name}", file=sys.stderr)
        return opened


def exclude_trained_on(pixels: Pixels, trained_on: Int64Array, name: str) -> Pixels:
    """Those photos of a split that no weights were trained on, by contents.short_hashes, (k,); the others are counted. BadInput if there are none.

    A photo may be in train, too, or may have been there before somebody moved it.
    """
    is_new = ~np.isin(contents.short_hashes(pixels.hashes), trained_on)
    if seen := len(pixels) - int(is_new.sum()):
        told = f"{seen} of {len(pixels)} photos in {name}"
        if not is_new.any():
            raise BadInput(
                f"{told} were used for training, so nothing is left to measure: put others there, or train with --fresh once they are no longer in train"
            )
        print(f"Warning: {told} were used for training and are excluded", file=sys.stderr)
    return pixels.where(is_new)


def warn_about_leakage(train: Pixels, held_out: Pixels, name: str) -> None:
    """Say how many photos of a split are in train, too."""
    if count := pixels.count_leaked(train, held_out):
        print(f"Warning: leakage: {name} shares {count} of its {len(held_out)} photos with train, exactly or nearly: its figures may be too good; "
              "the doctor lists them: docker compose run --rm doctor, or python -m hogwear.commands.doctor", file=sys.stderr)  # fmt: skip
