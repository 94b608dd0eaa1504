"""What is going on: a bar on a terminal, whole lines elsewhere."""

import sys
from pathlib import Path

from tqdm import tqdm

from hogwear import machine
from hogwear.dataset import Split
from hogwear.hogwild import Course, Result
from hogwear.pixels import Pixels

SKIPPED_SHOWN = 10


def decoded(split: Split, size: int, cache_dir: Path) -> Pixels:
    """`Pixels.open` on all CPUs with a bar, naming the photos that could not be read."""
    with tqdm(total=len(split), desc=f"decoding {split.name}", unit=" photos", disable=None, delay=0.5, leave=False) as bar:
        pixels = Pixels.open(split, size, cache_dir, machine.cpus(), bar.update)
    for path, why in list(pixels.skipped.items())[:SKIPPED_SHOWN]:
        print(f"Warning: skipped {str(path)!r}: {why}", file=sys.stderr)
    if (more := len(pixels.skipped) - SKIPPED_SHOWN) > 0:
        print(f"Warning: skipped {more} more photos of {split.name}", file=sys.stderr)
    return pixels


class TrainingBar:
    """Images/s, loss and the time left, over the whole course."""

    def __init__(self, course: Course, step: int) -> None:
        self.bar = tqdm(total=course.images_before(course.steps), initial=course.images_before(step), desc="training",
                        unit=" images", disable=None, smoothing=0.1)  # fmt: skip
        self.loss = 0.0

    def show(self, result: Result) -> None:
        self.loss = result.loss if not self.loss else 0.9 * self.loss + 0.1 * result.loss
        self.bar.set_postfix(loss=f"{self.loss:.3f}", refresh=False)
        self.bar.update(result.images)

    def write(self, line: str) -> None:
        """A line above the bar, on stdout."""
        self.bar.write(line, file=sys.stdout)

    def __enter__(self) -> "TrainingBar":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
