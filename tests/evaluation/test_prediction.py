"""A prediction as a line, as JSON and as a row of the table."""

from pathlib import Path

import numpy as np
import pytest

from hogwear.evaluation.prediction import TOP_CLASSES, Photo, Prediction, to_rows

IMAGE = np.zeros((8, 8, 3), np.uint8)
SIX = {"a": 0.05, "b": 0.4, "c": 0.3, "d": 0.1, "e": 0.08, "f": 0.07}
UNREADABLE = Prediction(Photo(Path("x/2.jpg"), None, None, "empty file"), {})


def predict(
    true_class: str | None, unsure: bool = False, unknown: bool | None = None
) -> Prediction:
    return Prediction(Photo(Path("x/1.jpg"), true_class, IMAGE), SIX, unsure, unknown)


@pytest.mark.parametrize(
    ("prediction", "line"),
    [
        (predict("b"), "b              40.0%  x/1.jpg"),
        (predict(None), "b              40.0%  x/1.jpg"),
        (predict("b", unsure=True), "b              40.0%  x/1.jpg  unsure"),
        (predict("b", unknown=False), "b              40.0%  x/1.jpg"),
        (predict("b", True, unknown=True), "b              40.0%  x/1.jpg  unknown"),
        (predict("c"), "b              40.0%  x/1.jpg  incorrect (labelled c)"),
        (UNREADABLE, "not readable          x/2.jpg: empty file"),
    ],
)
def test_a_line_has_class_probability_and_file(prediction: Prediction, line: str) -> None:
    assert prediction.line() == line


def test_the_most_probable_classes_come_first() -> None:
    top = predict(None).top_classes()
    assert [name for name, _ in top] == list("bcdef") and len(top) == TOP_CLASSES
    assert (predict(None).predicted, predict(None).probability) == ("b", 0.4)


def test_json_has_the_error_or_the_prediction() -> None:
    assert predict("c", unsure=True).to_json() == {
        "file": "x/1.jpg",
        "true_class": "c",
        "error": None,
        "sorted_to": None,
        "predicted": "b",
        "probability": 0.4,
        "unsure": True,
        "unknown": None,
        "probabilities": SIX,
    }
    assert UNREADABLE.to_json() == {
        "file": "x/2.jpg",
        "true_class": None,
        "error": "empty file",
        "sorted_to": None,
        "probabilities": {},
    }


def test_the_table_has_a_row_per_photo_with_the_most_probable_classes() -> None:
    header, first, second = to_rows([predict("b"), UNREADABLE])
    columns = ["file", "true_class", "error", "unsure", "unknown", "sorted_to", "class_1"]
    assert header[:7] == columns
    assert len(header) == 6 + 2 * TOP_CLASSES == len(first)
    assert first[:10] == [Path("x/1.jpg"), "b", None, False, None, None, "b", 0.4, "c", 0.3]
    assert second == [Path("x/2.jpg"), None, "empty file", None, None, None]
