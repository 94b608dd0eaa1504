"""Measures of a classifier: pure functions of logits (n, classes) and labels (n,), averaged over photos, never over batches."""

import numpy as np

from hogwear.system.arrays import BoolArray, Float64Array, FloatArray, Int64Array

COLDEST, HOTTEST = 0.05, 20.0  # the temperatures that logits may be divided by
NOWHERE = 1.01  # a threshold that no probability reaches


def log_softmax(logits: FloatArray) -> Float64Array:
    """Log probabilities, (n, classes); computed in float64 and safe for large logits."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: Float64Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def cross_entropy(logits: FloatArray, labels: Int64Array) -> float:
    """Mean negative log probability of the true class, in nats."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def accuracy(logits: FloatArray, labels: Int64Array) -> float:
    """Share of photos whose largest logit is the true class; of equal ones the first counts."""
    return float((logits.argmax(axis=1) == labels).mean())


def confusion_matrix(predicted: Int64Array, labels: Int64Array, num_classes: int) -> Int64Array:
    """Photos of true class i predicted as class j, at [i, j]."""
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def per_class(matrix: Int64Array) -> dict[str, FloatArray | Int64Array]:
    """Precision, recall, F1 and support of each class, (classes,) each; 0 where the quotient has no denominator."""
    right, predicted, support = matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)
    precision = right / np.maximum(
        predicted, 1
    )  # where nothing was predicted, nothing is right: 0 / 1
    recall = right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(predicted + support, 1)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support}


def macro(by_class: dict[str, FloatArray | Int64Array]) -> dict[str, float]:
    """Precision, recall and F1 as the mean of the classes that have photos, each counting the same however many it has."""
    there = np.asarray(by_class["support"]) > 0
    return {name: float(np.mean(by_class[name][there])) for name in ("precision", "recall", "f1")}


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of which `right` of `count` were seen (Wilson 1927): honest for few photos and near 1 too."""
    z = 1.959963984540054
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * float(np.sqrt(share * (1 - share) / count + spread / count / 4))
    return max(0.0, middle - half), min(1.0, middle + half)


# --- whether probabilities mean what they say


def confidences(logits: FloatArray, temperature: float = 1.0) -> Float64Array:
    """The probability of the likeliest class, (n,), of logits divided by `temperature`."""
    result: Float64Array = np.exp(log_softmax(logits / temperature).max(axis=1))
    return result


def fit_temperature(logits: FloatArray, labels: Int64Array) -> float:
    """The T, COLDEST to HOTTEST, for which logits / T have the least cross-entropy (Guo et al., arXiv 1706.04599).

    One photo in n + 2 is taken to be of any class, as in Platt's scaling (1999): without a mistake to learn from, T would
    fall to 0 and every answer be certain. The cross-entropy is convex in 1 / T, so its slope is bisected.
    """
    logits, doubt = logits.astype(np.float64), 1 / (len(labels) + 2)
    wanted = (1 - doubt) * logits[np.arange(len(labels)), labels].mean() + doubt * logits.mean()
    low, high = COLDEST, HOTTEST
    for _ in range(40):
        temperature = float(np.sqrt(low * high))
        expected = (np.exp(log_softmax(logits / temperature)) * logits).sum(axis=1).mean()
        low, high = (low, temperature) if expected < wanted else (temperature, high)
    return temperature


def reliability(
    confidence: FloatArray, right: BoolArray, bins: int = 15
) -> dict[str, FloatArray | Int64Array]:
    """Photos by their confidence, in `bins` of equal width: how many, their mean confidence, and the share that is right.

    (bins,) each; the last two are NaN where a bin is empty.
    """
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean, share = (
            np.bincount(place, weights=x, minlength=bins) / count for x in (confidence, right)
        )
    return {"count": count, "confidence": mean, "accuracy": share}


def calibration_error(confidence: FloatArray, right: BoolArray, bins: int = 15) -> float:
    """ECE (arXiv 1706.04599): how far confidence is from accuracy, the mean over photos of what `reliability` says of their bins."""
    found = reliability(confidence, right, bins)
    gaps = np.abs(found["confidence"] - found["accuracy"])
    return float(np.nansum(gaps * found["count"]) / len(confidence))


def coverage(confidence: FloatArray, right: BoolArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """What answering only above a threshold gives: thresholds, falling, the share answered, the share of that which is right.

    (m,) each, m the number of different confidences: photos of the same one are answered together or not at all.
    """
    order = np.argsort(-confidence)
    thresholds, cumulative = confidence[order], right[order].cumsum()
    last = np.flatnonzero(
        np.append(thresholds[:-1] != thresholds[1:], True)
    )  # of those with one confidence
    return thresholds[last], (last + 1) / len(order), cumulative[last] / (last + 1)


def threshold_for(accuracy: float, confidence: FloatArray, right: BoolArray) -> float:
    """The lowest confidence seen from which on upwards that share of answers was right; NOWHERE where there is none."""
    thresholds, _, accuracies = coverage(confidence, right)
    enough = np.flatnonzero(accuracies >= accuracy)
    return float(thresholds[enough[-1]]) if len(enough) else NOWHERE
