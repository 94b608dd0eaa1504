"""Temperature scaling and reliability, against cases worked by hand and against scikit-learn."""

import math

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics
from test_metrics import random_case

from hogwear.evaluation import calibration, metrics
from hogwear.system.arrays import FloatArray

LOGITS = np.log(
    np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.25, 0.25], [0.2, 0.7, 0.1]], np.float32)
)
LABELS = np.array([0, 1, 1, 1])


@pytest.mark.parametrize("seed", range(3))
def test_reliability_equals_scikit_learns_and_the_error_follows_from_it(seed: int) -> None:
    logits, labels = random_case(400, 5, 1.5, seed)
    confidence, right = calibration.confidences(logits), logits.argmax(1) == labels
    found = calibration.reliability_bins(confidence, right, bins=10)
    share, mean = sklearn.calibration.calibration_curve(right, confidence, n_bins=10)
    some = found["count"] > 0
    assert found["accuracy"][some] == pytest.approx(share) and found["confidence"][
        some
    ] == pytest.approx(mean)
    gaps = [
        abs(confidence[place].sum() - right[place].sum())
        for n in range(10)
        if (place := np.clip((confidence * 10).astype(int), 0, 9) == n).any()
    ]
    assert calibration.expected_calibration_error(found) == pytest.approx(sum(gaps) / 400)


def test_empty_bins_have_no_confidence_and_no_accuracy(
    recwarn: pytest.WarningsRecorder,
) -> None:
    found = calibration.reliability_bins(np.array([0.3, 0.35]), np.array([True, False]), bins=4)
    assert found["count"].tolist() == [0, 2, 0, 0]
    assert found["confidence"] == pytest.approx([math.nan, 0.325, math.nan, math.nan], nan_ok=True)
    assert found["accuracy"] == pytest.approx([math.nan, 0.5, math.nan, math.nan], nan_ok=True)
    assert not recwarn


def test_a_confidence_of_1_belongs_to_the_last_bin() -> None:
    found = calibration.reliability_bins(np.array([0.9, 1.0]), np.array([True, False]), bins=4)
    assert found["count"].tolist() == [0, 0, 0, 2] and found["accuracy"][3] == 0.5


def test_the_calibration_error_has_15_bins_as_in_the_paper() -> None:
    confidence, right = np.array([0.61, 0.62, 0.66, 0.68]), np.array([True, False, True, True])
    found = calibration.reliability_bins(confidence, right)
    assert np.flatnonzero(found["count"]).tolist() == [9, 10]  # 9/15 is 0.6, 10/15 is 0.667
    assert len(found["count"]) == 15
    assert calibration.expected_calibration_error(found) == pytest.approx(
        ((2 - 1.89) + (1 - 0.68)) / 4
    )


# --- temperature and coverage


def test_confidence_is_the_probability_of_the_predicted_class() -> None:
    assert calibration.confidences(LOGITS) == pytest.approx([0.7, 0.6, 0.5, 0.7])
    assert calibration.confidences(LOGITS, 0.5) == pytest.approx(
        [0.49 / 0.54, 0.36 / 0.46, 0.25 / 0.375, 0.49 / 0.54]
    )


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_a_scale_and_no_other_has_less_loss(scale: float) -> None:
    random = np.random.default_rng(0)
    honest = 2 * random.normal(size=(5000, 4))
    labels = np.array([random.choice(4, p=p) for p in np.exp(metrics.log_softmax(honest))])
    found = calibration.fit_temperature(scale * honest, labels)
    assert found == pytest.approx(scale, rel=0.05)
    losses = [
        metrics.cross_entropy(scale * honest / t, labels) for t in (0.9 * found, found, 1.1 * found)
    ]
    assert losses[1] == min(losses)


@pytest.mark.parametrize("photos", [1, 20, 2000])
def test_without_a_mistake_label_smoothing_keeps_the_temperature_above_0(photos: int) -> None:
    labels = np.arange(photos) % 3
    logits = 3 * np.eye(3)[labels] + 1
    confidence = calibration.confidences(logits, calibration.fit_temperature(logits, labels))
    assert confidence == pytest.approx(
        np.full(photos, 1 - 2 / 3 / (photos + 2)), abs=1e-9
    )  # two of its three classes are wrong


@pytest.mark.parametrize(
    ("logits", "temperature"),
    [(1e-3 * np.eye(3), 0.05), (-np.eye(3), 20)],
    ids=["all right, barely", "all wrong"],
)
def test_the_temperature_stays_within_its_bounds(logits: FloatArray, temperature: float) -> None:
    assert calibration.fit_temperature(logits, np.arange(3)) == pytest.approx(temperature)


def test_equal_logits_have_a_temperature() -> None:
    assert 0 < calibration.fit_temperature(np.zeros((4, 3)), np.array([0, 1, 2, 0])) < 100


def test_coverage_by_hand_treats_equal_confidences_together() -> None:
    confidence, right = np.array([0.9, 0.6, 0.6, 0.99]), np.array([True, True, False, True])
    thresholds, shares, accuracies = calibration.coverage_curve(confidence, right)
    assert (thresholds.tolist(), shares.tolist()) == ([0.99, 0.9, 0.6], [0.25, 0.5, 1.0])
    assert accuracies == pytest.approx([1, 1, 0.75])


@pytest.mark.parametrize(("accuracy", "expected"), [(0.75, 0.6), (0.76, 0.9), (1.0, 0.9)])
def test_the_threshold_is_the_lowest_with_the_target_accuracy(
    accuracy: float, expected: float
) -> None:
    confidence, right = np.array([0.9, 0.6, 0.6, 0.99]), np.array([True, True, False, True])
    assert calibration.fit_threshold(accuracy, confidence, right) == expected


def test_without_a_sufficient_threshold_it_is_unreachable() -> None:
    assert calibration.fit_threshold(0.99, np.array([0.9, 0.8]), np.array([False, True])) > 1
