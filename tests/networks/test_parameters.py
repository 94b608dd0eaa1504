"""Parameters in shared memory: the same values, one tensor, seen by other processes."""

import pytest
import torch
from torch import nn

import model
from hogwear.networks.parameters import (
    create_momentum_buffers,
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


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_saved_momentum_is_restored_for_as_many_workers_as_there_are(workers: int) -> None:
    net = small_network()
    saved = torch.arange(20.0).reshape(2, 10)
    buffers = create_momentum_buffers(net, workers, saved)
    assert buffers.shape == (workers, 10) and buffers.is_shared()
    both = min(workers, 2)
    assert torch.equal(buffers[:both], saved[:both]) and not buffers[both:].any()


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
    with pytest.raises(BadInput, match=str(3 * 4 * 15815)):
        create_momentum_buffers(net, 3, None)
