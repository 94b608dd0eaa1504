"""How well unknown classes are told from others: against a computation from the definition."""

import numpy as np
import pytest
import torch

from hogwear.networks.novelty import Novelty
from hogwear.training import unknown_classes
from hogwear.training.discriminant import DualSolver, solve_with
from hogwear.training.unknown_classes import choose_sample, measure_auroc

WIDTH, RIDGE = 40, 0.5


def clusters(distance: float, photos: int = 60, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Features, (n, WIDTH), of classes that are so far apart, and their labels, (n,)."""
    random = np.random.default_rng(1)
    labels = np.arange(photos * classes) % classes
    means = distance * random.normal(size=(classes, WIDTH)) / WIDTH**0.5
    return (means[labels] + random.normal(size=(len(labels), WIDTH))).astype(np.float32), labels


def test_the_scores_are_those_of_a_classifier_without_the_class() -> None:
    features, labels = clusters(3)
    rows = np.flatnonzero((labels != 2) & (np.arange(len(labels)) % 4 > 0))
    _, index = np.unique(labels[rows], return_inverse=True)
    sample = unknown_classes.Sample(
        torch.from_numpy(features @ features.T), WIDTH, labels, labels == 2, RIDGE
    )
    means = np.stack([features[rows][index == label].mean(axis=0) for label in range(4)])
    found = solve_with(DualSolver(features[rows] - means[index], means), RIDGE)
    novelty = Novelty(4)
    novelty.set_(found.novelty)
    expected = novelty.score(features @ found.weight.T + found.bias)
    assert sample.score(rows, index) == pytest.approx(expected, rel=1e-3, abs=1e-2)


def test_classes_far_apart_are_recognised_and_equal_ones_are_not() -> None:
    features, labels = clusters(12)
    alone = np.arange(len(labels))
    area = measure_auroc(features, labels, alone, RIDGE)
    assert area is not None and area > 0.95
    area = measure_auroc(clusters(0)[0], labels, alone, RIDGE)
    assert area is not None and 0.4 < area < 0.6


def test_a_class_that_is_left_out_leaves_no_trace() -> None:
    """What the others' scores are does not depend on it."""
    features, labels = clusters(3)
    rows = np.flatnonzero((labels != 2) & (np.arange(len(labels)) % 4 > 0))
    _, index = np.unique(labels[rows], return_inverse=True)
    others = labels != 2
    scores = []
    for shift in 0, 50:
        moved = features + np.float32(shift) * ~others[:, None]
        products = torch.from_numpy(moved @ moved.T)
        sample = unknown_classes.Sample(products, WIDTH, labels, labels == 2, RIDGE)
        scores.append(sample.score(rows, index)[others])
    assert scores[0] == pytest.approx(scores[1], rel=1e-4, abs=1e-3)


def test_photos_of_a_group_are_not_on_both_sides() -> None:
    """Every photo twice, in a group: with both sides, all would be known by heart."""
    features, labels = clusters(0, photos=8)
    twice, labels = np.concatenate([features, features]), np.concatenate([labels, labels])
    together = np.tile(np.arange(len(features)), 2)
    area = measure_auroc(twice, labels, together, 0.01)
    apart = measure_auroc(twice, labels, np.arange(len(twice)), 0.01)
    assert area is not None and apart is not None and area < 0.65 < 0.75 < apart


@pytest.mark.parametrize(("photos", "classes"), [(60, 2), (1, 5), (2, 3)])
def test_with_too_few_classes_or_photos_it_cannot_be_measured(photos: int, classes: int) -> None:
    features, labels = clusters(3, photos, classes)
    assert measure_auroc(features, labels, np.arange(len(labels)), RIDGE) is None


def test_the_sample_is_balanced_and_grows_with_the_photos() -> None:
    labels = np.array([0] * 5000 + [1] * 300 + [2] * 40)
    counts = np.bincount(labels[choose_sample(labels)])
    assert counts.tolist() == [1660, 300, 40]
    assert choose_sample(labels[:900]).all()
    assert choose_sample(np.arange(10_000) % 10).sum() == 2000
