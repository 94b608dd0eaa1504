"""The novelty score equals the relative Mahalanobis distance, computed from its definition."""

import numpy as np
import pytest
import torch

from hogwear.networks.novelty import Novelty, NoveltyWeights
from hogwear.training.discriminant import PrimalSolver, solve_with

CLASSES, WIDTH, RIDGE = 4, 12, 0.3


def relative_distances(
    features: np.ndarray, means: np.ndarray, covariance: np.ndarray
) -> np.ndarray:
    """(n,): the squared distance to the nearest class, minus that to the mean of all classes."""
    center = means.mean(axis=0)
    between = (means - center).T @ (means - center) / len(means)
    inverse, inverse_of_all = np.linalg.inv(covariance), np.linalg.inv(covariance + between)
    from_classes = features[:, None] - means
    nearest = np.einsum("ncd,de,nce->nc", from_classes, inverse, from_classes).min(axis=1)
    from_center = features - center
    return nearest - np.einsum("nd,de,ne->n", from_center, inverse_of_all, from_center)


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_the_score_of_logits_is_the_relative_mahalanobis_distance(factor: float) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(200) % CLASSES
    means = random.normal(size=(CLASSES, WIDTH))
    features = means[labels] + random.normal(size=(200, WIDTH)) * np.arange(1, WIDTH + 1) / 6
    means = np.stack([features[labels == label].mean(axis=0) for label in range(CLASSES)])
    residuals = (features - means[labels]).astype(np.float32)
    scatter = residuals.T @ residuals
    solver = PrimalSolver(scatter.copy(), 200, means.astype(np.float32), residuals)
    found = solve_with(solver, RIDGE)
    photos = np.concatenate([features, 5 * random.normal(size=(50, WIDTH))]).astype(np.float32)
    logits = factor * (photos @ found.weight.T + found.bias)

    novelty = Novelty(CLASSES)
    novelty.set_(found.novelty)
    novelty.scale_(factor)
    covariance = scatter / 200 + RIDGE * solver.variance * np.eye(WIDTH)
    expected = factor * relative_distances(photos.astype(float), means, covariance.astype(float))
    assert novelty.score(logits.astype(np.float32)) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_it_is_kept_with_the_weights_of_a_network() -> None:
    novelty = Novelty(3)
    novelty.set_(NoveltyWeights.fit(torch.diag(torch.tensor([4.0, 5.0, 6.0])), 2.0))
    assert novelty.offset.tolist() == [1.0, 1.25, 1.5]
    weights = {f"novelty.{name}": tensor for name, tensor in novelty.state_dict().items()}
    logits = np.array([[1, -2, 0.5], [8, 0, 0]], np.float32)
    assert np.array_equal(Novelty.of(weights).score(logits), novelty.score(logits))


def test_without_a_fit_it_is_the_largest_logit() -> None:
    assert Novelty(3).score(np.array([[1, -2, 0.5]], np.float32)).tolist() == [-2]
