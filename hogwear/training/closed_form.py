"""Linear classifiers in closed form, from the features of the training photos in a file.

Discriminant analysis (discriminant.py) of all photos of all machines. Its predictions for photos
that were left out tell the accuracy to expect. Measurements: docs/decisions/closed-form-head.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from hogwear.cluster.peers import SingleMachine
from hogwear.data.near_duplicates import find_pairs, group_pairs
from hogwear.data.pixels import Pixels
from hogwear.system.arrays import Float32Array, Float64Array, Int64Array
from hogwear.system.workers import call_in_worker
from hogwear.training.discriminant import (
    ByFeatures,
    ByPhotos,
    Classifier,
    LeftOut,
    solve,
    solve_with,
)

ROWS_AT_ONCE = 1024  # of the features, in memory
MAX_LEFT_OUT = 5000  # photos; their accuracy has a standard error of at most 0.7 points


@dataclass(frozen=True)
class Problem:
    """The training photos of this machine, to be classified by `width` features.

    `read` gives those of some photos, (k, width) float32, by their place.
    """

    read: Callable[[Int64Array], Float32Array]
    width: int
    photos: Pixels
    num_classes: int

    def solve(self, cluster: SingleMachine, ridge: float | None = None) -> Classifier:
        """The classifier for the photos of all machines, computed in processes of their own.

        Without a `ridge`, the photos left out choose it, and they calibrate the logits.
        """
        labels = self.photos.labels
        sums, counts = cluster.all_reduce(call_in_worker(self.sum_classes))
        means = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        residuals = Residuals(self.read, labels, means)

        def solve_by_photos() -> Classifier:
            solver = ByPhotos(residuals[np.arange(len(labels))], means)
            if ridge is not None:
                return solve_with(solver, ridge)
            return solve(solver, LeftOut.group(labels, group_near_duplicates(self.photos), counts))

        if cluster.machines == 1 and len(labels) <= self.width:
            return call_in_worker(solve_by_photos)
        [scatter] = cluster.all_reduce([call_in_worker(residuals.scatter)])

        def solve_by_features() -> Classifier:
            nobody = np.empty(0, np.int64)
            groups = nobody if ridge is not None else group_near_duplicates(self.photos)
            some = choose_groups(groups, MAX_LEFT_OUT)
            solver = ByFeatures(scatter, int(counts.sum()), means, residuals[some])
            if ridge is not None:
                return solve_with(solver, ridge)
            return solve(solver, LeftOut.group(labels[some], groups[some], counts))

        return call_in_worker(solve_by_features)

    def sum_classes(self) -> tuple[Float64Array, Int64Array]:
        """By class: the sum of the features, (classes, D), and the number of photos, (classes,)."""
        labels = self.photos.labels
        sums = np.zeros((self.num_classes, self.width))
        for index in blocks(len(labels)):
            is_class = np.equal.outer(np.arange(self.num_classes), labels[index])
            features = torch.from_numpy(self.read(index))
            sums += (torch.from_numpy(is_class.astype(np.float32)) @ features).numpy()
        return sums, np.bincount(labels, minlength=self.num_classes)


@dataclass(frozen=True)
class Residuals:
    """The features minus the means of their classes, (classes, D)."""

    read: Callable[[Int64Array], Float32Array]
    labels: Int64Array  # (n,)
    means: Float32Array

    def __getitem__(self, index: Int64Array) -> Float32Array:
        """Those of some photos, (k, D)."""
        return self.read(index) - self.means[self.labels[index]]

    def scatter(self) -> Float32Array:
        """The sum of their outer products, (D, D)."""
        width = self.means.shape[1]
        scatter = torch.zeros(width, width)
        for index in blocks(len(self.labels)):
            residuals = torch.from_numpy(self[index])
            scatter.addmm_(residuals.T, residuals)
        return scatter.numpy()


def blocks(count: int) -> list[Int64Array]:
    """The numbers below `count`, in parts of ROWS_AT_ONCE."""
    return np.split(np.arange(count), range(ROWS_AT_ONCE, count, ROWS_AT_ONCE))


def group_near_duplicates(photos: Pixels) -> Int64Array:
    """The group of each photo, (n,); most are alone in theirs."""
    groups = np.arange(len(photos))
    for rows in group_pairs(len(photos), find_pairs(photos.signatures)):
        groups[rows] = rows[0]
    return groups


def choose_groups(groups: Int64Array, most: int) -> Int64Array:
    """About `most` photos, (k,) sorted: whole groups, chosen at random, the same every time."""
    names = np.unique(groups)
    shuffled = np.random.default_rng(0).permutation(len(names))
    place = np.empty_like(shuffled)
    place[shuffled] = np.arange(len(names))
    order = np.argsort(place[np.searchsorted(names, groups)], kind="stable")
    return np.sort(order[:most])
