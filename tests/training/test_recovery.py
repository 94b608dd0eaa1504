"""Snapshots, and the signs of divergence."""

import math

import pytest
import torch
from torch import nn

from hogwear.training.history import RunningMetrics
from hogwear.training.recovery import DivergenceDetector, Snapshot, TrainingDiverged


@pytest.fixture
def net() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def take(net: nn.Module, momentum: torch.Tensor) -> Snapshot:
    return Snapshot.take(net, momentum, 300, 120, RunningMetrics(images=60))


def test_a_snapshot_does_not_change_with_the_network(net: nn.Linear) -> None:
    momentum, metrics = torch.ones(2, 15), RunningMetrics(images=60)
    snapshot = Snapshot.take(net, momentum, 300, 120, metrics)
    before = net.weight.detach().clone()
    with torch.no_grad():
        net.weight += 1
    momentum += 1
    metrics.images += 1
    assert torch.equal(snapshot.weights["weight"], before)
    assert snapshot.momentum is not None and (snapshot.momentum == 1).all()
    assert (snapshot.metrics.images, snapshot.epochs_done) == (60, 2.5)


def test_restoring_writes_into_the_same_memory(net: nn.Linear) -> None:
    """Workers share it, so nothing may be replaced."""
    momentum = torch.ones(2, 15)
    snapshot, memory = take(net, momentum), (net.weight.data_ptr(), momentum.data_ptr())
    before = net.weight.detach().clone()
    with torch.no_grad():
        net.weight.fill_(math.nan)
    momentum.fill_(math.inf)
    snapshot.restore(net, momentum)
    assert torch.equal(net.weight, before) and (momentum == 1).all()
    assert (net.weight.data_ptr(), momentum.data_ptr()) == memory


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_one_weight_or_momentum_that_is_not_finite_is_noticed(
    net: nn.Linear, broken: float
) -> None:
    momentum = torch.ones(2, 15)
    assert take(net, momentum).is_finite
    momentum[1, 14] = broken
    assert not take(net, momentum).is_finite
    momentum.fill_(0)
    with torch.no_grad():
        net.bias[2] = broken
    assert not take(net, momentum).is_finite


def test_a_loss_far_above_guessing_for_some_batches_is_divergence() -> None:
    detector = DivergenceDetector(5)
    for _ in range(100):
        detector.add(math.log(5))
    assert not detector.diverged
    detector.add(30.0)
    assert not detector.diverged, "one bad batch is none"
    for _ in range(5):
        detector.add(30.0)
    assert detector.diverged


def test_a_loss_that_is_nan_is_divergence() -> None:
    detector = DivergenceDetector(5)
    detector.add(math.nan)
    assert detector.diverged


def test_the_last_divergence_names_a_smaller_learning_rate() -> None:
    message = str(TrainingDiverged(loss=88.0, lr=0.005, images_seen=240))
    assert "training diverged 3 times (loss 88.0)" in message
    assert "--fresh --lr 0.0005; the checkpoint is from before, after 240 images" in message
