"""Predictions: every photo in its order, the same bits for any number of processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import FAST, SIZE, decode_some, pretrained_network

from hogwear.evaluation.predict import predict_logits
from hogwear.networks.network import Network
from hogwear.system.arrays import UInt8Array
from hogwear.system.errors import BadInput


@pytest.fixture(scope="module")
def net() -> Network:
    return pretrained_network(1000, FAST)


@pytest.fixture(scope="module")
def images(photo_files: list[Path]) -> UInt8Array:
    return decode_some(photo_files, 33, SIZE)


def test_predictions_are_the_same_bits_for_any_number_of_processes(
    net: Network, images: UInt8Array
) -> None:
    one, two = (predict_logits(net, images, np.arange(33), processes) for processes in (1, 2))
    assert one.shape == (33, 1000) and one.dtype == np.float32
    assert np.array_equal(one, two)


def test_every_photo_is_predicted_in_its_order(net: Network, images: UInt8Array) -> None:
    whole = predict_logits(net, images, np.arange(33), 2)
    backwards = predict_logits(net, images, np.arange(33)[::-1], 2)
    few = predict_logits(net, images, np.array([5, 32, 7]), 2)
    for i in range(33):
        others = np.abs(whole - backwards[32 - i]).mean(1)
        assert others.argmin() == i, "a photo's logits are nearest to its own"
    assert np.allclose(few, whole[[5, 32, 7]], atol=0.2)


def test_infinite_logits_are_refused(images: UInt8Array) -> None:
    net = pretrained_network(5, FAST)
    net.head.weight.fill_(torch.inf)
    with pytest.raises(BadInput, match="NaN or infinite: its weights are unusable"):
        predict_logits(net, images, np.arange(2), 1)
