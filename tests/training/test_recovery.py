"""Snapshots, and the signs of divergence."""

import math

import pytest
import torch
from torch import nn

from hogwear.networks.parameters import OptimizerState
from hogwear.training.history import RunningMetrics
from hogwear.training.recovery import DivergenceDetector, Snapshot, TrainingDiverged


@pytest.fixture
def net() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


@pytest.fixture
def optimizer(net: nn.Module) -> OptimizerState:
    """Of two workers."""
    optimizer = OptimizerState.create(net, 2)
    optimizer.momentum.fill_(1)
    return optimizer


def take(net: nn.Module, optimizer: OptimizerState) -> Snapshot:
    return Snapshot.take(net, optimizer, 300, 2.5, RunningMetrics(images=60))


def test_a_snapshot_does_not_change_with_the_network(
    net: nn.Linear, optimizer: OptimizerState
) -> None:
    metrics, average = RunningMetrics(images=60), optimizer.average.clone()
    snapshot = Snapshot.take(net, optimizer, 300, 2.5, metrics)
    before = net.weight.detach().clone()
    with torch.no_grad():
        net.weight += 1
    optimizer.momentum.add_(1)
    optimizer.average.add_(1)
    metrics.images += 1
    assert torch.equal(snapshot.weights["weight"], before)
    assert (snapshot.optimizer.momentum == 1).all()
    assert torch.equal(snapshot.optimizer.average, average)
    assert (snapshot.metrics.images, snapshot.epochs_done) == (60, 2.5)


def test_restoring_writes_into_the_same_memory(net: nn.Linear, optimizer: OptimizerState) -> None:
    """Workers share it, so nothing may be replaced."""
    tensors = net.weight, optimizer.momentum, optimizer.average
    snapshot, memory = take(net, optimizer), [tensor.data_ptr() for tensor in tensors]
    before = [tensor.detach().clone() for tensor in tensors]
    with torch.no_grad():
        for tensor in tensors:
            tensor.fill_(math.nan)
    snapshot.restore(net, optimizer)
    for tensor, value in zip(tensors, before, strict=True):
        assert torch.equal(tensor, value)
    assert [tensor.data_ptr() for tensor in tensors] == memory


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["momentum", "average", "weights"])
def test_one_number_that_is_not_finite_is_noticed(
    where: str, net: nn.Linear, optimizer: OptimizerState, broken: float
) -> None:
    assert take(net, optimizer).is_finite
    tensors = {"weights": net.bias.detach(), **vars(optimizer)}
    tensors[where].view(-1)[-1] = broken
    assert not take(net, optimizer).is_finite


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
