"""The classifier in closed form equals discriminant analysis of all features at once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SIZE, decode_some, pixels_of

from hogwear.system.workers import Workers
from hogwear.training.closed_form import RIDGE, TEMPERATURE, Moments


@pytest.mark.parametrize("workers", [1, 2])
def test_the_closed_form_equals_discriminant_analysis_of_all_features_at_once(
    workers: int, photo_files: list[Path], tmp_path: Path
) -> None:
    images = decode_some(photo_files, 70, SIZE)
    labels = images.mean((1, 2, 3)).argsort().argsort() // 24  # dark, grey and bright ones
    pixels = pixels_of(images, labels)

    def features(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().mean((1, 2)) / 255  # (B, 3): the mean colour

    moments = Moments(workers, 3, pixels, 3)
    with Workers(workers, lambda rank: {"moments": moments.job(features, rank)}) as pool:
        list(pool.run("moments", moments.items))
    weight, bias = moments.classifier(moments.totals())

    f = features(torch.from_numpy(images)).double().numpy()
    means = np.stack([f[labels == c].mean(0) for c in range(3)])
    covariance = (f - means[labels]).T @ (f - means[labels]) / 70
    covariance += RIDGE * np.trace(covariance) / 3 * np.eye(3)
    solved = np.linalg.solve(covariance, means.T)  # (features, classes)
    logits = f @ solved - (means.T * solved).sum(0) / 2
    logits -= logits.mean(1, keepdims=True)
    assert np.abs((f @ weight.numpy().T + bias.numpy()) / TEMPERATURE - logits).max() < 1e-3
    assert np.abs(logits).max() > 1
