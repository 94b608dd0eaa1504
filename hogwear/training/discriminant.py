"""Linear discriminant analysis (Fisher 1936) in closed form, with cross-validation.

The within-class covariance is regularised by a ridge, and the logits are divided by a temperature.
Leave-one-group-out cross-validation chooses both: each photo is predicted by a classifier that was
fitted without it and its near duplicates. That takes no refitting: the classifier follows from the
one for all photos by a low-rank update. (It still divides by N, the number of all photos, so that
the ridge keeps its weight.) Formulas: docs/decisions/closed-form-head.md.

Let R, (N, D), be the residuals (features minus the mean of their class), M, (classes, D), the means
of the classes, and A = R'R / N + ridge * I, (D, D), the regularised covariance. All that is needed
are products x' inv(A) y of residuals and means. With fewer photos than features, they are computed
from R R', (N, N), without A (`DualSolver`); otherwise from A (`PrimalSolver`).
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from hogwear.evaluation import calibration, metrics
from hogwear.networks.novelty import NoveltyWeights
from hogwear.system.arrays import Float32Array, Int64Array

FIRST_RIDGE = 0.4  # in units of the mean within-class variance; the search starts here
MAX_EXPONENT = 12  # of 2, by which it goes up or down
# A smaller ridge * N / D is lost in the rounding of float32. Then the few photos of a large D would
# be predicted by their own labels, and seem to be right: docs/decisions/closed-form-head.md
MIN_STRENGTH = 0.005
MAX_GROUP = 1000  # photos of a group to be left out: the time grows with the cube
ROWS_AT_ONCE = 1024  # rows of residuals that are solved for together
# A leverage is computed as 1 minus almost 1; smaller ones are rounding errors, and count as 0. If
# all photos of a class are equal, such an error alone would give their class away.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Forecast:
    """The result of cross-validation: how well photos are predicted by classifiers without them."""

    accuracy: float
    loss: float  # cross-entropy of the calibrated probabilities, in nats
    photos: int  # how many were predicted


@dataclass(frozen=True)
class Classifier:
    """A linear classifier. Its logits are calibrated if there is a forecast."""

    weight: Float32Array  # (classes, D)
    bias: Float32Array  # (classes,)
    novelty: NoveltyWeights  # of the score of unlike photos
    ridge: float  # in units of the mean within-class variance
    forecast: Forecast | None  # None without cross-validation


@dataclass(frozen=True)
class Products:
    """Products x' inv(A) y, where x and y are residuals r, of n photos, or means m of classes."""

    own: Callable[[Tensor], Tensor]  # rows of b groups, (b, g) -> r with r in a group, (b, g, g)
    mixed: Tensor  # (n, classes): r with m
    means: Tensor  # (classes, classes): m with m
    weight: Tensor  # (classes, D): M inv(A)


class Solver:
    """Computes `Products` for any ridge. The means are centred: they add up to zero."""

    count: int  # N
    variance: float  # the mean within-class variance

    def __init__(self, means: Float32Array) -> None:
        """`means` is (classes, D)."""
        self.center = torch.from_numpy(means.mean(axis=0))
        self.means = torch.from_numpy(means) - self.center

    def floor_variance(self, variance: float) -> float:
        """A variance above 0, even if all photos of a class are equal, or each class has one."""
        return max(variance, 1e-3 * float(self.means.square().mean()), 1e-6)

    @property
    def lowest_exponent(self) -> int:
        """Of 2, times FIRST_RIDGE: the smallest ridge to try."""
        ridge = MIN_STRENGTH * self.means.shape[1] / self.count
        return max(-MAX_EXPONENT, math.ceil(math.log2(ridge / FIRST_RIDGE)))

    def products(self, ridge: float) -> Products:
        """The products for a ridge. LinAlgError if it is too small for float32."""
        raise NotImplementedError


class DualSolver(Solver):
    """Computes them from R R', (N, N): inv(A) follows by the Woodbury identity."""

    def __init__(self, residuals: Float32Array, means: Float32Array) -> None:
        """`residuals` is R, (N, D); `means` is M, (classes, D)."""
        super().__init__(means)
        self.residuals, self.count = torch.from_numpy(residuals), len(residuals)
        self.gram = self.residuals @ self.residuals.T
        self.mixed, self.between = self.residuals @ self.means.T, self.means @ self.means.T
        self.variance = self.floor_variance(float(self.gram.trace()) / self.residuals.numel())

    def inverse(self, ridge: float) -> Tensor:
        """The inverse of R R' + N * ridge * I, (N, N)."""
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


class Rows(Protocol):
    """An array, (n, D), or something that reads rows of one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Int64Array) -> Float32Array: ...


class PrimalSolver(Solver):
    """Computes them from the covariance, (D, D), for a sample of n residuals."""

    def __init__(
        self, scatter: Float32Array, count: int, means: Float32Array, residuals: Rows
    ) -> None:
        """`scatter` is R'R, (D, D), of all `count` photos, and is overwritten.

        `residuals`, (n, D), are those of the sample. They are read in parts, again for each ridge.
        """
        super().__init__(means)
        self.covariance, self.count = torch.from_numpy(scatter).div_(count), count
        self.residuals = residuals
        self.variance = self.floor_variance(float(self.covariance.diagonal().mean()))

    def root(self, ridge: float) -> Tensor:
        """The lower Cholesky factor of A, (D, D)."""
        matrix = self.covariance.clone()
        matrix.diagonal().add_(ridge)
        return torch.linalg.cholesky(matrix, out=matrix)

    def products(self, ridge: float) -> Products:
        root = self.root(ridge)
        weight = torch.cholesky_solve(self.means.T, root).T

        def own_of_some(rows: Tensor) -> Tensor:
            chosen = torch.from_numpy(self.residuals[rows.flatten().numpy()]).T
            solved = torch.linalg.solve_triangular(root, chosen, upper=False)
            solved = solved.T.view(*rows.shape, -1)
            return solved @ solved.transpose(1, 2)

        def own(rows: Tensor) -> Tensor:
            groups = max(1, ROWS_AT_ONCE // rows.shape[1])
            return torch.cat([own_of_some(some) for some in rows.split(groups)])

        mixed = torch.empty(len(self.residuals), len(weight))
        for part in torch.arange(len(mixed)).split(ROWS_AT_ONCE):
            mixed[part] = torch.from_numpy(self.residuals[part.numpy()]) @ weight.T
        return Products(own, mixed, self.means @ weight.T, weight)


@dataclass(frozen=True)
class LeftOut:
    """The photos to be left out, by group. `counts`, (classes,), are those of all N photos."""

    groups: list[Int64Array]  # each (b, g): rows of b groups of g photos ...
    classes: list[Int64Array]  # ... and (b, k): the k classes that each group has photos of
    labels: Int64Array  # (n,)
    counts: Int64Array

    @classmethod
    def group(cls, labels: Int64Array, groups: Int64Array, counts: Int64Array) -> "LeftOut":
        """Of photos with these `labels` and `groups`, (n,) both.

        A group with all photos of a class cannot be left out: nothing of the class would remain.
        Neither can one with more than MAX_GROUP photos.
        """
        _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        by_group = np.split(np.argsort(index, kind="stable"), np.cumsum(sizes)[:-1])
        by_shape: dict[tuple[int, int], list[tuple[Int64Array, Int64Array]]] = {}
        for rows in by_group:
            classes, lost = np.unique(labels[rows], return_counts=True)
            if len(rows) <= MAX_GROUP and (lost < counts[classes]).all():
                by_shape.setdefault((len(rows), len(classes)), []).append((rows, classes))
        batches = [tuple(map(np.stack, zip(*each, strict=True))) for each in by_shape.values()]
        return cls(
            [rows for rows, _ in batches], [classes for _, classes in batches], labels, counts
        )

    @property
    def rows(self) -> Int64Array:
        """All rows that are left out, (k,), in the order of `predict`. There must be some."""
        return np.concatenate([rows.ravel() for rows in self.groups])

    def predict(self, products: Products) -> Float32Array:
        """The logits of each photo from a classifier without its group, (k, classes)."""
        total = int(self.counts.sum())
        parts = []
        for rows, classes in zip(self.groups, self.classes, strict=True):
            is_class = self.labels[rows][:, :, None] == classes[:, None, :]  # (b, g, k)
            left = (self.counts[classes] - is_class.sum(1)).astype(np.float32)
            group = Group(
                *map(torch.from_numpy, (rows, classes, is_class.astype(np.float32), left))
            )
            parts.append(predict_without(products, group, total).flatten(0, 1))
        return torch.cat(parts).numpy()


class Group(NamedTuple):
    """b groups of g photos of k classes each."""

    rows: Tensor  # (b, g)
    classes: Tensor  # (b, k)
    is_class: Tensor  # (b, g, k) float32: 1 where a photo is of a class
    left: Tensor  # (b, k) float32: the photos that remain of each of these classes


def predict_without(products: Products, group: Group, total: int) -> Tensor:
    """The logits of photos from classifiers without their groups, (b, g, classes).

    `total` is N, with and without the group.

    For each class of a group, let s be the sum of the residuals r of its photos in the group, and n
    the size of the class without them. Without the group, the scatter loses the products of
    B = [r, s / sqrt(n), ...], and the mean of each of these classes moves by -s / n. The inverse
    follows by the Woodbury identity.
    """
    rows, classes, is_class, left = group
    batch, size = rows.shape
    own, mixed = products.own(rows), products.mixed[rows]
    identity = torch.eye(size).expand(batch, size, size)
    change = torch.cat([identity, is_class / left.sqrt()[:, None]], dim=2)  # B = r change
    lost = change.transpose(1, 2) @ own @ change / total
    inner = torch.linalg.solve(torch.eye(lost.shape[1]) - lost, change.transpose(1, 2))
    update = change @ inner / total  # (b, g, g): the inverse of A gains r update r'
    solved = update @ mixed

    # Products in the metric of the new inverse; of_classes: the group's means with all means
    at = classes[:, None].expand(batch, size, classes.shape[1])
    of_classes = products.means[classes] + mixed.gather(2, at).transpose(1, 2) @ solved
    square = products.means.diagonal() + (mixed * solved).sum(1)  # (b, classes): m with itself
    mixed, own = mixed + own @ solved, own + own @ update @ own

    # The means of the group's classes move; a feature is r plus the old mean
    moved = is_class / left[:, None]  # (b, g, k): r' moved is -s / n
    with_moved = mixed.gather(2, at).transpose(1, 2) @ moved  # (b, k, k): old means with moves
    moves = ((own @ moved) * moved).sum(1) - 2 * with_moved.diagonal(dim1=1, dim2=2)
    square = square.scatter_add(1, classes, moves)
    logits = mixed + is_class @ of_classes - square[:, None, :] / 2
    return logits.scatter_add(2, at, -(own @ moved + is_class @ with_moved))


@dataclass(frozen=True)
class Solution:
    """The classifier for a ridge, and what cross-validation found for it."""

    ridge: float  # in units of the mean within-class variance
    weight: Tensor  # (classes, D), before division by the temperature
    temperature: float = 1.0
    forecast: Forecast | None = None

    @property
    def loss(self) -> float:
        return self.forecast.loss if self.forecast else math.inf


def solve(solver: Solver, left_out: LeftOut) -> Classifier:
    """The classifier whose ridge and temperature have the lowest loss in cross-validation."""
    if not left_out.groups:
        return to_classifier(solver, guess(solver))
    lowest = solver.lowest_exponent
    tried: dict[int, Solution] = {}  # by exponent

    def loss(exponent: int) -> float:
        if exponent not in tried and lowest <= exponent <= MAX_EXPONENT:
            with suppress(LinAlgError):  # the ridge is too small for float32
                tried[exponent] = attempt(solver, left_out, FIRST_RIDGE * 2.0**exponent)
        return tried[exponent].loss if exponent in tried else math.inf

    # Downhill among powers of two: the loss has one minimum, as far as was measured
    best = max(0, lowest)
    for step in 2, 1:
        while (nearby := min((best, best - step, best + step), key=loss)) != best:
            best = nearby
    return to_classifier(solver, tried[best])


def guess(solver: Solver) -> Solution:
    """Without cross-validation, because no photo can be left out: logits of moderate size."""
    products = solver.products(FIRST_RIDGE * solver.variance)
    of_means = products.means - products.means.diagonal() / 2
    return Solution(FIRST_RIDGE, products.weight, float(of_means.std()) or 1.0)


def solve_with(solver: Solver, ridge: float) -> Classifier:
    """The classifier with this ridge, in units of the mean variance; it is not calibrated."""
    return to_classifier(solver, Solution(ridge, solver.products(ridge * solver.variance).weight))


def to_classifier(solver: Solver, found: Solution) -> Classifier:
    weight = found.weight / found.temperature
    bias = -weight @ solver.center - (weight * solver.means).sum(1) / 2
    novelty = NoveltyWeights.fit(found.weight @ solver.means.T, found.temperature)
    return Classifier(weight.numpy(), bias.numpy(), novelty, found.ridge, found.forecast)


def attempt(solver: Solver, left_out: LeftOut, ridge: float) -> Solution:
    """Cross-validate with this ridge, in units of the mean variance, and fit the temperature."""
    products = solver.products(ridge * solver.variance)
    labels = left_out.labels[left_out.rows]
    logits = left_out.predict(products)
    temperature = calibration.fit_any_temperature(logits, labels)
    loss = metrics.cross_entropy(logits / temperature, labels)
    forecast = Forecast(metrics.accuracy(logits, labels), loss, len(labels))
    return Solution(ridge, products.weight, temperature, forecast)
