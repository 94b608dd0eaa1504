"""The classifier of all photos: of a file read in parts, of several machines, without near duplicates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import SIZE, decode_some, pixels_of
from machines import run_machines

from hogwear.cluster.peers import SINGLE_MACHINE, SingleMachine
from hogwear.data.near_duplicates import compute_signature
from hogwear.data.pixels import Pixels
from hogwear.data.products import hash_names
from hogwear.system.arrays import Float32Array, Int64Array
from hogwear.training import closed_form, discriminant
from hogwear.training.closed_form import Problem, Residuals, blocks, choose_groups, group_photos
from hogwear.training.discriminant import (
    Classifier,
    DualSolver,
    LeftOut,
    PrimalSolver,
    solve,
    solve_with,
)

COUNT = 70


@pytest.fixture(scope="module")
def photos(photo_files: list[Path]) -> Pixels:
    """70 real photos; the classes are dark, grey and bright ones. Every fifth pair is a product."""
    images = decode_some(photo_files, COUNT, SIZE)
    pixels = pixels_of(images, images.mean((1, 2, 3)).argsort().argsort() // 24)
    names = [str(i // 2) if i % 10 < 2 else "" for i in range(COUNT)]
    return with_signatures(replace(pixels, products=hash_names(names)))


def with_signatures(photos: Pixels) -> Pixels:
    images = photos.images[photos.rows]
    return replace(photos, all_signatures=np.stack([compute_signature(image) for image in images]))


def problem_of(photos: Pixels, cells: int) -> Problem:
    """Features are the mean colours of cells * cells parts of a photo."""
    side = SIZE // cells

    def read(index: Int64Array) -> Float32Array:
        images = photos.images[photos.rows[index]].astype(np.float32) / 255
        parts = images.reshape(len(index), cells, side, cells, side, 3)
        return parts.mean((2, 4)).reshape(len(index), 3 * cells * cells)

    return Problem(read, 3 * cells * cells, photos, 3)


def same(one: Classifier, other: Classifier) -> bool:
    """But for rounding."""
    return one.ridge == other.ridge and all(
        np.abs(x - y).max() < 5e-3 * np.abs(y).max()
        for x, y in ((one.weight, other.weight), (one.bias, other.bias))
    )


@pytest.mark.parametrize("ridge", [None, 0.6])
@pytest.mark.parametrize("cells", [4, 8], ids=["48 features", "192 features"])
def test_the_classifier_is_that_of_all_features_at_once(
    cells: int, ridge: float | None, photos: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closed_form, "ROWS_AT_ONCE", 9)
    problem = problem_of(photos, cells)
    found = problem.solve(SINGLE_MACHINE, ridge)

    features, labels = problem.read(np.arange(COUNT)), photos.labels
    means = np.stack([features[labels == c].mean(0) for c in range(3)])
    residuals = features - means[labels]
    for solver in (
        DualSolver(residuals, means),
        PrimalSolver(residuals.T @ residuals, COUNT, means, residuals),
    ):
        left_out = LeftOut.group(labels, group_photos(photos)[1], np.bincount(labels))
        assert same(found, solve(solver, left_out) if ridge is None else solve_with(solver, ridge))
    assert (found.forecast is None) == (ridge is not None)
    assert ((features @ found.weight.T + found.bias).argmax(1) == labels).mean() > 0.8


@pytest.mark.parametrize("by", ["near duplicates", "products"])
def test_groups_are_left_out_together(by: str, photo_files: list[Path]) -> None:
    """Photos with labels by chance can be recognised, but not learned from others."""
    images = np.repeat(decode_some(photo_files, COUNT, SIZE), 2, axis=0)
    images[1::2] = np.clip(images[1::2].astype(np.int64) + 1, 0, 255)
    labels = np.repeat(np.random.default_rng(0).permutation(COUNT) % 3, 2)
    without = pixels_of(images, labels)
    names = [str(i // 2) for i in range(2 * COUNT)]
    photos = replace(without, products=hash_names(names))
    if by == "near duplicates":
        photos = with_signatures(without)
    groups = group_photos(photos)[1]
    assert np.array_equal(groups[1::2], groups[::2])
    forecast = problem_of(photos, 8).solve(SINGLE_MACHINE).forecast
    naive = problem_of(without, 8).solve(SINGLE_MACHINE).forecast
    assert forecast and naive and forecast.photos == naive.photos == 2 * COUNT
    assert forecast.accuracy < 0.6 < naive.accuracy


def test_sums_are_those_of_all_rows_however_many_are_read_at_once(
    photos: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_of(photos, 4)
    features, labels = problem.read(np.arange(COUNT)), photos.labels
    means = np.stack([features[labels == c].mean(0) for c in range(3)])
    residuals = features - means[labels]
    for at_once in (9, COUNT, 1024):
        monkeypatch.setattr(closed_form, "ROWS_AT_ONCE", at_once)
        sums, counts = replace(problem, num_classes=4).sum_classes()
        assert counts.tolist() == [*np.bincount(labels), 0]
        assert np.allclose(sums[:3], means * counts[:3, None], rtol=1e-5) and not sums[3].any()
        found = Residuals(problem.read, labels, means)
        assert np.array_equal(found[np.array([5, 2])], residuals[[5, 2]])
        assert np.allclose(found.scatter(), residuals.T @ residuals, rtol=1e-4, atol=1e-5)
        assert np.array_equal(np.concatenate(blocks(COUNT)), np.arange(COUNT))
        assert max(map(len, blocks(COUNT))) == min(at_once, COUNT)


@pytest.mark.parametrize("ridge", [None, 0.6])
@pytest.mark.parametrize("cells", [4, 8], ids=["48 features", "192 features"])
def test_machines_that_add_up_their_sums_find_the_classifier_of_all_photos(
    cells: int, ridge: float | None, photos: Pixels
) -> None:
    def solve_part(cluster: SingleMachine) -> Classifier:
        part = photos.where(np.isin(np.arange(COUNT), np.arange(COUNT)[cluster.shard]))
        return problem_of(part, cells).solve(cluster, ridge)

    alone = problem_of(photos, cells).solve(SINGLE_MACHINE, ridge)
    for found in run_machines(solve_part, solve_part):
        assert same(found, alone)
        if ridge is None:
            assert found.forecast and alone.forecast and found.forecast.photos == COUNT
            assert found.forecast.loss == pytest.approx(alone.forecast.loss, rel=1e-3)
            assert found.forecast.accuracy == alone.forecast.accuracy


def test_products_and_near_duplicates_connect_each_other(photos: Pixels) -> None:
    images = photos.images[photos.rows].copy()
    images[7] = np.clip(images[3].astype(np.int64) + 1, 0, 255)
    names = ["", "", "", "one", "", "", "", "other", "one", "other"] + [""] * (COUNT - 10)
    both = replace(with_signatures(replace(photos, images=images)), products=hash_names(names))
    groups = group_photos(both)[1]
    assert np.flatnonzero(groups == groups[3]).tolist() == [3, 7, 8, 9]


def test_groups_are_chosen_whole_and_the_same_every_time() -> None:
    groups = np.repeat(np.arange(40), np.arange(40) % 5 + 1)[::-1].copy()
    chosen = choose_groups(groups, 30)
    assert 25 < len(chosen) <= 30 and np.array_equal(chosen, np.unique(chosen))
    assert not np.isin(np.delete(groups, chosen), groups[chosen]).any()
    assert np.array_equal(choose_groups(groups, 30), chosen)
    assert np.array_equal(choose_groups(groups, len(groups)), np.arange(len(groups)))
    assert chosen.tolist() != list(range(len(chosen))), "at random"


def test_a_group_that_is_too_large_is_passed_over() -> None:
    for others in range(1, 9):
        groups = np.r_[np.zeros(50, np.int64), np.arange(1, others + 1)]
        assert choose_groups(groups, 10).tolist() == list(range(50, 50 + others))
    groups = np.repeat([0, 1, 2], [1000, 1001, 10])
    assert choose_groups(groups, 5000).tolist() == [*range(1000), *range(2001, 2011)], "too slow"


@pytest.mark.parametrize("cells", [4, 8], ids=["48 features", "192 features"])
@pytest.mark.parametrize("most", [20, 5000], ids=["sample", "all"])
def test_each_photo_is_predicted_by_a_classifier_without_its_group(
    cells: int, most: int, photos: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closed_form, "MAX_LEFT_OUT", most)
    problem = problem_of(photos, cells)
    logits = problem.predict_left_out()
    features, labels = problem.read(np.arange(COUNT)), photos.labels
    assert np.isfinite(logits).all()
    means = np.stack([features[labels == c].mean(0) for c in range(3)])
    solver = DualSolver(features - means[labels], means)
    left_out = LeftOut.group(labels, group_photos(photos)[1], np.bincount(labels))
    ridge = problem.solve(SINGLE_MACHINE).ridge
    expected = np.empty_like(logits)
    expected[left_out.rows] = left_out.predict(solver.products(ridge * solver.variance))
    scale = (logits * expected).sum() / np.square(expected).sum()  # the temperature
    assert logits == pytest.approx(scale * expected, rel=1e-2, abs=1e-2)


def test_a_group_that_is_too_large_is_not_left_out_and_moves_no_other_photo(
    photos: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first photos are one product; the others are predicted as if it were not."""
    alone = problem_of(replace(photos, products=hash_names([""] * COUNT)), 8)
    expected = alone.predict_left_out()
    monkeypatch.setattr(discriminant, "MAX_GROUP", 10)
    names = ["large"] * 12 + [""] * (COUNT - 12)
    problem = problem_of(replace(photos, products=hash_names(names)), 8)
    logits = problem.predict_left_out()
    assert np.isnan(logits[:12]).all()
    assert (logits[12:].argmax(1) == expected[12:].argmax(1)).mean() > 0.9
    forecast = problem.solve(SINGLE_MACHINE).forecast
    assert forecast and forecast.photos == COUNT - 12
    assert forecast.accuracy == (logits[12:].argmax(1) == photos.labels[12:]).mean()
