"""The logits and labels of a split, and the metrics in eval_results.json that follow from them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hogwear.evaluation import calibration, metrics
from hogwear.system.arrays import BoolArray, Float64Array, FloatArray, Int64Array

COVERAGE_POINTS = 100  # of the curve of accuracy over coverage, at most


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a trained model predicted for the photos of a split."""

    class_names: tuple[str, ...]
    logits: FloatArray  # (n, classes)
    labels: Int64Array  # (n,)
    temperature: float  # as in TrainedModel, like the next two
    confidence_threshold: float
    history: tuple[dict[str, Any], ...] = ()

    @cached_property
    def predicted(self) -> Int64Array:
        """The predicted classes, (n,)."""
        return self.logits.argmax(axis=1)

    @cached_property
    def correct(self) -> BoolArray:
        """Which predictions are correct, (n,)."""
        return self.predicted == self.labels

    @cached_property
    def confidence(self) -> Float64Array:
        """Calibrated probabilities of the predicted classes, (n,)."""
        return calibration.confidences(self.logits, self.temperature)

    @cached_property
    def confusion_matrix(self) -> Int64Array:
        """Photos by [true class, predicted class]."""
        return metrics.confusion_matrix(self.predicted, self.labels, len(self.class_names))

    def measure_accuracy(self) -> dict[str, Any]:
        """Loss and accuracy, overall and by class."""
        by_class = metrics.per_class_metrics(self.confusion_matrix)
        count, correct, support = len(self.labels), int(self.correct.sum()), by_class["support"]
        return {
            "test_loss": metrics.cross_entropy(self.logits, self.labels),
            "test_acc": metrics.accuracy(self.logits, self.labels),
            "test_acc_interval": metrics.wilson_interval(correct, count),
            "majority_class": self.class_names[support.argmax()],
            "majority_acc": int(support.max()) / count,
            "num_examples": count,
            "num_right": correct,
            "class_names": list(self.class_names),
            "macro": metrics.macro_average(by_class),
            "per_class": {
                name: {metric: values[i].item() for metric, values in by_class.items()}
                for i, name in enumerate(self.class_names)
            },
            "confusion_matrix": self.confusion_matrix.tolist(),
        }

    def measure_calibration(self) -> dict[str, Any]:
        """Calibration, and the accuracy of the predictions above the confidence threshold."""
        confidence, correct = self.confidence, self.correct
        bins = calibration.reliability_bins(confidence, correct)
        sure = confidence >= self.confidence_threshold
        _, shares, accuracies = calibration.coverage_curve(confidence, correct)
        points = np.unique(np.linspace(0, len(shares) - 1, COVERAGE_POINTS).astype(int))
        uncalibrated = calibration.reliability_bins(calibration.confidences(self.logits), correct)
        return {
            "calibration": {
                "temperature": self.temperature,
                "ece_before": calibration.expected_calibration_error(uncalibrated),
                "ece_after": calibration.expected_calibration_error(bins),
                "loss_after": metrics.cross_entropy(self.logits / self.temperature, self.labels),
                "bins": [
                    {name: values[i].item() for name, values in bins.items()}
                    for i in np.flatnonzero(bins["count"])
                ],
            },
            "sure": {
                "from": self.confidence_threshold,
                "share": float(sure.mean()),
                "accuracy": float(correct[sure].mean()) if sure.any() else None,
            },
            "coverage": [
                {"share": shares[i].item(), "accuracy": accuracies[i].item()} for i in points
            ],
        }
