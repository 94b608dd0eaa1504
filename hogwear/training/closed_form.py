"""The classifier in closed form: linear discriminant analysis (Fisher 1936) of the network's features, from one pass.

Fine-tuning that begins with a good classifier does not first tear up the features to make up for a random one
(LP-FT, arXiv 2202.10054). Measurements: docs/decisions/closed-form-head.md.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from hogwear.data.pixels import Pixels
from hogwear.system import machine
from hogwear.system.arrays import Float64Array

BATCH = 32
PHOTOS_PER_CLASS = 100  # more would only cost time
RIDGE = 0.6  # added to the covariance, in units of its mean eigenvalue
TEMPERATURE = 0.03  # the Gaussian model is far too sure of itself, and would leave training nothing to learn from


class Moments:
    """Sums over features f (D,) of class c, in shared memory: a row for each worker, to be added up at the end.

    `items` are what the jobs are to be given.
    """

    def __init__(self, workers: int, features: int, photos: Pixels, num_classes: int) -> None:
        machine.require_shared_memory(4 * workers * (features + num_classes) * (features + 1))
        self.outer = torch.zeros(workers, features, features).share_memory_()  # of f fᵀ
        self.sums = torch.zeros(workers, num_classes, features).share_memory_()
        self.counts = torch.zeros(workers, num_classes).share_memory_()
        order = np.random.default_rng(0).permutation(len(photos))
        by_class = [order[photos.labels[order] == c][:PHOTOS_PER_CLASS] for c in range(num_classes)]
        self.photos, self.chosen = (
            photos,
            np.sort(np.concatenate(by_class)),
        )  # sorted: the file is read forwards
        self.items = range(0, len(self.chosen), BATCH)

    def job(self, features: Callable[[Tensor], Tensor], rank: int) -> Callable[[int], None]:
        """Work for `Workers`: add the features of BATCH of the chosen photos to this worker's row."""
        images = self.photos.images

        def add(start: int) -> None:
            rows = self.chosen[start : start + BATCH]
            labels = torch.from_numpy(self.photos.labels[rows])
            with torch.inference_mode():
                f = features(torch.from_numpy(images[self.photos.rows[rows]]))  # (B, D) float32
                self.outer[rank] += f.T @ f
                self.sums[rank].index_add_(0, labels, f)
                self.counts[rank] += torch.bincount(labels, minlength=len(self.counts[rank]))

        return add

    def totals(self) -> list[Float64Array]:
        """The sums of f fᵀ (D, D), of f (classes, D) and of photos (classes,) by all workers."""
        return [x.sum(0, dtype=torch.float64).numpy() for x in (self.outer, self.sums, self.counts)]

    @staticmethod
    def classifier(totals: Sequence[Float64Array]) -> tuple[Tensor, Tensor]:
        """Weight (classes, D) and bias (classes,) for logits of the classes, taken to be equally frequent."""
        outer, sums, counts = map(torch.from_numpy, totals)
        means = sums / counts.clamp(min=1)[:, None]  # (classes, D)
        covariance = (outer - means.T @ sums) / counts.sum()
        covariance += (
            RIDGE
            * covariance.trace()
            / len(covariance)
            * torch.eye(len(covariance), dtype=torch.float64)
        )
        weight = torch.linalg.solve(covariance, means.T).T
        bias = -0.5 * (weight * means).sum(1)
        return TEMPERATURE * (weight - weight.mean(0)).float(), TEMPERATURE * (
            bias - bias.mean()
        ).float()
