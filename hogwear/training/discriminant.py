"""Linear discriminant analysis (Fisher 1936) in closed form, regularised and calibrated honestly.

The within-class covariance gets a ridge, and the logits a temperature. Both are chosen by the
predictions for photos that were left out, together with their near duplicates. These predictions
follow from the solution for all photos by a low-rank update, so nothing is solved again; they equal
those of a classifier trained without the photos (but for N, which stays, so that the ridge counts
as much). Formulas: docs/decisions/closed-form-head.md.

Let r be the residuals of the features (minus the mean of their class), m the means of the classes,
N the number of photos, and A = R'R / N + ridge * I. All that is needed are products in the metric
of A's inverse. With more features than photos, they follow from the matrix of the photos' products
(`DualSolver`), otherwise from A itself (`PrimalSolver`): the smaller of both.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from hogwear.evaluation import calibration, metrics
from hogwear.system.arrays import Float32Array, Int64Array

FIRST_RIDGE = 0.4  # in units of the mean within-class variance; the search starts here
MAX_EXPONENT = 12  # of 2, by which it goes away from there
ROUNDING = 1e-6  # where 0 is the difference of ones; of equal photos, it would tell the class


@dataclass(frozen=True)
class Forecast:
    """How well the classifier predicted photos that it was made without."""

    accuracy: float
    loss: float  # cross-entropy, in nats
    photos: int


@dataclass(frozen=True)
class Classifier:
    """Weight, (classes, D), and bias, (classes,), of logits; they are calibrated if forecast."""

    weight: Float32Array
    bias: Float32Array
    ridge: float  # in units of the mean within-class variance
    forecast: Forecast | None  # None where no photo was left out


@dataclass(frozen=True)
class Products:
    """Products in the metric of A's inverse, of residuals r (n of them) and means m.

    `weight` is the means times A's inverse, (classes, D).
    """

    own: Callable[[Tensor], Tensor]  # rows (b, g) -> (b, g, g): r with r, within b groups
    mixed: Tensor  # (n, classes): r with m
    means: Tensor  # (classes, classes): m with m
    weight: Tensor


class Solver:
    """Solves for any ridge. The means are relative to their center: their sum is then zero."""

    variance: float  # the mean within-class variance

    def __init__(self, means: Float32Array) -> None:
        """`means` is (classes, D)."""
        self.center = torch.from_numpy(means.mean(axis=0))
        self.means = torch.from_numpy(means) - self.center

    def floor_variance(self, variance: float) -> float:
        """At least a little, where all photos of a class are equal or there is one of each."""
        return max(variance, 1e-3 * float(self.means.square().mean()), 1e-6)

    def products(self, ridge: float) -> Products:
        """Raises LinAlgError for a ridge that is lost in rounding."""
        raise NotImplementedError


class DualSolver(Solver):
    """By the products of the photos, (N, N): A's inverse by the Woodbury identity."""

    def __init__(self, residuals: Float32Array, means: Float32Array) -> None:
        """`residuals` is (N, D)."""
        super().__init__(means)
        self.residuals, self.count = torch.from_numpy(residuals), len(residuals)
        self.gram = self.residuals @ self.residuals.T
        self.mixed, self.between = self.residuals @ self.means.T, self.means @ self.means.T
        self.variance = self.floor_variance(float(self.gram.trace()) / self.residuals.numel())

    def inverse(self, ridge: float) -> Tensor:
        """Of R R' + N * ridge * I."""
        matrix = self.gram.clone()
        matrix.diagonal().add_(self.count * ridge)
        return torch.cholesky_inverse(torch.linalg.cholesky(matrix))

    def products(self, ridge: float) -> Products:
        inverse = self.inverse(ridge)
        solved = inverse @ self.mixed

        def own(rows: Tensor) -> Tensor:
            inner = inverse[rows[:, :, None], rows[:, None, :]]
            leverage = torch.eye(rows.shape[1]) - self.count * ridge * inner
            return self.count * leverage.where(leverage.abs() > ROUNDING, 0)

        means = (self.between - self.mixed.T @ solved) / ridge
        weight = (self.means - solved.T @ self.residuals) / ridge
        return Products(own, self.count * solved, means, weight)


class PrimalSolver(Solver):
    """By the covariance, (D, D); products are those of a sample of the residuals."""

    def __init__(
        self, scatter: Float32Array, count: int, means: Float32Array, residuals: Float32Array
    ) -> None:
        """`scatter` is R'R, (D, D), of `count` photos; `residuals`, (n, D), are those of some."""
        super().__init__(means)
        self.covariance = torch.from_numpy(scatter) / count
        self.residuals = torch.from_numpy(residuals)
        self.variance = self.floor_variance(float(self.covariance.diagonal().mean()))

    def root(self, ridge: float) -> Tensor:
        """The Cholesky factor of A."""
        matrix = self.covariance.clone()
        matrix.diagonal().add_(ridge)
        return torch.linalg.cholesky(matrix)

    def products(self, ridge: float) -> Products:
        root = self.root(ridge)
        residuals, means = (
            torch.linalg.solve_triangular(root, x.T, upper=False).T
            for x in (self.residuals, self.means)
        )

        def own(rows: Tensor) -> Tensor:
            return residuals[rows] @ residuals[rows].transpose(1, 2)

        weight = torch.cholesky_solve(self.means.T, root).T
        return Products(own, residuals @ means.T, means @ means.T, weight)


@dataclass(frozen=True)
class LeftOut:
    """The photos to be left out, by group. `counts`, (classes,), are those of all N photos."""

    groups: list[Int64Array]  # each (b, g): rows of b groups of g photos of one class
    labels: Int64Array  # (n,)
    counts: Int64Array

    @classmethod
    def group(cls, labels: Int64Array, groups: Int64Array, counts: Int64Array) -> "LeftOut":
        """Of photos with these `labels` and `groups`, (n,) both.

        A group with photos of several classes counts as one of each class. Photos whose class has
        no other group cannot be left out: nothing of the class would remain.
        """
        keys = groups * len(counts) + labels
        _, index, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        by_group = np.split(np.argsort(index, kind="stable"), np.cumsum(sizes)[:-1])
        by_size: dict[int, list[Int64Array]] = {}
        for rows in by_group:
            if len(rows) < counts[labels[rows[0]]]:
                by_size.setdefault(len(rows), []).append(rows)
        return cls([np.stack(each) for each in by_size.values()], labels, counts)

    @property
    def rows(self) -> Int64Array:
        """All rows that are left out, (k,), in the order of `predict`. There must be some."""
        return np.concatenate([rows.ravel() for rows in self.groups])

    def predict(self, products: Products) -> Float32Array:
        """The logits of each photo from a classifier without its group, (k, classes)."""
        total = int(self.counts.sum())
        parts = []
        for rows in self.groups:
            classes = self.labels[rows[:, 0]]
            left = (self.counts[classes] - rows.shape[1]).astype(np.float32)
            tensors = torch.from_numpy(rows), torch.from_numpy(classes), torch.from_numpy(left)
            parts.append(predict_without(products, *tensors, total).flatten(0, 1))
        return torch.cat(parts).numpy()


def predict_without(
    products: Products, rows: Tensor, classes: Tensor, left: Tensor, total: int
) -> Tensor:
    """The logits of b groups of g photos from classifiers without each group, (b, g, classes).

    `rows` is (b, g); of the class of each group, `classes`, (b,), `left` photos remain, (b,)
    float32. `total` is N, with and without the group.

    Let s be the sum of the group's residuals r and n the size of its class. Without the group, the
    scatter loses the products of B = [r, s / sqrt(n - g)], and the mean of the class moves by
    -s / (n - g). The inverse follows by the Woodbury identity.
    """
    batch, size = rows.shape
    own, mixed = products.own(rows), products.mixed[rows]
    root = left.sqrt().reciprocal()[:, None, None].expand(batch, size, 1)
    change = torch.cat([torch.eye(size).expand(batch, size, size), root], dim=2)  # B = r change
    lost = change.transpose(1, 2) @ own @ change / total
    inner = torch.linalg.solve(torch.eye(size + 1) - lost, change.transpose(1, 2))
    update = change @ inner / total  # (b, g, g): the inverse of A gains r update r'
    solved = update @ mixed

    # Products in the metric of the new inverse; of_class: the mean of the class with all means
    index = torch.arange(batch)
    of_class = products.means[classes] + (mixed[index, :, classes][:, None] @ solved)[:, 0]
    square = products.means.diagonal() + (mixed * solved).sum(1)  # (b, classes): m with itself
    mixed, own = mixed + own @ solved, own + own @ update @ own

    # The mean of the class moves; a feature is r plus the old mean
    with_sum = mixed[index, :, classes].sum(1)  # (b,): of s with the mean of the class
    square[index, classes] += own.sum((1, 2)) / left.square() - 2 * with_sum / left
    logits = mixed + of_class[:, None, :] - square[:, None, :] / 2
    logits[index, :, classes] -= (own.sum(2) + with_sum[:, None]) / left[:, None]
    return logits


@dataclass(frozen=True)
class Solution:
    """What a ridge, in units of the variance, leads to."""

    ridge: float
    weight: Tensor  # (classes, D)
    temperature: float = 1.0
    forecast: Forecast | None = None

    @property
    def loss(self) -> float:
        return self.forecast.loss if self.forecast else math.inf


def solve(solver: Solver, left_out: LeftOut) -> Classifier:
    """The classifier with the ridge and the temperature that suit the photos left out best."""
    if not left_out.groups:
        return to_classifier(solver, guess(solver))
    tried: dict[int, Solution] = {}  # by exponent

    def loss(exponent: int) -> float:
        if exponent not in tried and abs(exponent) <= MAX_EXPONENT:
            with suppress(LinAlgError):  # so small a ridge is lost in rounding
                tried[exponent] = attempt(solver, left_out, FIRST_RIDGE * 2.0**exponent)
        return tried[exponent].loss if exponent in tried else math.inf

    # Downhill among powers of two: the loss has one minimum, as far as was measured
    best = 0
    for step in 2, 1:
        while (nearby := min((best, best - step, best + step), key=loss)) != best:
            best = nearby
    return to_classifier(solver, tried[best])


def guess(solver: Solver) -> Solution:
    """Where no photo can be left out: modest logits, for nothing tells how wrong they are."""
    products = solver.products(FIRST_RIDGE * solver.variance)
    of_means = products.means - products.means.diagonal() / 2
    return Solution(FIRST_RIDGE, products.weight, float(of_means.std()) or 1.0)


def solve_with(solver: Solver, ridge: float) -> Classifier:
    """The classifier with this ridge, in units of the variance; its logits are not calibrated."""
    return to_classifier(solver, Solution(ridge, solver.products(ridge * solver.variance).weight))


def to_classifier(solver: Solver, found: Solution) -> Classifier:
    weight = found.weight / found.temperature
    bias = -weight @ solver.center - (weight * solver.means).sum(1) / 2
    return Classifier(weight.numpy(), bias.numpy(), found.ridge, found.forecast)


def attempt(solver: Solver, left_out: LeftOut, ridge: float) -> Solution:
    """Predict the photos left out with this ridge, in units of the variance, and calibrate that."""
    products = solver.products(ridge * solver.variance)
    labels = left_out.labels[left_out.rows]
    logits = left_out.predict(products)
    temperature = calibration.fit_any_temperature(logits, labels)
    loss = metrics.cross_entropy(logits / temperature, labels)
    forecast = Forecast(metrics.accuracy(logits, labels), loss, len(labels))
    return Solution(ridge, products.weight, temperature, forecast)
