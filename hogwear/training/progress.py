"""How training is coming along: a bar on a terminal."""

import sys

from tqdm import tqdm

from hogwear.cluster.peers import SingleMachine


class TrainingBar:
    """Images/s, loss and the time left, over the whole course."""

    def __init__(self, total: int, done: int, cluster: SingleMachine) -> None:
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
