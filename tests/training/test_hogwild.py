"""Hogwild: one worker equals plain SGD, two share the work, and a dead one costs a batch."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo  # imported by SGD at its first use: better once here than in every worker
import torch.nn.functional as F
from helpers import FAST, SIZE, ForkedCall, descendants, flat, log_to

import model
from hogwear.data import dataset
from hogwear.data.cache import PhotoCache
from hogwear.data.pixels import Pixels
from hogwear.networks import parameters
from hogwear.networks.network import Network
from hogwear.networks.parameters import OptimizerState
from hogwear.system.workers import Workers
from hogwear.training import hogwild
from hogwear.training.batches import Batches
from hogwear.training.hogwild import StepResult, create_train_step
from hogwear.training.schedule import LiveSettings, Schedule

ARCHITECTURES = ("efficientnet_lite0", "tinyvgg")
LOG_PRIOR = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.fixture(scope="module")
def photos(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Pixels:
    cache = tmp_path_factory.mktemp("cache")
    return PhotoCache(cache, processes=2).open(dataset.find_photos(data, cache).train, SIZE)


@pytest.fixture
def batches(photos: Pixels) -> Batches:
    """Of 120 photos; the last batch of each epoch has 8."""
    return Batches(photos, SIZE, SIZE, Schedule(120, 16, 0.01, 0, 0, LiveSettings.create()))


def create_network(arch: str) -> Network:
    torch.manual_seed(0)
    net = model.build(arch, 5, SIZE, FAST)
    net.load_pretrained()
    return net


def flat_parameters(net: Network) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@dataclass
class Trained:
    results: dict[int, StepResult]
    weights: torch.Tensor
    optimizer: OptimizerState


def train_in_workers(
    net: Network, batches: Batches, count: int, *parts: range, saved: OptimizerState | None = None
) -> Trained:
    """Train on the steps of `parts`, one after the other, from a `saved` state."""
    parameters.share_parameters(net)
    optimizer = OptimizerState.create(net, count)
    if saved:
        optimizer.copy_(saved)

    def prepare(rank: int) -> dict[str, Callable[[int], StepResult]]:
        own = optimizer.for_worker(rank)
        return {"train": create_train_step(net, own, batches, 0.9, LOG_PRIOR)}

    with Workers(count, prepare) as workers:
        results = [result for steps in parts for result in workers.run("train", steps)]
    assert len({step for step, _ in results}) == len(results)
    return Trained(dict(results), flat(net.state_dict()), optimizer.clone())


def train_with_plain_sgd(net: Network, batches: Batches, steps: range) -> tuple[Any, list[float]]:
    """The loop that one worker must equal: no processes, no shared memory, PyTorch's own SGD."""
    trained = [p for p in net.parameters() if p.requires_grad]
    decay = hogwild.WEIGHT_DECAY
    optimizer = torch.optim.SGD(
        trained, lr=1, momentum=0.9, nesterov=True, weight_decay=decay, fused=True
    )
    losses = []
    for step in steps:
        pixels, labels = batches.batch(step)
        optimizer.param_groups[0]["lr"] = batches.schedule.lr_at(step)
        loss = F.cross_entropy(net.training_logits(pixels) + LOG_PRIOR, labels)
        optimizer.zero_grad()
        loss.backward()
        if net.pretrained:
            hogwild.adaptive_clip_grad(trained)
        else:
            torch.nn.utils.clip_grad_norm_(trained, hogwild.MAX_GRAD_NORM)
        optimizer.step()
        losses.append(loss.item())
    return flat(net.state_dict()).numpy(), losses


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_one_worker_equals_plain_sgd(arch: str, batches: Batches) -> None:
    net, steps = create_network(arch), range(4, 12)  # beyond the end of an epoch
    before = flat(net.state_dict())
    expected, losses = ForkedCall(train_with_plain_sgd, net, batches, steps).result()
    trained = train_in_workers(net, batches, 1, steps)
    assert [(step, result.images, result.loss) for step, result in trained.results.items()] == [
        (step, 8 if step == 7 else 16, loss) for step, loss in zip(steps, losses, strict=True)
    ]
    assert np.array_equal(trained.weights, expected)
    assert (trained.weights - before).abs().max() > 1e-4


@pytest.mark.parametrize("until", [3, 9])  # before and after the first sample of the average
def test_saved_momentum_and_average_are_continued(until: int, batches: Batches) -> None:
    whole = train_in_workers(create_network("tinyvgg"), batches, 1, range(17))
    net = create_network("tinyvgg")
    half = train_in_workers(net, batches, 1, range(until))
    rest = train_in_workers(net, batches, 1, range(until, 17), saved=half.optimizer)
    assert torch.equal(rest.weights, whole.weights) and not torch.equal(half.weights, whole.weights)
    assert torch.equal(rest.optimizer.average, whole.optimizer.average)


@pytest.mark.parametrize("workers", [1, 3])
def test_momentum_of_another_number_of_workers_is_used_as_far_as_it_goes(workers: int) -> None:
    net = create_network("tinyvgg")
    size = sum(p.numel() for p in net.parameters())
    saved = OptimizerState(torch.tensor([[1.0], [2.0]]).repeat(1, size), torch.full((size,), 7.0))
    optimizer = OptimizerState.create(net, workers)
    optimizer.copy_(saved)
    assert optimizer.momentum.is_shared() and optimizer.average.is_shared()
    assert optimizer.momentum[:, 0].tolist() == [1, 2, 0][:workers]
    assert (optimizer.average == 7.0).all()


def test_all_workers_move_one_average_to_the_weights_of_every_eighth_step(batches: Batches) -> None:
    net = create_network("tinyvgg")
    start = flat_parameters(net)
    none = train_in_workers(net, batches, 2, range(7))
    assert torch.equal(none.optimizer.average, start)
    one = train_in_workers(net, batches, 1, range(7, 8), saved=none.optimizer)
    weights = flat_parameters(net)
    assert torch.allclose(one.optimizer.average, start.lerp(weights, 4 / 5), atol=1e-7)
    assert not torch.allclose(weights, start, atol=1e-5)


def test_the_network_has_the_averaged_weights_for_a_while() -> None:
    net = create_network("efficientnet_lite0")
    parameters.share_parameters(net)
    optimizer, before = OptimizerState.create(net, 1), flat_parameters(net)
    optimizer.average.add_(1)
    is_trained = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in net.parameters()])
    with pytest.raises(RuntimeError), optimizer.averaged(net):
        assert torch.equal(flat_parameters(net)[is_trained], optimizer.average)
        assert torch.equal(flat_parameters(net)[~is_trained], before[~is_trained])
        raise RuntimeError
    assert torch.equal(flat_parameters(net), before), "also where something is raised"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_sharing_keeps_the_weights_and_shares_every_parameter(arch: str) -> None:
    net = create_network(arch)
    before = flat(net.state_dict())
    parameters.share_parameters(net)
    assert all(p.is_shared() for p in net.parameters())
    assert torch.equal(flat(net.state_dict()), before)


def test_two_workers_train_on_every_photo_once_per_epoch_and_both_take_part(
    batches: Batches,
) -> None:
    net = create_network("tinyvgg")
    before = flat(net.state_dict())
    trained = train_in_workers(net, batches, 2, range(8), range(8, 16))
    assert sorted(trained.results) == list(range(16))
    assert sum(result.images for result in trained.results.values()) == 2 * 120
    assert not torch.equal(trained.weights, before)
    assert (trained.optimizer.momentum != 0).any(dim=1).tolist() == [True, True]


def test_a_killed_worker_costs_one_batch(tmp_path: Path, batches: Batches) -> None:
    """It is replaced, all steps are done, and only the batch that it was working on is repeated."""
    net, log = create_network("tinyvgg"), tmp_path / "log"
    note = log_to(log)
    parameters.share_parameters(net)
    optimizer = OptimizerState.create(net, 2)

    def prepare(rank: int) -> dict[str, Callable[[int], Any]]:
        train_step = create_train_step(net, optimizer.for_worker(rank), batches, 0.9, LOG_PRIOR)

        def job(step: int) -> Any:
            note(str(step))
            return train_step(step)

        return {"train": job}

    with Workers(2, prepare) as workers:
        before = descendants(os.getpid())
        results = []
        for step, result in workers.run("train", range(16)):
            results.append((step, result.images))
            if len(results) == 5:
                os.kill(min(before), signal.SIGKILL)
        after = descendants(os.getpid())
    assert sorted(results) == [(step, 8 if step % 8 == 7 else 16) for step in range(16)]
    assert len(before) == len(after) == 2 and len(before & after) == 1
    begun = Counter(log.read_text().split())
    assert set(begun) == {str(step) for step in range(16)}
    assert sum(begun.values()) <= 16 + 1


def test_training_maps_no_photos_into_memory(batches: Batches) -> None:
    net = create_network("tinyvgg")
    parameters.share_parameters(net)
    optimizer = OptimizerState.create(net, 1)
    train_step = create_train_step(net, optimizer, batches, 0.9, LOG_PRIOR)
    maps = ForkedCall(lambda: train_step(0) and Path("/proc/self/maps").read_text()).result()
    assert "libtorch" in maps and "pixels.npy" not in maps


# --- the update rule


@pytest.mark.parametrize(
    ("counts", "is_adjusted"),
    [((30, 30, 20), False), ((99, 50, 10), False), ((100, 50, 10), True)],
)
def test_rare_classes_count_as_much_as_others_where_sizes_differ_strongly(
    counts: tuple[int, ...], is_adjusted: bool
) -> None:
    labels = np.repeat(np.arange(3), counts)
    logits = torch.zeros(len(labels), 3, requires_grad=True)
    F.cross_entropy(logits + hogwild.log_prior(labels, 3), torch.from_numpy(labels)).backward()
    assert logits.grad is not None
    # The pull on undecided logits: towards the large classes, or towards none.
    assert (logits.grad.sum(0).abs().max() < 1e-6) == is_adjusted


def test_a_gradient_is_clipped_to_a_share_of_the_weights_it_changes() -> None:
    large = torch.nn.Parameter(torch.full((4,), 3.0))
    small = torch.nn.Parameter(torch.full((4,), 3.0))
    large.grad, small.grad = torch.full((4,), -50.0), torch.full((4,), 0.001)
    hogwild.adaptive_clip_grad([large, small])
    shortened = torch.full((4,), -3.0 * hogwild.CLIP_FACTOR)
    assert torch.allclose(large.grad, shortened), "shorter, in the same direction"
    assert torch.equal(small.grad, torch.full((4,), 0.001)), "unchanged"


@pytest.mark.parametrize("pretrained", [True, False])
def test_only_pretrained_weights_are_clipped_by_their_own_norm(
    batches: Batches, pretrained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, note = create_network("tinyvgg"), log_to(tmp_path / "log")
    monkeypatch.setattr(net, "pretrained", pretrained)
    monkeypatch.setattr(hogwild, "adaptive_clip_grad", lambda parameters: note("own"))
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda parameters, max_norm: note(f"all {max_norm}")
    )
    train_in_workers(net, batches, 1, range(2))
    clipped = (tmp_path / "log").read_text().splitlines()
    assert clipped == ["own" if pretrained else "all 1.0"] * 2
