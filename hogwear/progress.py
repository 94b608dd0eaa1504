"""What is going on: a bar on a terminal, whole lines elsewhere."""

import sys
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from hogwear import contents, pixels
from hogwear.cache import PhotoCache
from hogwear.dataset import Split
from hogwear.errors import BadInput
from hogwear.link import ALONE, Alone
from hogwear.pixels import Ints, Pixels
from hogwear.text import escaped

SKIPPED_SHOWN = 10


def decoded(
    cache: PhotoCache,
    split: Split,
    size: int,
    meanwhile: Callable[[], object] = lambda: None,
    others: Alone = ALONE,
) -> Pixels:
    """`PhotoCache.open` with a bar, naming the photos that could not be read; of this machine's part."""
    count = len(range(len(split))[others.part])
    with tqdm(
        total=count,
        desc=f"decoding {split.name}",
        unit=" photos",
        disable=True if others.rank else None,
        delay=0.5,
        leave=False,
    ) as bar:

        def on_photos(more: int) -> None:
            bar.update(more)
            others.beat()

        opened = cache.open(split, size, others.part, on_photos, meanwhile)
    for path, why in list(opened.skipped.items())[:SKIPPED_SHOWN]:
        print(escaped(f"Warning: skipped '{path}': {why}"), file=sys.stderr)
    if (more := len(opened.skipped) - SKIPPED_SHOWN) > 0:
        print(f"Warning: skipped {more} more photos of {split.name}", file=sys.stderr)
    return opened


def unseen(pixels: Pixels, trained_on: Ints, name: str) -> Pixels:
    """Those photos of a split that no weights were trained on, by contents.short, (k,); the others are counted. BadInput if there are none.

    A photo may be in train, too, or may have been there before somebody moved it.
    """
    is_new = ~np.isin(contents.short(pixels.hashes), trained_on)
    if seen := len(pixels) - int(is_new.sum()):
        told = f"{seen} of {len(pixels)} photos in {name}"
        if not is_new.any():
            raise BadInput(
                f"{told} were used for training, so nothing is left to measure: put others there, or train with --fresh once they are no longer in train"
            )
        print(f"Warning: {told} were used for training and are excluded", file=sys.stderr)
    return pixels.where(is_new)


def warn_of_leakage(train: Pixels, held_out: Pixels, name: str) -> None:
    """Say how many photos of a split are in train, too."""
    if count := pixels.leaked(train, held_out):
        print(f"Warning: leakage: {name} shares {count} of its {len(held_out)} photos with train, exactly or nearly: its figures may be too good; "
              "the doctor lists them: docker compose run --rm doctor, or python -m hogwear.dataset doctor", file=sys.stderr)  # fmt: skip


class TrainingBar:
    """Images/s, loss and the time left, over the whole course."""

    def __init__(self, total: int, done: int, cluster: Alone) -> None:
        self.machines = cluster.machines
        hidden = True if cluster.rank else None  # None: where there is no terminal
        self.bar = tqdm(
            total=total * self.machines,
            initial=done * self.machines,
            desc="training",
            unit=" images",
            disable=hidden,
            smoothing=0.1,
        )
        self.loss = 0.0

    def show(self, images: int, loss: float) -> None:
        """So many images more; `loss` is their mean."""
        self.loss = 0.9 * self.loss + 0.1 * loss if self.loss else loss
        self.bar.set_postfix(loss=f"{self.loss:.3f}", refresh=False)
        self.bar.update(images * self.machines)

    def end_at(self, total: int) -> None:
        """The course has become longer or shorter."""
        self.bar.total = total * self.machines

    def back_to(self, images: int) -> None:
        """So many are done, and not more."""
        self.bar.n = images * self.machines

    def write(self, line: str) -> None:
        """A line above the bar, on stdout."""
        self.bar.write(line, file=sys.stdout)

    def __enter__(self) -> "TrainingBar":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
