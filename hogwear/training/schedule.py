"""The schedule of a run: the order of its photos, its learning rate, and its averaged weights.

All depend only on the step and the seed, so a batch is the same whichever worker computes it. None
depends on the length of the run: its averaged weights are good whenever it ends
(docs/decisions/fine-tuning.md).
"""

import ctypes
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np

from hogwear.networks.network import Network
from hogwear.system.arrays import Int64Array
from hogwear.system.workers import FORK
from hogwear.training.hyperparameters import Hyperparameters

WARM_UP_IMAGES = 320  # over which the learning rate rises; then it stays
STEADY_WORKERS = 4  # more of them need a lower learning rate
AVERAGED_STEPS = 8  # from one sample of the weights in their average to the next
RECENCY = 3.0  # of the average: 0 weighs all samples alike, 3 mostly the last quarter of them


class LiveSettings(ctypes.Structure):
    """The part of a schedule that the training process changes in shared memory during a run."""

    lr_scale: float  # factor of the learning rate, halved whenever training diverges
    _fields_ = (("lr_scale", ctypes.c_double),)

    @classmethod
    def create(cls, lr_scale: float = 1.0) -> Self:
        return FORK.RawValue(cls, lr_scale)


@dataclass(frozen=True)
class Schedule:
    """Which photos each step of a run trains on, and at which learning rate."""

    num_photos: int  # in an epoch, on this machine
    batch_size: int
    peak_lr: float
    seed: int
    first_epoch: int  # epochs of earlier runs, whose shuffles are not repeated
    live: LiveSettings

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_photos / self.batch_size)

    def steps_for(self, images: int) -> int:
        """The steps that it takes to see that many images."""
        epochs, rest = divmod(images, self.num_photos)
        return epochs * self.steps_per_epoch + math.ceil(rest / self.batch_size)

    def images_before(self, step: int) -> int:
        """Images seen when `step` begins. The last batch of an epoch may be smaller."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return epoch * self.num_photos + min(batch * self.batch_size, self.num_photos)

    def step_at(self, images_seen: int) -> int:
        """The inverse of `images_before`, rounded down where the number of photos has changed."""
        epoch, images = divmod(images_seen, self.num_photos)
        return epoch * self.steps_per_epoch + images // self.batch_size

    def lr_at(self, step: int) -> float:
        """1. Linear warm-up by images seen. 2. Constant."""
        images = self.images_before(step) + self.batch_size
        return self.current_peak_lr * min(1.0, images / WARM_UP_IMAGES)

    @property
    def current_peak_lr(self) -> float:
        """The peak learning rate, after any divergence."""
        return self.peak_lr * self.live.lr_scale

    def average_weight(self, step: int) -> float:
        """How far the average moves to the weights after this step: 0 for most steps.

        Polynomial-decay averaging (arXiv 1212.1824) of every AVERAGED_STEPS-th step.
        """
        sample, rest = divmod(step + 1, AVERAGED_STEPS)
        return 0.0 if rest else (1 + RECENCY) / (sample + 1 + RECENCY)

    def photos_at(self, step: int) -> Int64Array:
        """Indices of the photos of a step, (B,), sorted: their file is read forwards."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        order = permutation(self.num_photos, self.seed, self.first_epoch + epoch)
        return np.sort(order[batch * self.batch_size : (batch + 1) * self.batch_size])

    def random_at(self, step: int) -> np.random.Generator:
        """The random numbers of a step's augmentation."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return np.random.default_rng((self.seed, self.first_epoch + epoch, batch))


# Kept for the current epoch: with a million photos it takes 20 ms, as long as a step.
@lru_cache(maxsize=1)
def permutation(count: int, *seed: int) -> Int64Array:
    return np.random.default_rng(seed).permutation(count)


def choose_peak_lr(
    net: Network, hyperparameters: Hyperparameters, workers: int, machines: int
) -> float:
    """--lr, or else the network's default, lower for many workers or small batches.

    docs/decisions/fine-tuning.md; with several machines it is higher: docs/decisions/cluster.md.
    """
    batch_scale = hyperparameters.batch_size / Hyperparameters.batch_size
    scale = min(1.0, STEADY_WORKERS / workers, batch_scale)
    return hyperparameters.lr or net.default_lr * scale * math.sqrt(machines)
