"""Running metrics, the rows of validations, and which weights are the best."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import hogwild_row

from hogwear.evaluation import metrics
from hogwear.training.discriminant import Forecast
from hogwear.training.history import (
    CLOSED_FORM,
    QUANTILES,
    Best,
    History,
    HistoryRow,
    RunningMetrics,
)
from hogwear.training.hogwild import StepResult


def test_metrics_are_sums_over_images() -> None:
    sums = RunningMetrics()
    sums.add(StepResult(images=30, loss=1.0, correct=10), seconds=2.0)
    sums.add(StepResult(images=10, loss=3.0, correct=5), seconds=0.5)
    assert sums == RunningMetrics(images=40, loss=60.0, correct=15, seconds=2.5)


def measured(epoch: float, val_loss: float, val_acc: float = 0.5) -> Best:
    return Best(epoch, 64, val_loss, val_acc, 1.5, 0.8, torch.zeros(QUANTILES), {})


def history_of(*losses: float) -> History:
    history = History()
    for epoch, loss in enumerate(losses):
        history.add(hogwild_row(epoch, loss), measured(epoch, loss))
    return history


@pytest.mark.parametrize(
    ("losses", "best"), [((0.5,), 0), ((0.5, 0.4), 1), ((0.5, 0.6), 0), ((0.5, 0.4, 0.45), 1)]
)
def test_the_weights_with_the_lowest_validation_loss_are_the_best(
    losses: tuple[float, ...], best: int
) -> None:
    history = history_of(*losses)
    assert history.best and history.best.epoch == best and history.epochs == len(losses) - 1
    assert [row.val_loss for row in history.rows] == list(losses)


def test_of_equal_losses_the_earlier_weights_are_kept_and_accuracy_does_not_matter() -> None:
    history = history_of(0.5)
    history.add(hogwild_row(1), measured(1, 0.5, val_acc=0.9))
    history.add(hogwild_row(2), measured(2, 0.6, val_acc=1.0))
    assert history.best and history.best.epoch == 0


def test_validation_and_calibration_are_of_the_logits() -> None:
    labels = np.array([0, 1, 2, 0] * 50)
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 1] * 50] * 10  # three of four are right
    weights = {"novelty.offset": torch.zeros(3), "novelty.curvature": torch.zeros(3, 3)}
    best = Best.measure(weights, 3, 64, logits, labels)
    assert (best.epoch, best.image_size, best.val_acc) == (3, 64, 0.75)
    assert best.weights is weights
    assert best.temperature > 5, "much too sure"
    calibrated = metrics.cross_entropy(logits / best.temperature, labels)
    assert best.val_loss == calibrated < metrics.cross_entropy(logits, labels)
    assert best.novelty_quantiles.tolist() == [-20] * QUANTILES, "-2 times the largest logit"
    assert best.confidence_threshold > 1, "no confidence is right in 99 % of all cases"


def test_the_epoch_line_names_validation_loss_and_accuracy_the_best_and_the_speed() -> None:
    history = History([hogwild_row(0.5, 0.6), hogwild_row(2.0)], measured(2.0, 0.5))
    assert history.describe_last() == (
        "epoch 2: val loss 0.5000, val accuracy 0.7500 (best), 99 images/s"
    )
    assert "epoch 0.25:" in History([hogwild_row(0.25)], history.best).describe_last()
    assert "(best)" not in History([hogwild_row(1, 0.6)], history.best).describe_last()


def test_the_line_of_a_classifier_in_closed_form_has_the_forecast_and_no_training() -> None:
    row = HistoryRow(0.0, CLOSED_FORM, val_loss=0.5, val_acc=0.75, images_per_second=280.0)
    history = History([row], measured(0.0, 0.5))
    assert history.describe_last(Forecast(0.8123, 0.6, 120)) == (
        "closed form: expected accuracy 0.812 (cross-validation), "
        "val loss 0.5000, val accuracy 0.7500 (best)"
    )
    assert history.describe_last().startswith("closed form: val loss 0.5000")
    assert history.describe_best() == "validation loss 0.5000, accuracy 0.5000 (epoch 0)"


def test_the_csv_has_a_row_per_validation_with_every_digit(tmp_path: Path) -> None:
    loss = 0.1 + 0.2
    history = [HistoryRow(0.0, CLOSED_FORM, val_acc=0.5), hogwild_row(0.5, loss, 1 / 3)]
    History(history).write_csv(tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "epoch", "stage", "images", "lr", "train_loss", "train_acc", "val_loss", "val_acc", "images_per_second",
    ]  # fmt: skip
    assert float(rows[1]["val_acc"]) == 1 / 3 and float(rows[1]["val_loss"]) == loss
    assert [row["stage"] for row in rows] == ["closed form", "hogwild"]
    assert [row["train_loss"] for row in rows] == ["", "0.25"], "nothing was trained before"
