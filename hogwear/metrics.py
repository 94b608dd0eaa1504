"""Measures of a classifier: pure functions of logits (n, classes) and labels (n,), averaged over photos, never over batches."""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]


def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Log probabilities, (n, classes); computed in float64 and safe for large logits."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def cross_entropy(logits: Floats, labels: Ints) -> float:
    """Mean negative log probability of the true class, in nats."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def accuracy(logits: Floats, labels: Ints) -> float:
    """Share of photos whose largest logit is the true class; of equal ones the first counts."""
    return float((logits.argmax(axis=1) == labels).mean())


def confusion_matrix(predicted: Ints, labels: Ints, num_classes: int) -> Ints:
    """Photos of true class i predicted as class j, at [i, j]."""
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def per_class(matrix: Ints) -> dict[str, Floats | Ints]:
    """Precision, recall, F1 and support of each class, (classes,) each; 0 where the quotient has no denominator."""
    right, predicted, support = matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)
    precision = np.divide(right, predicted, out=np.zeros(len(matrix)), where=predicted > 0)
    recall = np.divide(right, support, out=np.zeros(len(matrix)), where=support > 0)
    total = predicted + support
    f1 = np.divide(2.0 * right, total, out=np.zeros(len(matrix)), where=total > 0)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support}
