"""Metrics of a classifier: pure functions of logits, (n, classes), and labels, (n,).

All means are over photos, never over batches.
"""

import numpy as np

from hogwear.system.arrays import BoolArray, Float64Array, FloatArray, Int64Array

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
UNREACHABLE = 1.01  # a threshold that no probability reaches
NORMAL_QUANTILE = 1.959963984540054  # of a two-sided 95 % interval
BINS = 15  # of the confidence, in a reliability diagram


def log_softmax(logits: FloatArray) -> Float64Array:
    """Log probabilities, (n, classes), in float64; safe for large logits."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def cross_entropy(logits: FloatArray, labels: Int64Array) -> float:
    """Mean negative log probability of the true class, in nats."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def accuracy(logits: FloatArray, labels: Int64Array) -> float:
    """Share of photos whose largest logit (the first of equal ones) is that of the true class."""
    return float((logits.argmax(axis=1) == labels).mean())


def confusion_matrix(predicted: Int64Array, labels: Int64Array, num_classes: int) -> Int64Array:
    """Number of photos by true class (rows) and predicted class (columns)."""
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def per_class_metrics(matrix: Int64Array) -> dict[str, FloatArray | Int64Array]:
    """Precision, recall, F1 and support of each class, (classes,); 0 where a denominator is 0."""
    correct, predicted, support = matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)
    # Where a denominator is 0, so is the numerator.
    precision = correct / np.maximum(predicted, 1)
    recall = correct / np.maximum(support, 1)
    f1 = 2 * correct / np.maximum(predicted + support, 1)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support}


def macro_average(by_class: dict[str, FloatArray | Int64Array]) -> dict[str, float]:
    """Unweighted means of precision, recall and F1 over the classes that have photos."""
    present = np.asarray(by_class["support"]) > 0
    return {name: float(np.mean(by_class[name][present])) for name in ("precision", "recall", "f1")}


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of the proportion correct / count (Wilson 1927).

    Unlike the normal approximation it holds for few photos and for proportions near 0 or 1.
    """
    share, spread = correct / count, NORMAL_QUANTILE**2 / count
    middle = (share + spread / 2) / (1 + spread)
    variance = share * (1 - share) / count + spread / count / 4
    half = NORMAL_QUANTILE / (1 + spread) * float(np.sqrt(variance))
    return max(0.0, middle - half), min(1.0, middle + half)


# --- Calibration


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
