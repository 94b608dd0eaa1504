"""Calibration: temperature scaling, and how far probabilities can be trusted."""

import numpy as np

from hogwear.evaluation.metrics import log_softmax
from hogwear.system.arrays import BoolArray, Float64Array, FloatArray, Int64Array

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
UNREACHABLE = 1.01  # a threshold that no probability reaches
BINS = 15  # of the confidence, in a reliability diagram


def confidences(logits: FloatArray, temperature: float = 1.0) -> Float64Array:
    """The probability of the predicted class, (n,), with logits divided by `temperature`."""
    return np.exp(log_softmax(logits / temperature).max(axis=1))


def fit_temperature(logits: FloatArray, labels: Int64Array) -> float:
    """The temperature that minimises the cross-entropy of logits / temperature (arXiv 1706.04599).

    It lies between MIN_TEMPERATURE and MAX_TEMPERATURE. Labels are smoothed by 1 / (n + 2), as in
    Platt scaling (1999): without a single mistake, the temperature would otherwise fall to 0 and
    every probability rise to 1. The cross-entropy is convex in 1 / temperature, so its slope is
    bisected.
    """
    logits, smoothing = logits.astype(np.float64), 1 / (len(labels) + 2)
    of_label = logits[np.arange(len(labels)), labels].mean()
    wanted = (1 - smoothing) * of_label + smoothing * logits.mean()
    low, high = MIN_TEMPERATURE, MAX_TEMPERATURE
    for _ in range(40):
        temperature = float(np.sqrt(low * high))
        expected = (np.exp(log_softmax(logits / temperature)) * logits).sum(axis=1).mean()
        low, high = (low, temperature) if expected < wanted else (temperature, high)
    return temperature


def fit_any_temperature(logits: FloatArray, labels: Int64Array) -> float:
    """The same without limits, for logits of any scale."""
    spread = float(logits.std()) or 1.0
    return spread * fit_temperature(logits / spread, labels)


def reliability_bins(
    confidence: FloatArray, correct: BoolArray, bins: int = BINS
) -> dict[str, FloatArray | Int64Array]:
    """Photos in `bins` of equal width by their confidence: count, mean confidence, accuracy.

    (bins,) each; mean confidence and accuracy of an empty bin are NaN.
    """
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean, share = (
            np.bincount(index, weights=x, minlength=bins) / count for x in (confidence, correct)
        )
    return {"count": count, "confidence": mean, "accuracy": share}


def expected_calibration_error(bins: dict[str, FloatArray | Int64Array]) -> float:
    """ECE: the mean over photos of |confidence - accuracy| of their bins (arXiv 1706.04599)."""
    gaps = np.abs(bins["confidence"] - bins["accuracy"])
    return float(np.nansum(gaps * bins["count"]) / bins["count"].sum())


def coverage_curve(
    confidence: FloatArray, correct: BoolArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Thresholds of the confidence, falling; the share of photos that reach each; their accuracy.

    (m,) each, m being the number of different confidences.
    """
    order = np.argsort(-confidence)
    thresholds, cumulative = confidence[order], correct[order].cumsum()
    last = np.flatnonzero(np.append(thresholds[:-1] != thresholds[1:], True))  # of equal ones
    return thresholds[last], (last + 1) / len(order), cumulative[last] / (last + 1)


def fit_threshold(target: float, confidence: FloatArray, correct: BoolArray) -> float:
    """The lowest threshold above which the accuracy is at least `target`, or UNREACHABLE."""
    thresholds, _, accuracies = coverage_curve(confidence, correct)
    sufficient = np.flatnonzero(accuracies >= target)
    return float(thresholds[sufficient[-1]]) if len(sufficient) else UNREACHABLE
