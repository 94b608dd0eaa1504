"""Linear discriminant analysis equals its textbook formula, for photos left out as well as for all.

Features are the pixels of real photos, made small; the classes are dark, grey and bright ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import decode_some

from hogwear.evaluation import calibration, metrics
from hogwear.system.arrays import Float32Array, Float64Array, Int64Array
from hogwear.training import discriminant
from hogwear.training.discriminant import (
    FIRST_RIDGE,
    MAX_EXPONENT,
    Classifier,
    DualSolver,
    LeftOut,
    PrimalSolver,
    Solver,
    solve,
    solve_with,
)

PHOTOS, CLASSES = 60, 3
RIDGES = (0.05, 0.4, 6.4)
GROUPS = {0: [0, 1], 5: [5, 6, 7], 20: [20, 21, 22, 23, 24], 30: [30, 31]}  # 30 and 31 differ


@dataclass(frozen=True)
class Problem:
    """Features, (n, D), and labels, (n,), with what follows from them."""

    features: Float32Array
    labels: Int64Array

    @property
    def counts(self) -> Int64Array:
        return np.bincount(self.labels, minlength=CLASSES)

    @property
    def means(self) -> Float32Array:
        return np.stack([self.features[self.labels == c].mean(0) for c in range(CLASSES)])

    @property
    def residuals(self) -> Float32Array:
        return self.features - self.means[self.labels]

    @property
    def dual(self) -> DualSolver:
        return DualSolver(self.residuals, self.means)

    @property
    def primal(self) -> PrimalSolver:
        scatter = self.residuals.T @ self.residuals
        return PrimalSolver(scatter, len(self.labels), self.means, self.residuals)

    def left_out(self, groups: Int64Array | None = None) -> LeftOut:
        alone = np.arange(len(self.labels))
        return LeftOut.group(self.labels, alone if groups is None else groups, self.counts)

    def textbook_logits(self, of: Int64Array, without: Int64Array, ridge: float) -> Float64Array:
        """Of some photos, by a classifier that is solved anew without others, in float64."""
        kept = np.setdiff1d(np.arange(len(self.labels)), without)
        x, labels = self.features[kept].astype(np.float64), self.labels[kept]
        means = np.stack([x[labels == c].mean(0) for c in range(CLASSES)])
        r = x - means[labels]
        covariance = r.T @ r / len(self.labels) + ridge * np.eye(x.shape[1])
        solved = np.linalg.solve(covariance, means.T)  # (D, classes)
        return centred(self.features[of] @ solved - (means.T * solved).sum(0) / 2)


def centred(logits: Float64Array | Float32Array) -> Float64Array:
    """Logits whose mean is 0: probabilities do not depend on it."""
    return (logits - logits.mean(1, keepdims=True)).astype(np.float64)


def are_close(found: Float64Array, expected: Float64Array) -> bool:
    """But for rounding in float32, which a small ridge magnifies."""
    return bool(np.abs(found - expected).max() < 5e-3 * np.abs(expected).max())


def logits_of(classifier: Classifier, problem: Problem) -> Float64Array:
    return centred(problem.features @ classifier.weight.T + classifier.bias)


def problem_of(photo_files: list[Path], size: int) -> Problem:
    images = decode_some(photo_files, PHOTOS, size).reshape(PHOTOS, -1)
    labels = images.mean(1).argsort().argsort() * CLASSES // PHOTOS
    order = labels.argsort(kind="stable")  # so that neighbours are of one class, but for two
    order[[31, 59]] = order[[59, 31]]
    return Problem((images[order] / 255).astype(np.float32), labels[order])


@pytest.fixture(scope="module", params=[3, 8], ids=["27 features", "192 features"])
def problem(request: pytest.FixtureRequest, photo_files: list[Path]) -> Problem:
    """60 photos with fewer features than that, or with more."""
    return problem_of(photo_files, request.param)


@pytest.fixture(scope="module")
def groups() -> Int64Array:
    groups = np.arange(PHOTOS)
    for name, rows in GROUPS.items():
        groups[rows] = name
    return groups


SOLVERS: list[Callable[[Problem], Solver]] = [lambda p: p.dual, lambda p: p.primal]
both_ways = pytest.mark.parametrize("by", SOLVERS, ids=["by photos", "by features"])


@both_ways
@pytest.mark.parametrize("ridge", RIDGES)
def test_the_classifier_equals_discriminant_analysis(
    by: Callable[[Problem], Solver], ridge: float, problem: Problem
) -> None:
    solver, everyone = by(problem), np.arange(PHOTOS)
    expected = problem.textbook_logits(everyone, everyone[:0], ridge * solver.variance)
    assert solver.variance == pytest.approx(np.square(problem.residuals).mean(), rel=1e-4)
    assert are_close(logits_of(solve_with(solver, ridge), problem), expected)
    assert expected.std() > 1


@both_ways
@pytest.mark.parametrize("ridge", RIDGES)
def test_leaving_a_group_out_equals_training_without_it(
    by: Callable[[Problem], Solver], ridge: float, problem: Problem, groups: Int64Array
) -> None:
    solver, left_out = by(problem), problem.left_out(groups)
    absolute = ridge * solver.variance
    found = centred(left_out.predict(solver.products(absolute)))
    assert sorted(left_out.rows) == list(range(PHOTOS))
    for logits, row in zip(found, left_out.rows, strict=True):
        group = np.flatnonzero(groups == groups[row])
        [expected] = problem.textbook_logits(np.array([row]), group, absolute)
        assert are_close(logits, expected), row
    among_all = problem.textbook_logits(left_out.rows, left_out.rows[:0], absolute)
    assert not are_close(found, among_all), "it makes a difference"


@pytest.mark.parametrize("count", [6, 15])
@pytest.mark.parametrize("kind", [DualSolver, PrimalSolver])
def test_few_photos_of_many_features_are_not_predicted_by_their_own_labels(
    kind: type[Solver], count: int, photo_files: list[Path]
) -> None:
    """Of random labels nothing can be learned; with too small a ridge, rounding errors tell them."""
    features = problem_of(photo_files, 16).features[:count]
    labels = np.random.default_rng(0).permutation(np.arange(count) % CLASSES)
    problem = Problem(features, labels)
    solver, left_out = problem.dual if kind is DualSolver else problem.primal, problem.left_out()
    for ridge in FIRST_RIDGE * 2.0**solver.lowest_exponent, solve(solver, left_out).ridge:
        absolute = ridge * solver.variance
        found = centred(left_out.predict(solver.products(absolute)))
        for logits, row in zip(found, left_out.rows, strict=True):
            one = np.array([row])
            expected = problem.textbook_logits(one, one, absolute)
            assert np.abs(logits - expected).max() < 0.05 * np.abs(found).max()


def test_photos_whose_class_has_no_other_group_are_not_left_out(problem: Problem) -> None:
    labels = np.where(np.arange(PHOTOS) == 59, 2, problem.labels % 2)
    groups = np.where(labels == 1, PHOTOS, np.arange(PHOTOS))
    left_out = replace(problem, labels=labels).left_out(groups)
    assert sorted(left_out.rows) == np.flatnonzero(labels == 0).tolist()


def test_photos_of_several_classes_in_one_group_are_left_out_together(groups: Int64Array) -> None:
    labels = np.arange(PHOTOS) // 22
    left_out = LeftOut.group(labels, groups, np.bincount(labels))
    found = {
        (rows.shape[1], classes.shape[1]): (rows.tolist(), classes.tolist())
        for rows, classes in zip(left_out.groups, left_out.classes, strict=True)
    }
    assert found.keys() == {(1, 1), (2, 1), (3, 1), (5, 2)}
    assert found[2, 1] == ([[0, 1], [30, 31]], [[0], [1]])
    assert found[5, 2] == ([[20, 21, 22, 23, 24]], [[0, 1]])


def test_a_group_with_all_photos_of_a_class_is_not_left_out(groups: Int64Array) -> None:
    labels = np.where(np.arange(PHOTOS) == 23, 1, 0)
    rows = LeftOut.group(labels, groups, np.bincount(labels)).rows
    assert sorted(rows) == [*range(20), *range(25, PHOTOS)]


@both_ways
def test_the_ridge_has_the_lowest_loss_of_all_powers_of_two(
    by: Callable[[Problem], Solver], problem: Problem, groups: Int64Array
) -> None:
    solver, left_out = by(problem), problem.left_out(groups)
    losses = {
        ridge: discriminant.attempt(solver, left_out, ridge).loss
        for ridge in (
            FIRST_RIDGE * 2.0**exponent
            for exponent in range(solver.lowest_exponent, MAX_EXPONENT + 1)
        )
    }
    found = solve(solver, left_out)
    assert found.forecast and found.forecast.loss == min(losses.values())
    assert found.ridge == min(losses, key=lambda ridge: losses[ridge])
    assert max(losses.values()) > 1.05 * min(losses.values()), "it makes a difference"


@pytest.mark.parametrize("best", [-30, -12, -7, 0, 1, 6, 12, 30])
def test_the_search_ends_where_ridges_do(
    best: int, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def attempt(solver: Solver, left_out: LeftOut, ridge: float) -> discriminant.Solution:
        tried.append(exponent := round(np.log2(ridge / FIRST_RIDGE)))
        forecast = discriminant.Forecast(0.5, abs(exponent - best), PHOTOS)
        return discriminant.Solution(ridge, torch.zeros(CLASSES, 1), 1.0, forecast)

    monkeypatch.setattr(discriminant, "attempt", attempt)
    solver = problem.dual
    solver.means, solver.center = torch.zeros(CLASSES, 1), torch.zeros(1)
    end = min(max(best, -MAX_EXPONENT), MAX_EXPONENT)
    assert solve(solver, problem.left_out()).ridge == FIRST_RIDGE * 2.0**end
    assert len(set(tried)) == len(tried) and max(map(abs, tried)) <= MAX_EXPONENT


def test_a_ridge_that_is_lost_in_rounding_is_not_chosen(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt, smallest = discriminant.attempt, FIRST_RIDGE / 2

    def fail(solver: Solver, left_out: LeftOut, ridge: float) -> discriminant.Solution:
        if ridge < smallest:
            torch.linalg.cholesky(-torch.eye(2))
        found = attempt(solver, left_out, ridge)
        assert found.forecast
        return replace(found, forecast=replace(found.forecast, loss=ridge))

    monkeypatch.setattr(discriminant, "attempt", fail)
    assert solve(problem.dual, problem.left_out()).ridge == smallest


@both_ways
def test_the_logits_are_calibrated_for_photos_left_out(
    by: Callable[[Problem], Solver], problem: Problem, groups: Int64Array
) -> None:
    solver, left_out = by(problem), problem.left_out(groups)
    found = solve(solver, left_out)
    assert found.forecast
    products = solver.products(found.ridge * solver.variance)
    raw = left_out.predict(products)
    temperature = np.linalg.norm(products.weight.numpy()) / np.linalg.norm(found.weight)
    labels = problem.labels[left_out.rows]
    assert calibration.fit_temperature(raw / temperature, labels) == pytest.approx(1, abs=1e-3)
    assert found.forecast.loss == pytest.approx(
        metrics.cross_entropy(raw / temperature, labels), abs=1e-5
    )
    assert found.forecast.accuracy == metrics.accuracy(raw, labels)
    assert found.forecast.photos == PHOTOS
    refit = solve_with(solver, found.ridge)
    uncalibrated = logits_of(refit, problem)
    assert refit.ridge == found.ridge and refit.forecast is None
    assert are_close(logits_of(found, problem) * temperature, uncalibrated)


def test_both_ways_give_the_same_classifier(problem: Problem, groups: Int64Array) -> None:
    one, other = (solve(by(problem), problem.left_out(groups)) for by in SOLVERS)
    assert one.ridge == other.ridge and one.forecast and other.forecast
    assert one.forecast.loss == pytest.approx(other.forecast.loss, rel=1e-3)
    assert are_close(logits_of(one, problem), logits_of(other, problem))


def test_photos_left_out_may_be_some_of_all(problem: Problem) -> None:
    some = np.arange(0, PHOTOS, 7)
    scatter = problem.residuals.T @ problem.residuals
    solver = PrimalSolver(scatter, PHOTOS, problem.means, problem.residuals[some])
    left_out = LeftOut.group(problem.labels[some], some, problem.counts)
    ridge = 0.4 * solver.variance
    found = centred(left_out.predict(solver.products(ridge)))
    for logits, place in zip(found, left_out.rows, strict=True):
        row = some[[place]]
        [expected] = problem.textbook_logits(row, row, ridge)
        assert are_close(logits, expected)


@both_ways
def test_one_photo_of_each_class_gives_a_classifier_without_a_forecast(
    by: Callable[[Problem], Solver], problem: Problem
) -> None:
    rows = np.array([0, 25, 50])
    three = Problem(problem.features[rows], np.arange(3))
    found = solve(by(three), three.left_out())
    assert found.forecast is None
    logits = logits_of(found, three)
    assert logits.argmax(1).tolist() == [0, 1, 2]
    everyone = np.arange(3)
    expected = three.textbook_logits(everyone, everyone[:0], FIRST_RIDGE * by(three).variance)
    assert found.ridge == FIRST_RIDGE
    assert are_close(logits, expected * (logits.std() / expected.std()))
    assert 0.3 < logits.std() < 3, "nothing tells that it is so sure"


@both_ways
def test_a_class_of_one_photo_among_others(
    by: Callable[[Problem], Solver], problem: Problem
) -> None:
    labels = np.where(problem.labels == 2, 1, problem.labels)
    labels[-1] = 2
    lonely = replace(problem, labels=labels)
    found = solve(by(lonely), lonely.left_out())
    assert found.forecast and found.forecast.photos == PHOTOS - 1
    assert logits_of(found, lonely)[-1].argmax() == 2


@both_ways
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_photos_that_are_all_equal_give_finite_logits(
    by: Callable[[Problem], Solver], value: float, problem: Problem
) -> None:
    equal = replace(problem, features=np.full_like(problem.features, value))
    found = solve(by(equal), equal.left_out())
    assert np.abs(logits_of(found, equal)).max() < 1e-3
    assert found.forecast and found.forecast.loss == pytest.approx(np.log(CLASSES), abs=1e-3)


@both_ways
def test_photos_that_are_equal_within_their_class_are_told_apart(
    by: Callable[[Problem], Solver], problem: Problem
) -> None:
    equal = replace(problem, features=problem.means[problem.labels])
    found = solve(by(equal), equal.left_out())
    assert found.forecast and found.forecast.accuracy == 1
    assert (logits_of(found, equal).argmax(1) == equal.labels).all()
