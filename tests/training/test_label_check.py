"""What follows from the predictions of photos that were left out."""

import numpy as np
import pytest

from hogwear.training.label_check import LeftOutPredictions

NAN = [np.nan] * 3
FOUND = LeftOutPredictions(
    labels=np.array([0, 0, 1, 2, 2, 1, 0]),
    probabilities=np.array(
        [
            [0.9, 0.1, 0.0],
            [0.1, 0.7, 0.2],  # another class is 7 times as probable
            [0.3, 0.2, 0.5],  # wrong, but not surely
            NAN,
            [0.01, 0.98, 0.01],  # 98 times
            [0.0, 1.0, 0.0],
            [0.15, 0.15, 0.7],  # less than 5 times
        ]
    ),
)


def test_contradicted_are_those_with_a_far_more_probable_class_the_most_convincing_first() -> None:
    assert FOUND.find_contradicted().tolist() == [4, 1]


def test_accuracy_and_confusions_count_only_what_was_predicted() -> None:
    assert FOUND.is_predicted.tolist() == [True] * 3 + [False] + [True] * 3
    assert FOUND.accuracy == pytest.approx(2 / 6)
    confusions = FOUND.count_confusions()
    assert sorted(confusions) == [(0, 1, 1), (0, 2, 1), (1, 2, 1), (2, 1, 1)]
    assert sum(count for _, _, count in confusions) == 4
