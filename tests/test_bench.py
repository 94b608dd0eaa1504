"""The peers that `make bench` compares Hogwear with, on a few photos."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import SIZE
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench import peers, runs


def test_every_measured_peer_exists() -> None:
    assert {name for name, _ in runs.PEERS} <= peers.PEERS.keys()


@pytest.mark.long
def test_frozen_features_learn_the_classes_of_a_few_photos(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for photo in data.glob("*/*/*"):  # some are in the folder of another class: put them back
        folder = tmp_path / photo.parent.parent.name / photo.name.partition("-")[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / photo.name).symlink_to(photo)
    flags = "--photos", tmp_path, "--epochs", 1, "--size", SIZE, "--workers", 1
    monkeypatch.setattr(sys, "argv", ["peers", "frozen_features", *map(str, flags)])
    peers.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["peer"] == "frozen_features" and figures["images_per_second"] > 0
    assert figures["test_acc"] > 0.8, "on a random projection of the features: 0.625"


@pytest.mark.parametrize("C", [peers.C_GRID[0], peers.C_GRID[-1]])
def test_regularisation_is_chosen_on_val(C: float) -> None:
    rng = np.random.default_rng(0)
    train = rng.normal(size=(60, 20)).astype(np.float32), rng.integers(3, size=60)
    others = rng.normal(size=(200, 20)).astype(np.float32)
    target = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000)).fit(*train)
    chosen = peers.fit_logistic_regression(train, (others, target.predict(others)))
    assert chosen[-1].C == C
