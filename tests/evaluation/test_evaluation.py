"""The figures of eval_results.json agree with each other and with their definitions."""

import numpy as np
import pytest

from hogwear.evaluation.evaluation import COVERAGE_POINTS, Evaluation


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 300)
    logits = random.normal(size=(300, 4)) + 1.5 * np.eye(4)[labels]
    return Evaluation(("a", "b", "c", "d"), logits, labels, 1.7, 0.6)


def test_accuracy_and_confusion_matrix_agree(evaluation: Evaluation) -> None:
    results = evaluation.measure_accuracy()
    matrix = np.array(results["confusion_matrix"])
    assert results["num_right"] == matrix.trace() == evaluation.correct.sum()
    assert results["test_acc"] == pytest.approx(results["num_right"] / 300)
    assert results["num_examples"] == matrix.sum() == 300
    low, high = results["test_acc_interval"]
    assert 0 < low < results["test_acc"] < high < 1
    supports = [row["support"] for row in results["per_class"].values()]
    assert supports == matrix.sum(axis=1).tolist()
    assert results["majority_class"] == "abcd"[int(np.argmax(supports))]
    assert results["majority_acc"] == max(supports) / 300


def test_bins_and_calibration_error_agree(evaluation: Evaluation) -> None:
    calibration = evaluation.measure_calibration()["calibration"]
    bins = calibration["bins"]
    assert sum(b["count"] for b in bins) == 300 and all(b["count"] for b in bins)
    assert sum(b["count"] * b["accuracy"] for b in bins) == pytest.approx(evaluation.correct.sum())
    gap = sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / 300
    assert gap == pytest.approx(calibration["ece_after"])
    assert calibration["ece_before"] != pytest.approx(calibration["ece_after"])
    assert calibration["temperature"] == 1.7


def test_sure_predictions_are_those_that_reach_the_threshold(evaluation: Evaluation) -> None:
    probabilities = np.exp(evaluation.logits / 1.7)
    confidence = (probabilities / probabilities.sum(1, keepdims=True)).max(1)
    sure = confidence >= 0.6
    results = evaluation.measure_calibration()["sure"]
    assert results["from"] == 0.6 and results["share"] == pytest.approx(sure.mean())
    assert results["accuracy"] == pytest.approx(evaluation.correct[sure].mean())
    assert 0.1 < results["share"] < 0.9


def test_the_coverage_curve_ends_with_all_photos(evaluation: Evaluation) -> None:
    coverage = evaluation.measure_calibration()["coverage"]
    assert len(coverage) == COVERAGE_POINTS
    accuracy = evaluation.measure_accuracy()["test_acc"]
    assert coverage[-1] == {"share": 1.0, "accuracy": pytest.approx(accuracy)}
    assert coverage[0]["accuracy"] > accuracy, "the most confident predictions are more accurate"
    assert np.all(np.diff([point["share"] for point in coverage]) > 0)


def test_without_sure_predictions_their_accuracy_is_none(evaluation: Evaluation) -> None:
    none_sure = Evaluation(evaluation.class_names, evaluation.logits, evaluation.labels, 1.0, 1.01)
    sure = none_sure.measure_calibration()["sure"]
    assert sure == {"from": 1.01, "share": 0.0, "accuracy": None}
