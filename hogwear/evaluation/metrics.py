"""Metrics of a classifier: pure functions of logits, (n, classes), and labels, (n,).

All means are over photos, never over batches.
"""

import numpy as np

from hogwear.system.arrays import Float64Array, FloatArray, Int64Array

NORMAL_QUANTILE = 1.959963984540054  # of a two-sided 95 % interval


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


def area_under_roc(negatives: FloatArray, positives: FloatArray) -> float:
    """How often a score among `positives`, (k,), is higher than one among `negatives`, (m,).

    Equal scores count as half. Neither array may be empty.
    """
    ordered = np.sort(negatives)
    below, up_to = (np.searchsorted(ordered, positives, side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(ordered)))


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of the proportion correct / count (Wilson 1927).

    Unlike the normal approximation it holds for few photos and for proportions near 0 or 1.
    """
    share, spread = correct / count, NORMAL_QUANTILE**2 / count
    middle = (share + spread / 2) / (1 + spread)
    variance = share * (1 - share) / count + spread / count / 4
    half = NORMAL_QUANTILE / (1 + spread) * float(np.sqrt(variance))
    return max(0.0, middle - half), min(1.0, middle + half)
