"""Fits linear classifiers in closed form to the features of the training photos of all machines.

The method is linear discriminant analysis (discriminant.py). Cross-validation chooses the ridge and
gives the expected accuracy; it leaves out whole products and groups of near duplicates.
Measurements: docs/decisions/closed-form-head.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from hogwear.cluster.peers import SINGLE_MACHINE, SingleMachine
from hogwear.data.near_duplicates import find_pairs, group_pairs
from hogwear.data.pixels import Pixels
from hogwear.data.products import pair_products
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
MAX_GROUP = 1000  # photos of a group to be left out: the time grows with the cube
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
        is_small = cluster.machines == 1 and len(labels) <= self.width
        some, left_out = np.arange(0), LeftOut([], [], labels, counts)
        if ridge is None:
            most = len(labels) if is_small else MAX_LEFT_OUT
            some, left_out = choose_left_out(self.photos, counts, cluster, most)

        def classify(solver: Solver) -> Classifier:
            return solve(solver, left_out) if ridge is None else solve_with(solver, ridge)

        if is_small:
            everyone = np.arange(len(labels))
            return call_in_worker(lambda: classify(DualSolver(residuals[everyone], means)))
        [scatter] = cluster.all_reduce([call_in_worker(residuals.scatter)])
        gathered = cluster.all_gather([residuals[some]]) if cluster.machines > 1 else []

        def create() -> Solver:
            sample = gathered[0] if gathered else residuals[some]  # up to 70 MB
            return PrimalSolver(scatter, int(counts.sum()), means, sample)

        return call_in_worker(lambda: classify(create()))

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
        residuals = np.empty((len(index), self.means.shape[1]), np.float32)
        for part in blocks(len(index)):
            some = index[part]
            residuals[part] = self.read(some) - self.means[self.labels[some]]
        return residuals

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


def choose_left_out(
    photos: Pixels, counts: Int64Array, cluster: SingleMachine, most: int
) -> tuple[Int64Array, LeftOut]:
    """At most `most` photos of all machines to be left out, in whole groups.

    Returns the places of those that this machine has, (k,) sorted, and the groups of all of them,
    in the order of the machines.
    """
    labels, groups, ranks = group_photos(photos, cluster)
    chosen = choose_groups(groups, most)
    own = chosen[ranks[chosen] == cluster.rank] - np.searchsorted(ranks, cluster.rank)
    return own, LeftOut.group(labels[chosen], groups[chosen], counts)


def group_photos(
    photos: Pixels, cluster: SingleMachine = SINGLE_MACHINE
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """The label, the group and the machine of each photo of all machines, (n,) each.

    A group has the photos of a product and near duplicates; most photos are alone in theirs. Near
    duplicates are looked for on each machine.
    """
    ranks = np.full(len(photos), cluster.rank)
    labels, products, ranks = cluster.all_gather([photos.labels, photos.products, ranks])
    near = call_in_worker(lambda: find_pairs(photos.signatures))
    [near] = cluster.all_gather([near + np.searchsorted(ranks, cluster.rank)])

    def connect() -> Int64Array:
        groups = np.arange(len(labels))
        pairs = np.concatenate([near, pair_products(products)])
        for rows in group_pairs(len(labels), pairs):
            groups[rows] = rows[0]
        return groups

    return labels, call_in_worker(connect), ranks


def choose_groups(groups: Int64Array, most: int) -> Int64Array:
    """Indices of at most `most` photos, (k,) sorted: whole groups, chosen with a fixed seed."""
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(0).permutation(len(sizes))
    order = order[sizes[order] <= min(most, MAX_GROUP)]
    chosen = order[np.cumsum(sizes[order]) <= most]
    return np.flatnonzero(np.isin(index, chosen))
