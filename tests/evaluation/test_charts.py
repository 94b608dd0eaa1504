"""The charts: of many classes the most confused, with labels that can be read."""

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hogwear.evaluation import charts
from hogwear.evaluation.evaluation import Evaluation
from hogwear.evaluation.palette import BLUE, INK, ORANGE

NAMES = tuple(f"class {n:03d}" for n in range(200))
CONFUSED = [(7, 190, 9), (190, 7, 3), (50, 51, 8), (0, 199, 1)]


@pytest.fixture
def matrix() -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    matrix = np.diag(np.full(200, 20))
    for true, predicted, count in CONFUSED:
        matrix[true, predicted] = count
    return matrix


def test_confusions_are_sorted_by_frequency(
    matrix: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
) -> None:
    pairs = [tuple(pair) for pair in charts.find_confusions(matrix)]
    assert pairs == [(7, 190), (50, 51), (190, 7), (0, 199)]


def test_of_many_classes_the_most_confused_are_drawn_in_their_order(
    matrix: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
) -> None:
    expected = [0, 7, 50, 51, 190, 199]
    assert charts.find_most_confused(matrix).tolist() == expected
    axes = charts.draw_confusion_matrix(matrix, NAMES).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [NAMES[i] for i in expected]
    assert sorted(int(text.get_text()) for text in axes.texts) == [1, 3, 8, 9] + [20] * 6
    for many in (np.ones((200, 200), np.int64), matrix * 0):
        assert len(charts.find_most_confused(many)) == charts.SHOWN_CLASSES


@pytest.mark.long
def test_labels_of_the_confusion_matrix_do_not_overlap_however_many_classes_there_are(
    tmp_path: Path,
) -> None:
    for count in (25, 200):
        random = np.random.default_rng(0)
        figure = charts.draw_confusion_matrix(
            random.integers(0, 30, (count, count)),
            [f"a long name of a class {n}" for n in range(count)],
        )
        figure.savefig(tmp_path / "chart.png")
        boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
        assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes))
        assert boxes[0].height / figure.dpi * 72 > 8, "points"


def history(epochs: Sequence[float], stage: str = "hogwild") -> list[dict[str, Any]]:
    names = "train_loss", "val_loss", "train_acc", "val_acc"
    solved = {"epoch": 0.0, "stage": "closed form", **dict.fromkeys(names), "val_loss": 0.3}
    trained = [{"epoch": n, "stage": stage, **dict.fromkeys(names, 0.5)} for n in epochs]
    return [{**solved, "val_acc": 0.9}, *trained]


@pytest.mark.parametrize("epochs", [(), (0.56,), (0.5, 1, 2, 4), range(1, 96)])
def test_learning_curves_have_few_ticks_of_epochs_and_can_be_drawn(
    epochs: Sequence[float], tmp_path: Path
) -> None:
    figure = charts.draw_learning_curves(history(epochs))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        charts.save_chart(figure, tmp_path / "curves.png")
    for axes in figure.axes:
        assert 1 <= len(axes.get_xticks()) <= charts.SHOWN_EPOCHS + 2


def test_classifiers_in_closed_form_are_points_of_their_own() -> None:
    loss, accuracy = charts.draw_learning_curves(history((1.0, 2.0))).axes
    for axes, value in ((loss, 0.3), (accuracy, 0.9)):
        lines = {
            line.get_label(): np.asarray(line.get_xydata()).tolist() for line in axes.get_lines()
        }
        assert lines["closed form"] == [[0.0, value]] == lines["val"][:1]
        assert lines["train"] == [[1.0, 0.5], [2.0, 0.5]], "it has no training figures"


def test_curves_are_interrupted_where_the_classes_have_changed() -> None:
    rows = history((1.0, 2.0))
    changed = [{**rows[0], "epoch": 2.0, "stage": "classes changed"}, {**rows[1], "epoch": 3.0}]
    again = [{**changed[0], "epoch": 3.0}]
    for axes in charts.draw_learning_curves(rows + changed + again).axes:
        shown = [line for line in axes.get_lines() if line.get_linestyle() == "-"]
        xs = [np.asarray(line.get_xdata()).tolist() for line in shown]
        assert xs == [[1.0, 2.0], [3.0], [0.0, 1.0, 2.0], [2.0, 3.0], [3.0]]
        marks = [line for line in axes.get_lines() if line.get_linestyle() == ":"]
        assert [np.asarray(line.get_xdata()).tolist() for line in marks] == [[2.0] * 2, [3.0] * 2]
        legend = axes.get_legend()
        assert legend
        labels = [text.get_text() for text in legend.get_texts()]
        assert labels == ["train", "val", "closed form", "classes changed"]


def test_an_svg_takes_the_colour_and_the_width_of_the_page(tmp_path: Path) -> None:
    evaluation = Evaluation(("a", "b"), np.array([[1.0, 0], [0, 2]]), np.array([0, 0]), 1.0, 0.5)
    for figure in (
        charts.draw_reliability_diagram(evaluation),
        charts.draw_coverage_curve(evaluation),
    ):
        svg = charts.save_chart(figure, tmp_path / "chart.png")
        start = svg[: svg.index(">")]
        assert start.startswith("<svg") and "width=" not in start and "height=" not in start
        assert "viewBox" in start and "currentColor" in svg and "var(--blue)" in svg
        assert not [colour for colour in (INK, BLUE, ORANGE) if colour in svg]
