"""A time budget: the speed of this machine, the photo size that suits the time, the run's length.

docs/decisions/time-budget.md has the measurements.
"""

import statistics
import time
import timeit
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from hogwear.data.decoding import Limits
from hogwear.data.photos import Split
from hogwear.data.safe_decoder import SafeDecoder
from hogwear.networks.network import Network
from hogwear.system.errors import BadInput
from hogwear.system.workers import MAX_IN_FLIGHT, Workers

Sizes = tuple[tuple[int, float], ...]  # sides of photos, and epochs of each that must fit
SIZES: Sizes = ((224, 2.0), (192, 1.75), (160, 1.25), (128, 1.0), (96, 0.25))
MIN_EPOCHS = 0.25  # at a size that the user has chosen
MEASURED_SIZE = 160
MEASURED_BATCH = 16
MAX_DECODING_SECONDS = 1.0  # per photo while speed is measured; the cache has more patience
MIN_IMAGES = 256  # trained on before the measured speed counts
START_UP_SECONDS = 1.5  # of a run, besides what grows with the photos
SAVING_SECONDS = 0.3  # from the last validation to the exit


@dataclass(frozen=True)
class Speed:
    """Seconds per photo with all workers busy; prediction and training at MEASURED_SIZE."""

    decoding: float
    prediction: float
    training: float


def measure_speed(net: Network, split: Split, limits: Limits, workers: int) -> Speed:
    """Measure the speed with that many workers, in about a second."""
    torch.set_num_threads(1)  # as in training: the workers are forked from here
    decoding = measure_decoding(split, limits, workers)
    shape = MEASURED_BATCH, MEASURED_SIZE, MEASURED_SIZE, 3
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    labels = torch.zeros(MEASURED_BATCH, dtype=torch.int64)
    crop = net.crop_size(MEASURED_SIZE)

    def predict(item: int) -> None:
        with torch.inference_mode():
            net(images)

    def train(item: int) -> None:
        F.cross_entropy(net(images[:, :crop, :crop]), labels).backward()

    with Workers(workers, lambda rank: {"predict": predict, "train": train}) as pool:
        for job in "train", "predict":
            list(pool.run(job, range(workers)))  # the first time, oneDNN creates its kernels

        def measure(job: str) -> float:
            """Seconds per photo, the best of three rounds: other programs should not count."""
            rounds = timeit.repeat(
                lambda: list(pool.run(job, range(2 * workers))), repeat=3, number=1
            )
            return min(rounds) / (2 * workers * MEASURED_BATCH)

        return Speed(decoding, measure("predict"), measure("train"))


def measure_decoding(split: Split, limits: Limits, workers: int) -> float:
    """Seconds per photo with all workers busy."""
    limits = replace(limits, seconds=MAX_DECODING_SECONDS)
    decoder = SafeDecoder(split.paths, MEASURED_SIZE, limits, workers, [split.root])

    def decode(item: int) -> float | None:
        started = time.perf_counter()
        if isinstance(decoder.decode(item % len(split)), str):
            return None
        return time.perf_counter() - started

    with decoder.workers({"decode": decode}) as pool:
        # The first time, Pillow imports its decoders; so each worker decodes something first.
        list(pool.run("decode", range(MAX_IN_FLIGHT * workers)))
        times = [seconds for _, seconds in pool.run("decode", range(8 * workers))]
    return statistics.fmean([seconds for seconds in times if seconds is not None] or [0]) / workers


@dataclass(frozen=True)
class Workload:
    """Numbers of photos."""

    train: int
    val: int
    head: int  # seen once more by the closed form, before the first epoch


@dataclass(frozen=True)
class Budget:
    """A plan for a run, which is corrected after every batch."""

    deadline: float  # of time.monotonic()
    image_size: int
    images: int  # to train on, as forecast before the run
    validation_seconds: float  # each time, as forecast

    def images_left(self, images: int, seconds: float, per_epoch: int) -> int | None:
        """How many more images fit into the time, with a validation per epoch and at the end.

        The forecast assumes the speed so far, `images` in `seconds`; None for too few of them.
        """
        if images < MIN_IMAGES:
            return None
        left = self.deadline - SAVING_SECONDS - time.monotonic() - self.validation_seconds
        return max(0, int(left / (seconds / images + self.validation_seconds / per_epoch)))


def plan_run(speed: Speed, deadline: float, work: Workload, sizes: Sizes = SIZES) -> Budget:
    """The first of `sizes` for which enough epochs fit into the time. BadInput if none does."""
    decoding = (work.train + work.val) * speed.decoding
    left = deadline - time.monotonic() - START_UP_SECONDS - decoding
    for size, enough in sizes:
        scale = (size / MEASURED_SIZE) ** 2
        validation = scale * work.val * speed.prediction
        closed_form = scale * work.head * speed.prediction
        training = scale * work.train * speed.training
        epochs = (left - validation - closed_form) / (training + validation)
        if epochs >= enough:
            return Budget(deadline, size, round(epochs * work.train), validation)
    raise BadInput(
        f"--time-budget: too short for {work.train} photos on this machine; "
        "allow more seconds, or omit the flag"
    )
