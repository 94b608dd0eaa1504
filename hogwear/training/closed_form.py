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
from hogwear.evaluation import calibration
from hogwear.system.arrays import Float32Array, Float64Array, Int64Array
from hogwear.system.workers import call_in_worker
from hogwear.training.discriminant import (
    MAX_GROUP,
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
        counts, residuals = self.measure_classes(cluster)
        some, left_out = np.arange(0), LeftOut([], [], self.photos.labels, counts)
        if ridge is None:
            labels, groups, ranks = group_photos(self.photos, cluster)
            is_small = self.is_small and cluster.machines == 1
            chosen = choose_groups(groups, None if is_small else MAX_LEFT_OUT)
            left_out = LeftOut.group(labels[chosen], groups[chosen], counts)
            some = chosen[ranks[chosen] == cluster.rank] - np.searchsorted(ranks, cluster.rank)

        def classify(solver: Solver) -> Classifier:
            return solve(solver, left_out) if ridge is None else solve_with(solver, ridge)

        if cluster.machines == 1:
            return call_in_worker(lambda: classify(self.create_solver(residuals, some)))
        [scatter] = cluster.all_reduce([call_in_worker(residuals.scatter)])
        [sample] = cluster.all_gather([residuals[some]])  # up to 70 MB
        count = int(counts.sum())
        return call_in_worker(
            lambda: classify(PrimalSolver(scatter, count, residuals.means, sample))
        )

    def predict_left_out(self) -> Float32Array:
        """The calibrated logits of each photo by a classifier without its group, (n, classes).

        NaN for photos that cannot be left out (see LeftOut.group). All are on this machine.
        """
        counts, residuals = self.measure_classes(SINGLE_MACHINE)
        labels, groups, _ = group_photos(self.photos)
        some = choose_groups(groups, None if self.is_small else MAX_LEFT_OUT)

        def predict() -> Float32Array:
            logits = np.full((len(labels), self.num_classes), np.nan, np.float32)
            left_out = LeftOut.group(labels, groups, counts)
            if left_out.groups:
                solver = self.create_solver(residuals, some)
                found = solve(solver, LeftOut.group(labels[some], groups[some], counts))
                if isinstance(solver, PrimalSolver):
                    solver.residuals = Sample(residuals, np.arange(len(labels)))
                rows = left_out.rows
                logits[rows] = left_out.predict(solver.products(found.ridge * solver.variance))
                logits /= calibration.fit_any_temperature(logits[rows], labels[rows])
            return logits

        return call_in_worker(predict)

    @property
    def is_small(self) -> bool:
        """Whether there are at most as many photos as features."""
        return len(self.photos) <= self.width

    def measure_classes(self, cluster: SingleMachine) -> tuple[Int64Array, "Residuals"]:
        """The number of photos of each class on all machines, (classes,), and the residuals."""
        sums, counts = cluster.all_reduce(call_in_worker(self.sum_classes))
        means = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        return counts, Residuals(self.read, self.photos.labels, means)

    def create_solver(self, residuals: "Residuals", some: Int64Array) -> Solver:
        """In a separate process: a solver for the photos of a single machine.

        Row i is that of photo some[i]. If there are few photos, `some` have to be all of them.
        """
        everyone = np.arange(len(self.photos))
        if self.is_small:
            return DualSolver(residuals[everyone], residuals.means)
        scatter = residuals.scatter()
        return PrimalSolver(scatter, len(everyone), residuals.means, Sample(residuals, some))

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


@dataclass(frozen=True)
class Sample:
    """The residuals of some photos, (k, D), read when they are needed."""

    residuals: Residuals
    photos: Int64Array  # (k,)

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: Int64Array) -> Float32Array:
        return self.residuals[self.photos[index]]


def blocks(count: int) -> list[Int64Array]:
    """0 to count - 1, in parts of at most ROWS_AT_ONCE."""
    return np.split(np.arange(count), range(ROWS_AT_ONCE, count, ROWS_AT_ONCE))


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


def choose_groups(groups: Int64Array, most: int | None) -> Int64Array:
    """Indices of at most `most` photos, (k,) sorted: whole groups, chosen with a fixed seed.

    None: of all photos.
    """
    if most is None:
        return np.arange(len(groups))
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(0).permutation(len(sizes))
    order = order[sizes[order] <= min(most, MAX_GROUP)]
    chosen = order[np.cumsum(sizes[order]) <= most]
    return np.flatnonzero(np.isin(index, chosen))
