"""The progress of training: a bar on a terminal, with the figures that the epoch line will have."""

import sys
from typing import Self

from tqdm import tqdm

from hogwear.cluster.peers import SingleMachine
from hogwear.training.history import RunningMetrics

OPEN_ENDED = "{desc}: {n_fmt} images [{elapsed}{postfix}]"
WITH_END = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} images [{elapsed}<{remaining}{postfix}]"
)


class TrainingBar:
    """Images of the run by all machines, and the present speed and loss.

    Where the run's length is known, also the time left.
    """

    def __init__(self, cluster: SingleMachine) -> None:
        self.machines = cluster.machines
        self.bar = tqdm(
            desc="training",
            bar_format=OPEN_ENDED,
            disable=True if cluster.rank else None,  # None: where stderr is no terminal
            leave=False,
            smoothing=0.1,
        )

    def update(self, images_seen: int, total_images: int | None, metrics: RunningMetrics) -> None:
        """Show the images of this machine and the `metrics` since the last validation."""
        if metrics.seconds:
            speed = metrics.images * self.machines / metrics.seconds
            train_loss = metrics.loss / metrics.images
            self.bar.set_postfix_str(f"{speed:.0f} images/s, train loss {train_loss:.3f}", False)
        if total_images is not None:
            self.bar.bar_format = WITH_END
            self.bar.total = total_images * self.machines
        self.bar.update(images_seen * self.machines - self.bar.n)

    def print(self, line: str) -> None:
        """Print a line on stdout, above the bar."""
        self.bar.write(line, file=sys.stdout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
