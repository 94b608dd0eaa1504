"""The classifier in closed form equals linear discriminant analysis."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SIZE, decode_some, pixels_of

import model
from hogwear.cluster.peers import SINGLE_MACHINE
from hogwear.data.pixels import Pixels
from hogwear.networks.parameters import share_parameters
from hogwear.system.signals import Stop
from hogwear.system.workers import Workers
from hogwear.training import closed_form
from hogwear.training.closed_form import LOGIT_SCALE, RIDGE, Moments, fit_head, solve_classifier


@pytest.fixture(scope="module")
def photos(photo_files: list[Path]) -> Pixels:
    """70 real photos; the classes are dark, grey and bright ones."""
    images = decode_some(photo_files, 70, SIZE)
    return pixels_of(images, images.mean((1, 2, 3)).argsort().argsort() // 24)


def mean_colour(pixels: torch.Tensor) -> torch.Tensor:
    """Features, (B, 3)."""
    return pixels.float().mean((1, 2)) / 255


@pytest.mark.parametrize("workers", [1, 2])
def test_the_closed_form_equals_discriminant_analysis_of_all_features_at_once(
    workers: int, photos: Pixels
) -> None:
    moments = Moments(workers, 3, photos, 3)
    with Workers(workers, lambda rank: {"moments": moments.job(mean_colour, rank)}) as pool:
        list(pool.run("moments", moments.items))
    weight, bias = solve_classifier(moments.sums())

    labels = photos.labels
    f = mean_colour(torch.from_numpy(np.asarray(photos.images))).double().numpy()
    means = np.stack([f[labels == c].mean(0) for c in range(3)])
    covariance = (f - means[labels]).T @ (f - means[labels]) / 70
    covariance += RIDGE * np.trace(covariance) / 3 * np.eye(3)
    solved = np.linalg.solve(covariance, means.T)  # (features, classes)
    logits = f @ solved - (means.T * solved).sum(0) / 2
    logits -= logits.mean(1, keepdims=True)
    assert np.abs((f @ weight.numpy().T + bias.numpy()) / LOGIT_SCALE - logits).max() < 1e-3
    assert np.abs(logits).max() > 1


def test_each_class_contributes_equally_many_photos_where_it_has_them(
    photos: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closed_form, "PHOTOS_PER_CLASS", 23)
    chosen = Moments(1, 3, photos, 3).chosen
    assert np.bincount(photos.labels[chosen]).tolist() == [23, 23, 22]
    assert chosen.tolist() == sorted(set(chosen.tolist()))


def test_machines_that_add_up_their_sums_find_the_classifier_of_all_photos(photos: Pixels) -> None:
    def sums_of(rows: slice) -> list[np.ndarray]:
        part = photos.where(np.isin(np.arange(70), np.arange(70)[rows]))
        moments = Moments(1, 3, part, 3)
        for start in moments.items:
            moments.job(mean_colour, 0)(start)
        return moments.sums()

    parts = [sums_of(slice(rank, None, 2)) for rank in range(2)]
    together = solve_classifier([one + other for one, other in zip(*parts, strict=True)])
    alone = solve_classifier(sums_of(slice(None)))
    assert all(torch.allclose(x, y, atol=1e-4) for x, y in zip(together, alone, strict=True))


@pytest.mark.parametrize("is_stopped", [False, True])
def test_the_head_is_replaced_unless_a_stop_is_requested(photos: Pixels, is_stopped: bool) -> None:
    net, stop = model.build("tinyvgg", 3, SIZE), Stop()
    share_parameters(net)
    before = net.head.bias.detach().clone()
    moments = Moments(1, net.head.in_features, photos, 3)
    stop.signal = int(is_stopped)
    with Workers(1, lambda rank: {"moments": moments.job(net.features, rank)}) as pool:
        fit_head(net, moments, pool, SINGLE_MACHINE, stop)
    assert torch.equal(net.head.bias, before) == is_stopped
    assert not net.head.bias.isnan().any() and net.head.weight.is_shared()
