"""Predicts every photo by a classifier that was fitted without it, in one pass and untrained.

The classifier is the closed-form one that training starts with. It predicts each photo without the
photo itself, its near duplicates and the other photos of its product. So it says what accuracy to
expect, and which labels are probably wrong: docs/decisions/wrong-labels.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hogwear.cluster.peers import SINGLE_MACHINE
from hogwear.data.feature_file import FeatureFile
from hogwear.data.pixels import Pixels
from hogwear.evaluation import metrics
from hogwear.networks.network import Network
from hogwear.system.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from hogwear.system.workers import Workers
from hogwear.training.closed_form import Problem
from hogwear.training.passes import Pass, hash_weights

CONTRADICTED = 5  # times as probable as its own class is another one


@dataclass(frozen=True)
class LeftOutPredictions:
    """What was predicted for photos with these labels, (n,)."""

    labels: Int64Array
    probabilities: Float64Array  # (n, classes), calibrated; NaN for photos that cannot be left out

    @property
    def is_predicted(self) -> BoolArray:
        return np.asarray(np.isfinite(self.probabilities).all(axis=1))

    @cached_property
    def predicted(self) -> Int64Array:
        """The most probable class, (n,)."""
        return self.probabilities.argmax(axis=1)

    @property
    def own(self) -> Float64Array:
        """The probability of the class that a photo is labelled with, (n,)."""
        return self.probabilities[np.arange(len(self.labels)), self.labels]

    @property
    def accuracy(self) -> float:
        """Of the photos that are predicted. There must be some."""
        return float((self.predicted == self.labels)[self.is_predicted].mean())

    def find_contradicted(self) -> Int64Array:
        """The photos whose label is probably wrong, most surely so first."""
        highest = np.nanmax(self.probabilities, axis=1, initial=0)
        found = np.flatnonzero(self.is_predicted & (highest > CONTRADICTED * self.own))
        return found[np.argsort((self.own - highest)[found], kind="stable")]

    def count_confusions(self) -> list[tuple[int, int, int]]:
        """(class, predicted class, photos), most frequent first."""
        done = self.is_predicted
        matrix = metrics.confusion_matrix(
            self.predicted[done], self.labels[done], self.probabilities.shape[1]
        )
        np.fill_diagonal(matrix, 0)
        pairs = zip(*np.nonzero(matrix), strict=True)
        counted = [(int(i), int(j), int(matrix[i, j])) for i, j in pairs]
        return sorted(counted, key=lambda each: -each[2])


def predict_left_out(net: Network, splits: Sequence[Pixels], workers: int) -> LeftOutPredictions:
    """Predict all photos of these splits, which are decoded at the same size.

    `net` has its published weights. What it computes is kept in the cache, where training finds it.
    """
    photos, num_classes = pool(splits), net.head.out_features
    probabilities = np.full((len(photos), num_classes), np.nan)
    present, labels = np.unique(photos.labels, return_inverse=True)
    if len(present) > 1:
        read = compute_features(net, splits, workers)
        pooled = replace(photos, labels=labels)
        logits = Problem(read, net.head.in_features, pooled, len(present)).predict_left_out()
        probabilities[:] = 0
        probabilities[:, present] = np.exp(metrics.log_softmax(logits))
        probabilities[np.isnan(logits).any(axis=1)] = np.nan
    return LeftOutPredictions(photos.labels, probabilities)


def pool(splits: Sequence[Pixels]) -> Pixels:
    """The photos of several splits, without their pixels."""
    labels = np.concatenate([pixels.labels for pixels in splits])
    return replace(
        splits[0],
        images=np.empty((0, 0, 0, 3), np.uint8),
        rows=np.arange(len(labels)),
        labels=labels,
        hashes=np.concatenate([pixels.hashes for pixels in splits]),
        products=np.concatenate([pixels.products for pixels in splits]),
        all_signatures=np.concatenate([pixels.signatures for pixels in splits]),
    )


def compute_features(net: Network, splits: Sequence[Pixels], workers: int) -> "Features":
    """The features of all photos of these splits, from the cache or computed now."""
    name = f"features-{hash_weights(net, frozen=False)}"
    files = [FeatureFile(pixels, name, (net.head.in_features,)) for pixels in splits]
    passes = []
    for number, (pixels, file) in enumerate(zip(splits, files, strict=True)):

        def compute(index: Int64Array, pixels: Pixels = pixels) -> Tensor:
            return net.features(torch.from_numpy(pixels.images[pixels.rows[index]]))

        passes.append(Pass(f"features of split {number}", file, compute, file.missing))
    jobs = {each.name: each.job for each in passes}
    with Workers(workers, lambda rank: jobs) as pool_of_workers:
        for each in passes:
            each.run(pool_of_workers, SINGLE_MACHINE, lambda: False)
    return Features(files, np.cumsum([0, *map(len, splits)]))


@dataclass(frozen=True)
class Features:
    """Reads features by the index of a photo among all splits."""

    files: list[FeatureFile]
    starts: Int64Array  # of each split, and the end of the last

    def __call__(self, index: Int64Array) -> Float32Array:
        """(k,) -> (k, D)."""
        split = np.searchsorted(self.starts, index, side="right") - 1
        features = np.empty((len(index), self.files[0].shape[1]), np.float32)
        for number, file in enumerate(self.files):
            of_split = split == number
            features[of_split] = file[index[of_split] - self.starts[number]]
        return features
