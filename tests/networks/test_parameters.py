"""Parameters in shared memory: the same values, one tensor, seen by other processes."""

from contextlib import suppress

import pytest
import torch
from torch import nn

import model
from hogwear.networks.parameters import (
    OptimizerState,
    share_parameters,
    trained_parameters,
    unflatten_like,
)
from hogwear.system import machine
from hogwear.system.errors import BadInput
from hogwear.system.workers import Workers


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    return net


def test_shared_parameters_keep_their_values_and_are_views_of_one_tensor() -> None:
    net, before = small_network(), small_network()
    share_parameters(net)
    for p, old in zip(net.parameters(), before.parameters(), strict=True):
        assert torch.equal(p, old) and p.shape == old.shape and p.is_shared()
    storages = {p.untyped_storage().data_ptr() for p in net.parameters()}
    assert len(storages) == 1


def test_a_change_by_a_worker_is_seen_by_the_parent() -> None:
    net = small_network()
    share_parameters(net)

    def change(item: int) -> None:
        with torch.no_grad():
            net.get_parameter("2.bias").fill_(item)

    with Workers(1, lambda rank: {"change": change}) as workers:
        list(workers.run("change", [7]))
    assert net.get_parameter("2.bias").tolist() == [7, 7]


def test_only_parameters_that_are_not_frozen_are_trained() -> None:
    net = small_network()
    names = {id(p): name for name, p in net.named_parameters()}
    assert [names[id(p)] for p in trained_parameters(net)] == ["2.weight", "2.bias"]


def test_training_starts_without_momentum_and_with_the_weights_as_their_average() -> None:
    net = small_network()
    state = OptimizerState.create(net, 3)
    assert state.momentum.shape == (3, 10) and not state.momentum.any()
    weights = torch.cat([p.detach().flatten() for p in trained_parameters(net)])
    assert torch.equal(state.average, weights)
    assert state.momentum.is_shared() and state.average.is_shared() and state.is_finite
    with torch.no_grad():
        net.get_parameter("2.bias").fill_(7)
    assert torch.equal(state.average, weights), "a copy"


def test_each_worker_has_a_momentum_of_its_own_and_all_have_one_average() -> None:
    state = OptimizerState.create(small_network(), 2)

    def change(rank: int) -> None:
        own = state.for_worker(rank)
        assert own.momentum.shape == (1, 10)
        own.momentum.fill_(rank + 1)
        own.average[rank] = 9

    with Workers(1, lambda rank: {"change": change}) as workers:
        list(workers.run("change", [0, 1]))
    assert state.momentum[:, 0].tolist() == state.momentum[:, 9].tolist() == [1, 2]
    assert state.average[:2].tolist() == [9, 9] and 9 not in state.average[2:]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_saved_state_is_restored_for_as_many_workers_as_there_are(workers: int) -> None:
    saved = OptimizerState(torch.arange(20.0).reshape(2, 10), torch.arange(10.0))
    state = OptimizerState.create(small_network(), workers)
    momentum, average = state.momentum, state.average
    momentum.fill_(5)
    state.copy_(saved.clone())
    both = min(workers, 2)
    assert torch.equal(momentum[:both], saved.momentum[:both]) and not momentum[both:].any()
    assert torch.equal(average, saved.average), "in place, where the workers see it"


def test_a_clone_keeps_its_values() -> None:
    state = OptimizerState.create(small_network(), 1)
    clone = state.clone()
    state.momentum.fill_(float("nan"))
    assert clone.is_finite and not state.is_finite
    state.momentum.zero_()
    state.average[3] = float("inf")
    assert clone.is_finite and not state.is_finite


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_the_averaged_weights_are_there_for_a_while_whatever_is_raised(
    error: type[BaseException] | None,
) -> None:
    net = small_network()
    share_parameters(net)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    state = OptimizerState.create(net, 1)
    state.average.copy_(torch.arange(10.0))
    with suppress(KeyboardInterrupt), state.averaged(net):
        assert net.get_parameter("2.weight").flatten().tolist() == list(range(8))
        assert net.get_parameter("2.bias").tolist() == [8, 9]
        assert torch.equal(net.get_parameter("0.weight"), before["0.weight"]), "it is frozen"
        if error:
            raise error
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name]) and p.is_shared(), name
    assert state.average.tolist() == list(range(10))


def test_a_flat_tensor_is_split_into_views_with_the_parameters_shapes() -> None:
    parameters = list(small_network().parameters())
    flat = torch.arange(26.0)
    parts = unflatten_like(flat, parameters)
    assert [part.shape for part in parts] == [p.shape for p in parameters]
    assert torch.equal(torch.cat([part.flatten() for part in parts]), flat)
    parts[1].zero_()
    assert flat[12:16].tolist() == [0, 0, 0, 0]


def test_too_little_shared_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(needed: int) -> None:
        raise BadInput(str(needed))

    monkeypatch.setattr(machine, "require_shared_memory", refuse)
    net = model.build("tinyvgg", 5, 64)
    with pytest.raises(BadInput, match=str(4 * 15815)):
        share_parameters(net)
    with pytest.raises(BadInput, match=str((3 + 1) * 4 * 15815)):
        OptimizerState.create(net, 3)
