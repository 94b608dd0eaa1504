"""Hogwild (Niu et al., arXiv 1106.5730): processes that update one set of parameters in shared memory without locks.

One counter, the parent's, hands out the batches (workers.py), so an epoch is one pass by all workers together. Shared
are the parameters. Private to a worker are its gradients and its momentum, which lies in shared memory only so that
the parent can save it. The learning rate follows the images that all workers together have seen.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hogwear.data.array_file import ArrayFile
from hogwear.networks import kernels
from hogwear.networks.network import Network
from hogwear.networks.parameters import trained_parameters, unflatten_like
from hogwear.system.arrays import Int64Array, UInt8Array
from hogwear.training.augment import augment

WARM_UP = 0.1  # share of the images over which the learning rate rises
WEIGHT_DECAY = 1e-4
NO_PRIOR = torch.zeros(1)
CLIP = 0.01  # a tensor's gradient may be this share of its weights; docs/decisions/adaptive-clipping.md
NORM = 1.0  # of all gradients together, from scratch; docs/decisions/from-scratch.md


@dataclass(frozen=True)
class Course:
    """What is trained on, in which order and at which learning rate: all that makes a batch, and its step, reproducible."""

    images: (
        ArrayFile | UInt8Array
    )  # (N, S, S, 3) uint8; a file is opened before the workers are forked, for later it may be gone
    crop: int  # side of the crops that are trained on
    rows: Int64Array  # (n,) photos of the split, as rows of `images`
    labels: Int64Array  # (n,)
    batch_size: int
    length: Tensor  # (1,) int64, images in all, epoch after epoch; in shared memory, for a time budget moves it
    lr: float
    lr_scale: Tensor  # (1,) float64, in shared memory; halved where training diverges
    momentum: float
    seed: int
    first_epoch: int  # epochs trained in earlier runs; their shuffles are not repeated
    pretrained: bool = (
        True  # or from random weights, which have so far to go that gradients are clipped otherwise
    )
    log_prior: Tensor = (
        NO_PRIOR  # (classes,) or (1,), added to the logits in the loss; docs/decisions/imbalance.md
    )

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    @property
    def steps(self) -> int:
        epochs, images = divmod(int(self.length), len(self.rows))
        return epochs * self.steps_per_epoch + math.ceil(images / self.batch_size)

    def images_before(self, step: int) -> int:
        """Images seen when `step` begins; the last batch of an epoch may be smaller."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return epoch * len(self.rows) + min(batch * self.batch_size, len(self.rows))

    def step_at(self, images_seen: int) -> int:
        """The inverse of `images_before`, rounded down where the photos are no longer the same."""
        epoch, images = divmod(images_seen, len(self.rows))
        return epoch * self.steps_per_epoch + images // self.batch_size

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 0, by images seen."""
        done = min(1.0, self.images_before(step) / int(self.length))
        warm_up = min(1.0, (done + 1 / self.steps) / WARM_UP)
        return (
            self.lr
            * float(self.lr_scale)
            * warm_up
            * (0.5 + 0.5 * math.cos(math.pi * max(0.0, done - WARM_UP) / (1 - WARM_UP)))
        )

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Augmented pixels (B, crop, crop, 3) and labels (B,) of a step, the same whichever worker makes them."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        order = permutation(len(self.rows), self.seed, self.first_epoch + epoch)
        chosen = np.sort(
            order[batch * self.batch_size : (batch + 1) * self.batch_size]
        )  # sorted: the file is read forwards
        random = np.random.default_rng((self.seed, self.first_epoch + epoch, batch))
        return augment(self.images[self.rows[chosen]], self.crop, random), torch.from_numpy(
            self.labels[chosen]
        )


@lru_cache(
    maxsize=1
)  # for the epoch under way: of a million photos it takes 20 ms, as long as a step
def permutation(count: int, *seed: int) -> Int64Array:
    return np.random.default_rng(seed).permutation(count)


@dataclass(frozen=True)
class Result:
    """What came of one batch."""

    images: int
    loss: float  # mean over the batch
    correct: int


def adaptive_clip_grad(parameters: list[nn.Parameter]) -> None:
    """Scale each tensor's gradient down to CLIP times the norm of its weights, where it is larger (after arXiv 2102.06171, which clips by unit).

    Made for networks without batch normalisation, which ours is once folded: there one bad batch, or one stale
    gradient of another worker, can throw a layer far off. Only for weights that are good already: random ones would stay where they are.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    for p, gradient in zip(parameters, gradients, strict=True):
        allowed = torch.linalg.vector_norm(p.detach()).clamp(min=1e-3) * CLIP
        norm = torch.linalg.vector_norm(gradient).clamp(min=1e-12)
        gradient.mul_((allowed / norm).clamp(max=1.0))


def trainer(net: Network, momentum: Tensor, course: Course) -> Callable[[int], Result]:
    """A worker's job: train `net`, whose parameters it shares, on the batch of a step. `momentum` is its own."""
    assert all(p.is_shared() for p in net.parameters())
    parameters = trained_parameters(net)
    buffers = unflatten_like(momentum, parameters)
    clip = (
        adaptive_clip_grad
        if course.pretrained
        else partial(nn.utils.clip_grad_norm_, max_norm=NORM)
    )

    def train(step: int) -> Result:
        pixels, labels = course.batch(step)
        logits = net(pixels)
        loss = F.cross_entropy(logits + course.log_prior, labels)
        net.zero_grad()
        loss.backward()
        clip(parameters)
        kernels.sgd_step(parameters, buffers, course.lr_at(step), course.momentum, WEIGHT_DECAY)
        return Result(len(labels), loss.item(), int((logits.argmax(1) == labels).sum()))

    return train
