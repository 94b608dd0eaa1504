"""The classifier in closed form: linear discriminant analysis (Fisher 1936), from one pass.

Fine-tuning that starts from a good classifier does not first distort the features to make up for a
random one (LP-FT, arXiv 2202.10054). Measurements: docs/decisions/closed-form-head.md.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from hogwear.cluster.peers import SingleMachine
from hogwear.data.pixels import Pixels
from hogwear.networks.network import Network
from hogwear.system import machine
from hogwear.system.arrays import Float64Array
from hogwear.system.signals import Stop
from hogwear.system.workers import Workers

BATCH_SIZE = 32
PHOTOS_PER_CLASS = 100  # more would only cost time
RIDGE = 0.6  # added to the covariance, in units of its mean eigenvalue
LOGIT_SCALE = 0.03  # the Gaussian model is overconfident: fine-tuning would have nothing to learn


class Moments:
    """Sums over the features f, (D,), of some photos of each class; each worker has its own.

    with Workers(count, lambda rank: {"moments": moments.job(net.features, rank)}) as workers:
        list(workers.run("moments", moments.items))
    weight, bias = solve_classifier(moments.sums())
    """

    def __init__(self, workers: int, features: int, photos: Pixels, num_classes: int) -> None:
        """BadInput where /dev/shm is too small."""
        machine.require_shared_memory(4 * workers * (features + num_classes) * (features + 1))
        self.outer = torch.zeros(workers, features, features).share_memory_()  # of f fᵀ
        self.feature_sums = torch.zeros(workers, num_classes, features).share_memory_()
        self.counts = torch.zeros(workers, num_classes).share_memory_()
        self.photos = photos
        order = np.random.default_rng(0).permutation(len(photos))
        by_class = [order[photos.labels[order] == c][:PHOTOS_PER_CLASS] for c in range(num_classes)]
        self.chosen = np.sort(np.concatenate(by_class))  # sorted: their file is read forwards
        self.items = range(0, len(self.chosen), BATCH_SIZE)

    def job(self, features: Callable[[Tensor], Tensor], rank: int) -> Callable[[int], None]:
        """A job for `Workers`: add the features of BATCH_SIZE photos, from index `start` on."""

        def add(start: int) -> None:
            chosen = self.chosen[start : start + BATCH_SIZE]
            labels = torch.from_numpy(self.photos.labels[chosen])
            pixels = torch.from_numpy(self.photos.images[self.photos.rows[chosen]])
            with torch.inference_mode():
                f = features(pixels)  # (B, D) float32
                self.outer[rank] += f.T @ f
                self.feature_sums[rank].index_add_(0, labels, f)
                self.counts[rank] += torch.bincount(labels, minlength=len(self.counts[rank]))

        return add

    def sums(self) -> list[Float64Array]:
        """The sums of f fᵀ, (D, D), and by class: of f, (classes, D), and of photos, (classes,)."""
        moments = (self.outer, self.feature_sums, self.counts)
        return [x.sum(0, dtype=torch.float64).numpy() for x in moments]


def fit_head(
    net: Network, moments: Moments, workers: Workers, cluster: SingleMachine, stop: Stop
) -> None:
    """Replace the head by the closed form of all machines, unless a stop is requested."""
    list(workers.run("moments", moments.items, lambda: stop.requested))
    if not stop.requested:
        weight, bias = solve_classifier(cluster.all_reduce(moments.sums()))
        net.head.weight.data.copy_(weight)
        net.head.bias.data.copy_(bias)


def solve_classifier(sums: Sequence[Float64Array]) -> tuple[Tensor, Tensor]:
    """Weight, (classes, D), and bias, (classes,), from `Moments.sums`, of one machine or of all.

    The classes are taken to be equally frequent.
    """
    outer, feature_sums, counts = map(torch.from_numpy, sums)
    means = feature_sums / counts.clamp(min=1)[:, None]  # (classes, D)
    covariance = (outer - means.T @ feature_sums) / counts.sum()
    identity = torch.eye(len(covariance), dtype=torch.float64)
    covariance += RIDGE * covariance.trace() / len(covariance) * identity
    weight = torch.linalg.solve(covariance, means.T).T
    bias = -0.5 * (weight * means).sum(1)
    weight, bias = weight - weight.mean(0), bias - bias.mean()
    return LOGIT_SCALE * weight.float(), LOGIT_SCALE * bias.float()
