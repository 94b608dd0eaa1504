"""Fits linear classifiers in closed form to the features of the training photos of all machines.

The method is linear discriminant analysis (discriminant.py). Cross-validation chooses the ridge and
gives the expected accuracy. Measurements: docs/decisions/closed-form-head.md.
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
    Classifier,
    DualSolver,
    LeftOut,
    PrimalSolver,
    Solver,
    solve,
    solve_with,
)

ROWS_AT_ONCE = 1024  # rows of features in memory
MAX_LEFT_OUT = 5000  # photos to cross-validate: a standard error of at most 0.7 points


@dataclass(frozen=True)
class Problem:
    """What to classify: the training photos of this machine, by their features.

    Photos are given by their index in `photos`.
    """

    read: Callable[[Int64Array], Float32Array]  # indices, (k,) -> features, (k, width)
    width: int
    photos: Pixels
    num_classes: int

    def solve(self, cluster: SingleMachine, ridge: float | None = None) -> Classifier:
        """The classifier for the photos of all machines, computed in separate processes.

        Without a `ridge`, cross-validation chooses it, and calibrates the logits. With one, in
        units of the mean within-class variance, the logits are not calibrated.
        """
        labels = self.photos.labels
        sums, counts = cluster.all_reduce(call_in_worker(self.sum_classes))
        means = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        residuals = Residuals(self.read, labels, means)

        def classify(create: Callable[[Int64Array], Solver], most: int) -> Classifier:
            if ridge is not None:
                return solve_with(create(np.arange(0)), ridge)
            groups = group_near_duplicates(self.photos)
            some = choose_groups(groups, most)
            return solve(create(some), LeftOut.group(labels[some], groups[some], counts))

        def dual(some: Int64Array) -> Solver:
            return DualSolver(residuals[np.arange(len(labels))], means)

        if cluster.machines == 1 and len(labels) <= self.width:
            return call_in_worker(lambda: classify(dual, len(labels)))
        [scatter] = cluster.all_reduce([call_in_worker(residuals.scatter)])

        def primal(some: Int64Array) -> Solver:
            return PrimalSolver(scatter, int(counts.sum()), means, residuals[some])

        return call_in_worker(lambda: classify(primal, MAX_LEFT_OUT))

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
    """The features of photos, minus the means of their classes."""

    read: Callable[[Int64Array], Float32Array]  # indices, (k,) -> features, (k, D)
    labels: Int64Array  # (n,)
    means: Float32Array  # (classes, D)

    def __getitem__(self, index: Int64Array) -> Float32Array:
        """The residuals of the photos with these indices, (k,): (k, D)."""
        return self.read(index) - self.means[self.labels[index]]

    def scatter(self) -> Float32Array:
        """The sum of the outer products of all residuals, (D, D)."""
        width = self.means.shape[1]
        scatter = torch.zeros(width, width)
        for index in blocks(len(self.labels)):
            residuals = torch.from_numpy(self[index])
            scatter.addmm_(residuals.T, residuals)
        return scatter.numpy()


def blocks(count: int) -> list[Int64Array]:
    """0 to count - 1, in parts of at most ROWS_AT_ONCE."""
    return np.split(np.arange(count), range(ROWS_AT_ONCE, count, ROWS_AT_ONCE))


def group_near_duplicates(photos: Pixels) -> Int64Array:
    """The group of near duplicates that each photo belongs to, (n,); most groups have one photo."""
    groups = np.arange(len(photos))
    for rows in group_pairs(len(photos), find_pairs(photos.signatures)):
        groups[rows] = rows[0]
    return groups


def choose_groups(groups: Int64Array, most: int) -> Int64Array:
    """Indices of at most `most` photos, (k,) sorted: whole groups, chosen with a fixed seed."""
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(0).permutation(len(sizes))
    order = order[sizes[order] <= most]
    chosen = order[np.cumsum(sizes[order]) <= most]
    return np.flatnonzero(np.isin(index, chosen))
