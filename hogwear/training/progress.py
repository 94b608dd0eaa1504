"""The progress of training: a bar on a terminal, with the figures that the epoch line will have."""

import sys
from typing import Self

from tqdm import tqdm

from hogwear.cluster.peers import SingleMachine
from hogwear.training.history import RunningMetrics


class TrainingBar:
    """Images of the run by all machines, the time left, and speed and loss of the current epoch."""

    def __init__(self, total_images: int, images_seen: int, cluster: SingleMachine) -> None:
        self.machines = cluster.machines
        self.bar = tqdm(
            total=total_images * self.machines,
            initial=images_seen * self.machines,
            desc="training",
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} images "
            "[{elapsed}<{remaining}{postfix}]",
            disable=True if cluster.rank else None,  # None: where stderr is no terminal
            leave=False,
            smoothing=0.1,
        )

    def update(self, images_seen: int, total_images: int, metrics: RunningMetrics) -> None:
        """Show the images of this machine and the `metrics` of the epoch."""
        if metrics.seconds:
            speed = metrics.images * self.machines / metrics.seconds
            train_loss = metrics.loss / metrics.images
            self.bar.set_postfix_str(f"{speed:.0f} images/s, train loss {train_loss:.3f}", False)
        self.bar.total = total_images * self.machines
        self.bar.update(images_seen * self.machines - self.bar.n)

    def print(self, line: str) -> None:
        """Print a line on stdout, above the bar."""
        self.bar.write(line, file=sys.stdout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
