"""The worst mistakes: sorted by the probability of the true class, each with its own photo and map."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CLASSES, SIZE, decode_some, pixels_of

import model
from hogwear.data.photos import Split
from hogwear.data.pixels import Pixels
from hogwear.evaluation.evaluation import Evaluation
from hogwear.evaluation.mistakes import WORST, Mistake, find_worst_mistakes
from hogwear.networks.network import Network
from hogwear.system.arrays import FloatArray
from hogwear.system.paths import Paths

LABELS = np.arange(20) % 5


@pytest.fixture(scope="module", params=["efficientnet_lite0", "tinyvgg"])
def net(request: pytest.FixtureRequest) -> Network:
    net = model.build(request.param, 5, SIZE).requires_grad_(False)
    net.load_pretrained()
    torch.nn.init.normal_(net.head.weight)
    return net


@pytest.fixture(scope="module")
def pixels(photo_files: list[Path]) -> Pixels:
    return pixels_of(decode_some(photo_files, 20, SIZE), LABELS)


def find(net: Network, pixels: Pixels, logits: FloatArray) -> list[Mistake]:
    hashes = np.zeros((20, 16), np.uint8)
    paths = Paths([f"{row}.jpg" for row in range(20)])
    split = Split("test", paths, LABELS, Path(), hashes, np.zeros_like(hashes), {})
    return find_worst_mistakes(net, Evaluation(CLASSES, logits, LABELS, 2.0, 0.5), pixels, split)


def test_the_mistake_with_the_least_probable_true_class_comes_first(
    net: Network, pixels: Pixels
) -> None:
    logits = np.full((20, 5), -9.0)
    logits[np.arange(20), LABELS] = 0.0
    for row, size in ((3, 2.0), (11, 8.0), (7, 4.0)):
        logits[row, (LABELS[row] + 1) % 5] = size
    mistakes = find(net, pixels, logits)
    assert [mistake.file.name for mistake in mistakes] == ["11.jpg", "7.jpg", "3.jpg"]
    for mistake, row, size in zip(mistakes, (11, 7, 3), (8.0, 4.0, 2.0), strict=True):
        assert mistake.true_class == CLASSES[LABELS[row]]
        assert mistake.predicted == CLASSES[(LABELS[row] + 1) % 5]
        assert mistake.probability == pytest.approx(1 / (1 + np.exp(-size / 2)), abs=0.01)
        assert mistake.maybe_mislabelled == (mistake.probability >= 0.9)
        assert np.array_equal(mistake.image, pixels.images[np.array([row])][0])
        image, classes = torch.from_numpy(mistake.image)[None], torch.tensor([(row + 1) % 5])
        [expected] = net.class_activation_map(image, classes).numpy()
        assert np.allclose(mistake.activation_map, expected, atol=1e-3)
        assert np.abs(expected).max() > 0.1
    assert mistakes[0].to_json().keys() == {
        "file",
        "true_class",
        "predicted",
        "probability",
        "maybe_mislabelled",
    }


def test_no_more_than_the_worst_are_kept_and_none_where_all_is_correct(
    net: Network, pixels: Pixels
) -> None:
    correct = np.eye(5)[LABELS]
    assert find(net, pixels, correct) == []
    assert len(find(net, pixels, -correct)) == WORST
