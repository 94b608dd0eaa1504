"""How well photos of unknown classes are told from others: each class in turn is left out.

Classifiers for the other classes are fitted in closed form to most of a sample of the training
photos. The score of networks/novelty.py then has to tell the photos of the class from the other
photos of the sample. Nothing of the class that is left out is used, not even the spread of its
features: with that, it would seem to be recognised better than it is (docs/decisions/unknown.md).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hogwear.evaluation import metrics
from hogwear.networks.novelty import Novelty, NoveltyWeights
from hogwear.system.arrays import BoolArray, Float32Array, Int64Array

SAMPLE = range(1000, 2001)  # photos: half of those there are, but so many; time grows faster
FITTED = 0.8  # share of them that classifiers are fitted to
MAX_CLASSES = 30  # that are left out
FEWEST = 2  # classes that remain, and photos of each of them to fit


def choose_sample(labels: Int64Array) -> BoolArray:
    """Which photos of those with these labels, (n,), are in the sample, (n,).

    Equally many of each class, if it has them.
    """
    size = min(max(len(labels) // 2, SAMPLE[0]), SAMPLE[-1])
    shuffled = np.random.default_rng(0).permutation(len(labels))
    of_class = [shuffled[labels[shuffled] == label] for label in np.unique(labels)]
    turn = np.concatenate([np.arange(len(index)) for index in of_class])
    chosen = np.concatenate(of_class)[np.argsort(turn, kind="stable")[:size]]
    return np.isin(np.arange(len(labels)), chosen)


def measure_auroc(
    features: Float32Array, labels: Int64Array, groups: Int64Array, ridge: float
) -> float | None:
    """The mean area under the ROC curve of the score over the classes that are left out.

    `features` is (n, D). Photos of a group, (n,), are either all fitted to or not at all. None for
    too few classes or photos. The ridge is in units of the mean within-class variance.
    """
    names, groups = np.unique(groups, return_inverse=True)
    is_fitted = np.random.default_rng(0).permutation(len(names))[groups] < FITTED * len(names)
    centred = torch.from_numpy(features - features.mean(axis=0))
    sample = Sample(centred @ centred.T, features.shape[1], labels, is_fitted, ridge)
    classes = np.unique(labels)
    chosen = np.random.default_rng(0).permutation(classes)[:MAX_CLASSES]
    found = [area for left_out in chosen if (area := sample.measure(left_out)) is not None]
    return float(np.mean(found)) if found else None


@dataclass(frozen=True)
class Sample:
    """Photos, and the products of their features, which are all that is needed of them."""

    products: Tensor  # (n, n): features @ features.T
    width: int  # of the features
    labels: Int64Array  # (n,)
    is_fitted: BoolArray  # (n,): those that classifiers are fitted to
    ridge: float

    def measure(self, left_out: int) -> float | None:
        """The area under the ROC curve for one class. None if too little remains without it."""
        is_known = self.labels != left_out
        rows, known = np.flatnonzero(is_known & self.is_fitted), is_known & ~self.is_fitted
        classes, index = np.unique(self.labels[rows], return_inverse=True)
        counts = np.bincount(index, minlength=1)
        known &= np.isin(self.labels, classes)
        if len(classes) < FEWEST or counts.min() < FEWEST or known.sum() < FEWEST:
            return None
        scores = self.score(rows, index)
        return metrics.area_under_roc(scores[known], scores[~is_known])

    def score(self, rows: Int64Array, index: Int64Array) -> Float32Array:
        """The scores of all photos, (n,), by a classifier for photos `rows` of classes `index`.

        Residuals r and means m are weighted sums of features, so their products are sums, too. The
        products x' inv(A) y follow from those by the Woodbury identity, as in discriminant.py.
        """
        count = len(rows)
        means = torch.zeros(index.max() + 1, len(self.labels))  # weights of the photos
        means[index, rows] = torch.from_numpy(1 / np.bincount(index)[index]).float()
        center = means.mean(0)
        centred = means - center
        with_residuals = self.products[rows] - (means @ self.products)[index]  # (count, n)
        gram = with_residuals[:, rows] - (with_residuals @ means.T)[:, index]
        variance = max(float(gram.trace()) / (count * self.width), 1e-6)
        strength = self.ridge * variance
        gram.diagonal().add_(count * strength)
        mixed = with_residuals @ centred.T  # residuals with means
        solved = torch.cholesky_solve(mixed, torch.linalg.cholesky(gram)).T

        def multiply(of_means: Tensor, of_residuals: Tensor) -> Tensor:
            """m' inv(A) y for all m, from the products of y with all m and with all r."""
            return (of_means - solved @ of_residuals) / strength

        with_means = centred @ self.products  # (classes, n)
        inner = multiply(with_means @ centred.T, mixed)
        z = multiply(*(each - (each @ center)[:, None] for each in (with_means, with_residuals)))
        novelty, weights = Novelty(len(inner)), NoveltyWeights.fit(inner, 1.0)
        novelty.set_(weights)
        return novelty(z.T - inner.diagonal() / 2).numpy()
