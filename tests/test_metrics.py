"""The measures, against cases worked by hand."""

import math

import numpy as np
import pytest

from hogwear import metrics

LOGITS = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.25, 0.25], [0.2, 0.7, 0.1]], np.float32))
LABELS = np.array([0, 1, 1, 1])


def test_loss_is_the_mean_negative_log_probability_of_the_true_class() -> None:
    by_hand = -(math.log(0.7) + math.log(0.6) + math.log(0.25) + math.log(0.7)) / 4
    assert metrics.cross_entropy(LOGITS, LABELS) == pytest.approx(by_hand, rel=1e-6)


def test_loss_does_not_change_when_all_logits_are_shifted() -> None:
    assert metrics.cross_entropy(LOGITS + 5, LABELS) == pytest.approx(metrics.cross_entropy(LOGITS, LABELS), rel=1e-6)


def test_huge_logits_give_a_finite_loss() -> None:
    logits = np.array([[1e4, 0.0], [0.0, -1e4]], np.float32)
    assert metrics.cross_entropy(logits, np.array([0, 1])) == 5000


def test_accuracy_is_the_share_of_photos_that_are_right() -> None:
    assert metrics.accuracy(LOGITS, LABELS) == 0.75


@pytest.mark.parametrize(("label", "right"), [(0, 1.0), (1, 0.0)])
def test_of_equal_logits_the_first_class_counts(label: int, right: float) -> None:
    assert metrics.accuracy(np.zeros((1, 2), np.float32), np.array([label])) == right


def test_one_photo_is_enough() -> None:
    logits, labels = LOGITS[:1], LABELS[:1]
    assert metrics.accuracy(logits, labels) == 1
    assert metrics.cross_entropy(logits, labels) == pytest.approx(-math.log(0.7), rel=1e-6)
    assert metrics.confusion_matrix(logits.argmax(1), labels, 3).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_batches_of_different_size_do_not_weigh_the_same() -> None:
    parts = [(LOGITS[:3], LABELS[:3]), (LOGITS[3:], LABELS[3:])]
    by_photo = sum(metrics.cross_entropy(*part) * len(part[1]) for part in parts) / len(LABELS)
    by_batch = sum(metrics.cross_entropy(*part) for part in parts) / len(parts)
    assert metrics.cross_entropy(LOGITS, LABELS) == pytest.approx(by_photo)
    assert metrics.cross_entropy(LOGITS, LABELS) != pytest.approx(by_batch, abs=0.01)


def test_confusion_matrix_has_true_classes_in_rows() -> None:
    matrix = metrics.confusion_matrix(LOGITS.argmax(1), LABELS, 3)
    assert matrix.tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]


def test_precision_recall_and_f1_by_hand() -> None:
    found = metrics.per_class(np.array([[1, 0, 0], [1, 2, 0], [0, 1, 0]]))
    assert found["precision"] == pytest.approx([1 / 2, 2 / 3, 0])
    assert found["recall"] == pytest.approx([1, 2 / 3, 0])
    assert found["f1"] == pytest.approx([2 / 3, 2 / 3, 0])
    assert found["support"].tolist() == [1, 3, 1]


def test_an_absent_class_counts_zero_and_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    found = metrics.per_class(np.array([[2, 0], [0, 0]]))
    assert [values.tolist() for values in found.values()] == [[1, 0], [1, 0], [1, 0], [2, 0]]
    assert not recwarn
