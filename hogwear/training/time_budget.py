"""A time budget: measures the speed of this machine, and chooses image size and length of a run.

docs/decisions/time-budget.md has the measurements.
"""

import statistics
import time
import timeit
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from hogwear.data.decoding import Limits
from hogwear.data.photos import Split
from hogwear.data.safe_decoder import SafeDecoder
from hogwear.networks.network import Network
from hogwear.system.errors import BadInput
from hogwear.system.workers import MAX_IN_FLIGHT, Workers

SIZES = (288, 256, 224, 192, 160, 128, 96)  # sides of photos to choose from, in pixels
# At most this share of the time goes into the first classifier, or SCRATCH_EPOCHS without one
FIRST_STAGE_SHARE = 0.6
SCRATCH_EPOCHS = 5  # the fewest epochs that a network without pretrained weights needs
MEASURED_SIZE = 160
MEASURED_BATCH = 16
MAX_DECODING_SECONDS = 1.0  # per photo while speed is measured; the cache has more patience
MIN_IMAGES = 256  # trained on before the measured speed counts
START_UP_SECONDS = 1.5  # of a run, besides what grows with the photos
SOLVING_SECONDS, SOLVING_AGAIN_SECONDS = 2.5, 1.0  # to fit both heads, and to refit one
TAIL_SHARE = 0.4  # of the time of a forward pass
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
    """Numbers of photos, and whether the network has pretrained weights."""

    train: int
    val: int
    pretrained: bool


@dataclass
class Budget:
    """The plan of a run with a time budget: it trains until there is just time to finish."""

    deadline: float  # of time.monotonic()
    image_size: int
    closing_seconds: float  # expected from the last step to the exit

    def expect_validation(self, seconds: float) -> None:
        """Expect the last validation to take as long as one that has been measured."""
        self.closing_seconds = seconds + SAVING_SECONDS

    @property
    def seconds_left(self) -> float:
        """The seconds that are left for training."""
        return self.deadline - self.closing_seconds - time.monotonic()

    def images_left(self, images: int, seconds: float) -> int | None:
        """How many more images there is time for, at the speed of `images` in `seconds` so far.

        None if `images` are too few to tell.
        """
        if images < MIN_IMAGES:
            return None
        return max(0, int(self.seconds_left * images / seconds))


def plan_run(speed: Speed, deadline: float, work: Workload, sizes: Sequence[int] = SIZES) -> Budget:
    """The plan with the first of `sizes` that leaves time for training, or the last that fits.

    BadInput if none fits.
    """
    left = deadline - time.monotonic() - START_UP_SECONDS - (work.train + work.val) * speed.decoding
    for size in sizes:
        scale = (size / MEASURED_SIZE) ** 2
        one_pass = scale * work.train * speed.prediction
        validation = scale * work.val * speed.prediction
        closing = SAVING_SECONDS + validation
        needed = closing + SCRATCH_EPOCHS * scale * work.train * speed.training
        if work.pretrained:
            needed = SOLVING_SECONDS + one_pass + validation
            closing += SOLVING_AGAIN_SECONDS + TAIL_SHARE * one_pass
        if needed <= FIRST_STAGE_SHARE * left or (size == sizes[-1] and needed <= left):
            return Budget(deadline, size, closing)
    raise BadInput(
        f"--time-budget: too short for {work.train} photos on this machine; "
        "allow more seconds, or omit the flag"
    )
