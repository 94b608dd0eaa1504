"""Running metrics, the rows of epochs, and which weights are the best."""

import csv
from pathlib import Path

import numpy as np
import torch

from hogwear.training.history import Best, EpochRow, History, RunningMetrics
from hogwear.training.hogwild import StepResult


def row(epoch: int, val_acc: float, val_loss: float = 0.5) -> EpochRow:
    return EpochRow(epoch, 120, 0.001, 0.25, 0.9, val_loss, val_acc, 98.76)


def best(epoch: int) -> Best:
    return Best(epoch, 64, 0.5, 0.75, 1.5, 0.8, {})


def test_metrics_are_sums_over_images() -> None:
    metrics = RunningMetrics()
    metrics.add(StepResult(images=30, loss=1.0, correct=10), seconds=2.0)
    metrics.add(StepResult(images=10, loss=3.0, correct=5), seconds=0.5)
    assert metrics == RunningMetrics(images=40, loss=60.0, correct=15, seconds=2.5)


def test_the_best_weights_are_the_most_accurate_and_of_equal_ones_the_later() -> None:
    assert History().is_best(row(1, 0.0))
    epochs = History([row(1, 0.75)], best(1))
    assert epochs.is_best(row(2, 0.76)) and epochs.is_best(row(2, 0.75))
    assert not epochs.is_best(row(2, 0.74))


def test_validation_and_calibration_are_of_the_logits() -> None:
    labels = np.array([0, 1, 2, 0] * 50)
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 1] * 50] * 10  # three of four are right
    weights = {"w": torch.zeros(1)}
    measured = Best.measure(weights, 3, 64, logits, labels)
    assert (measured.epoch, measured.image_size, measured.val_acc) == (3, 64, 0.75)
    assert measured.weights is weights
    assert measured.temperature > 5, "much too sure"
    assert measured.confidence_threshold > 1, "no confidence is right in 99 % of all cases"


def test_the_epoch_line_names_loss_and_accuracy_of_both_splits_and_the_best() -> None:
    epochs = History([row(1, 0.25), row(2, 0.75)], best(2))
    assert epochs.describe_last(total_epochs=3) == (
        "epoch 2/3: train loss 0.250, train accuracy 0.900, "
        "val loss 0.5000, val accuracy 0.7500 (best), 99 images/s"
    )
    assert "(best)" not in History([row(1, 0.25)], best(2)).describe_last(3)


def test_the_csv_has_a_row_per_epoch_with_every_digit(tmp_path: Path) -> None:
    loss = 0.1 + 0.2
    History([row(1, 0.25), row(2, 1 / 3, loss)]).write_csv(tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "epoch", "images", "lr", "train_loss", "train_acc", "val_loss", "val_acc", "images_per_second",
    ]  # fmt: skip
    assert float(rows[1]["val_acc"]) == 1 / 3 and float(rows[1]["val_loss"]) == loss
