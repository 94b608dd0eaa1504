"""The measures, against cases worked by hand and against scikit-learn and SciPy."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.calibration
import sklearn.metrics

from hogwear.evaluation import metrics
from hogwear.system.arrays import FloatArray, Int64Array

LOGITS = np.log(
    np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.25, 0.25], [0.2, 0.7, 0.1]], np.float32)
)
LABELS = np.array([0, 1, 1, 1])


def test_loss_is_the_mean_negative_log_probability_of_the_true_class() -> None:
    by_hand = -(math.log(0.7) + math.log(0.6) + math.log(0.25) + math.log(0.7)) / 4
    assert metrics.cross_entropy(LOGITS, LABELS) == pytest.approx(by_hand, rel=1e-6)


def test_loss_does_not_change_when_all_logits_are_shifted() -> None:
    assert metrics.cross_entropy(LOGITS + 5, LABELS) == pytest.approx(
        metrics.cross_entropy(LOGITS, LABELS), rel=1e-6
    )


def test_huge_logits_give_a_finite_loss() -> None:
    logits = np.array([[1e4, 0.0], [0.0, -1e4]], np.float32)
    assert metrics.cross_entropy(logits, np.array([0, 1])) == 5000


def test_accuracy_is_the_share_of_correct_predictions() -> None:
    assert metrics.accuracy(LOGITS, LABELS) == 0.75


@pytest.mark.parametrize(("label", "right"), [(0, 1.0), (1, 0.0)])
def test_of_equal_logits_the_first_class_counts(label: int, right: float) -> None:
    assert metrics.accuracy(np.zeros((1, 2), np.float32), np.array([label])) == right


def test_one_photo_is_enough() -> None:
    logits, labels = LOGITS[:1], LABELS[:1]
    assert metrics.accuracy(logits, labels) == 1
    assert metrics.cross_entropy(logits, labels) == pytest.approx(-math.log(0.7), rel=1e-6)
    assert metrics.confusion_matrix(logits.argmax(1), labels, 3).tolist() == [
        [1, 0, 0],
        [0, 0, 0],
        [0, 0, 0],
    ]


def test_batches_of_different_size_do_not_weigh_the_same() -> None:
    parts = [(LOGITS[:3], LABELS[:3]), (LOGITS[3:], LABELS[3:])]
    by_photo = sum(metrics.cross_entropy(*part) * len(part[1]) for part in parts) / len(LABELS)
    by_batch = sum(metrics.cross_entropy(*part) for part in parts) / len(parts)
    assert metrics.cross_entropy(LOGITS, LABELS) == pytest.approx(by_photo)
    assert metrics.cross_entropy(LOGITS, LABELS) != pytest.approx(by_batch, abs=0.01)


def test_confusion_matrix_has_true_classes_in_rows() -> None:
    matrix = metrics.confusion_matrix(LOGITS.argmax(1), LABELS, 3)
    assert matrix.tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert np.issubdtype(matrix.dtype, np.integer), "photos are counted, not measured"


def test_precision_recall_and_f1_by_hand() -> None:
    found = metrics.per_class_metrics(np.array([[1, 0, 0], [1, 2, 0], [0, 1, 0]]))
    assert found["precision"] == pytest.approx([1 / 2, 2 / 3, 0])
    assert found["recall"] == pytest.approx([1, 2 / 3, 0])
    assert found["f1"] == pytest.approx([2 / 3, 2 / 3, 0])
    assert found["support"].tolist() == [1, 3, 1]


def test_an_absent_class_has_zeros_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    found = metrics.per_class_metrics(np.array([[2, 0], [0, 0]]))
    assert [values.tolist() for values in found.values()] == [[1, 0], [1, 0], [1, 0], [2, 0]]
    assert not recwarn


# --- against libraries that others keep

CASES = [
    (400, 5, 1.5),
    (60, 3, 0.2),
    (7, 4, 1.0),
    (1, 2, 1.0),
    (300, 10, 0.0),
]  # photos, classes, how much is known


def random_case(
    photos: int, classes: int, known: float, seed: int
) -> tuple[FloatArray, Int64Array]:
    """Logits and labels; with few photos some classes are absent, with nothing known all logits are ties."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, photos)
    logits = known * (random.normal(size=(photos, classes)) + 1.5 * np.eye(classes)[labels])
    return logits.astype(np.float32), labels


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_the_metrics_equal_scikit_learns(case: tuple[int, int, float], seed: int) -> None:
    logits, labels = random_case(*case, seed)
    classes, predicted = list(range(case[1])), logits.argmax(1)
    assert metrics.accuracy(logits, labels) == pytest.approx(
        sklearn.metrics.accuracy_score(labels, predicted)
    )
    expected_loss = sklearn.metrics.log_loss(
        labels, np.exp(metrics.log_softmax(logits)), labels=classes
    )
    assert metrics.cross_entropy(logits, labels) == pytest.approx(expected_loss, rel=1e-5)
    matrix = metrics.confusion_matrix(predicted, labels, case[1])
    assert np.array_equal(
        matrix, sklearn.metrics.confusion_matrix(labels, predicted, labels=classes)
    )
    found = metrics.per_class_metrics(matrix)
    theirs = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0
    )
    for name, values in zip(("precision", "recall", "f1", "support"), theirs, strict=True):
        assert found[name] == pytest.approx(values), name
    there = np.unique(labels)
    for name, value in zip(("precision", "recall", "f1"), theirs, strict=False):
        assert metrics.macro_average(found)[name] == pytest.approx(value[there].mean()), name


@pytest.mark.parametrize(
    ("right", "count"), [(627, 630), (0, 5), (5, 5), (1, 1), (0, 1), (50, 100)]
)
def test_the_wilson_interval_equals_scipys(right: int, count: int) -> None:
    theirs = scipy.stats.binomtest(right, count).proportion_ci(method="wilson")
    assert metrics.wilson_interval(right, count) == pytest.approx(
        (theirs.low, theirs.high), abs=1e-12
    )


@pytest.mark.parametrize(
    "count", [16, 27, 40, 44, 46]
)  # where rounding alone would lead out of 0 to 1
def test_an_interval_stays_within_0_and_1(count: int) -> None:
    assert (
        metrics.wilson_interval(0, count)[0] == 0 and metrics.wilson_interval(count, count)[1] <= 1
    )
