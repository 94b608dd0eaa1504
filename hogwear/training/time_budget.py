"""A time budget: how fast this machine trains, the size of photos that suits the time, and the length that fits into it."""

import statistics
import time
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hogwear.data.decoding import Limits
from hogwear.data.photos import Split
from hogwear.data.safe_decoder import SafeDecoder
from hogwear.networks.network import Network
from hogwear.system.errors import BadInput
from hogwear.system.workers import MAX_IN_FLIGHT, Workers

# Sides of photos, and how many epochs there must be time for to make each worth its cost; docs/decisions/time-budget.md.
Sizes = tuple[tuple[int, float], ...]
SIZES: Sizes = ((224, 2.0), (192, 1.75), (160, 1.25), (128, 1.0), (96, 0.25))
PROBED_SIZE, PROBED_BATCH = 160, 16
START_UP, SAVING = (
    1.5,
    0.3,
)  # seconds that a run takes beside what grows with the photos; from the last validation to the exit
PROBED_SECONDS = (
    1.0  # for a photo to be decoded while the clock is running; the cache, later, has more patience
)
WARM_UP = 256  # images before the speed of training is believed


@dataclass(frozen=True)
class Speed:
    """Seconds a photo with all workers at work; predicting and training are at PROBED_SIZE."""

    decoding: float
    predicting: float
    training: float


def probe(net: Network, split: Split, limits: Limits, workers: int) -> Speed:
    """Measure the speeds of a network with so many processes at once, in about a second."""
    torch.set_num_threads(1)  # as in training: the workers are forked from here
    decoder = SafeDecoder(
        split.paths, PROBED_SIZE, replace(limits, seconds=PROBED_SECONDS), workers, [split.root]
    )
    images = torch.randint(0, 256, (PROBED_BATCH, PROBED_SIZE, PROBED_SIZE, 3), dtype=torch.uint8)
    crop = net.crop_size(PROBED_SIZE)

    def decode(item: int) -> float | None:
        started = time.perf_counter()
        return (
            None
            if isinstance(decoder.decode(item % len(split)), str)
            else time.perf_counter() - started
        )

    def predict(item: int) -> None:
        with torch.inference_mode():
            net(images)

    def train(item: int) -> None:
        logits: Tensor = net(images[:, :crop, :crop])
        F.cross_entropy(logits, torch.zeros(PROBED_BATCH, dtype=torch.int64)).backward()

    with decoder.workers({"decode": decode}) as pool:
        dict(
            pool.run("decode", range(MAX_IN_FLIGHT * workers))
        )  # two for each: the first time, Pillow imports its decoders
        decoding = [
            seconds for _, seconds in pool.run("decode", range(8 * workers)) if seconds is not None
        ]

    with Workers(workers, lambda rank: {"predict": predict, "train": train}) as pool:

        def seconds(job: str) -> float:
            """For a photo, of the best of three rounds: what else the machine does shall not count."""
            rounds = []
            for _ in range(3):
                started = time.perf_counter()
                for _ in pool.run(job, range(2 * workers)):
                    pass
                rounds.append((time.perf_counter() - started) / (2 * workers * PROBED_BATCH))
            return min(rounds)

        for job in "train", "predict":
            for _ in pool.run(job, range(workers)):  # the first time, oneDNN makes its kernels
                pass
        return Speed(
            statistics.fmean(decoding or [0]) / workers, seconds("predict"), seconds("train")
        )


@dataclass(frozen=True)
class Budget:
    """A plan, and what fits the length of its run into the time that is left, again after every batch."""

    deadline: float  # of time.monotonic()
    image_size: int
    images: int  # to train on, as it looks before the run
    validation: float  # seconds that one should take

    def more(self, images: int, seconds: float, per_epoch: int) -> int | None:
        """Images there is time for from now on, with a validation after each epoch of so many and at the end.

        Judged by the `images` trained on until now and the `seconds` that took; None while they are too few.
        """
        if images < WARM_UP:
            return None
        left = self.deadline - SAVING - time.monotonic() - self.validation
        return max(0, int(left / (seconds / images + self.validation / per_epoch)))


def plan(
    speed: Speed, deadline: float, train: int, val: int, head: int, sizes: Sizes = SIZES
) -> Budget:
    """The first of `sizes` for which enough epochs fit into the time. BadInput if none does.

    There are `train` and `val` photos, `head` of which are seen once more before the first epoch.
    """
    left = deadline - time.monotonic() - START_UP - (train + val) * speed.decoding
    for size, enough in sizes:
        scale = (size / PROBED_SIZE) ** 2
        validation = scale * val * speed.predicting
        epochs = (left - validation - scale * head * speed.predicting) / (
            scale * train * speed.training + validation
        )
        if epochs >= enough:
            return Budget(deadline, size, round(epochs * train), validation)
    raise BadInput(
        f"--time-budget: too short for {train} photos on this machine; give it more seconds, or leave it out"
    )
