"""The connection between machines: processes of this one, with a real gloo between them."""

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Elsewhere
from torch import nn

from hogwear.cluster import membership, peers
from hogwear.cluster.peers import PeerLost, Peers, Rank
from hogwear.system.workers import FORK


def together(*functions: Callable[[Peers], Any]) -> list[Any]:
    """What each returns, called with the connection of a machine to the others; of an exception, its text."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def machine(rank: int) -> Any:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
        if rank == 0:
            membership.host_store()
        net = nn.Linear(2, 1, bias=False)
        nn.init.constant_(net.weight, float(rank))
        net.share_memory()
        try:
            with (others := Peers(Rank(rank, len(functions)), "test", net, syncs_per_epoch=4)):
                answer = functions[rank](others)
                others.barrier()
                return answer
        except PeerLost as error:
            return str(error)

    started = [Elsewhere(machine, rank) for rank in range(len(functions))]
    return [machine.answer() for machine in started]


def set_to(others: Peers, value: float) -> None:
    with torch.no_grad():
        others.parameters[0].fill_(value)


def value(others: Peers) -> float:
    assert (others.parameters[0] == others.parameters[0][0, 0]).all()
    return others.parameters[0][0, 0].item()


def test_all_begin_with_rank_0s_parameters_and_settle_on_the_mean() -> None:
    def machine(others: Peers) -> tuple[float, float]:
        others.broadcast_parameters()
        begun = value(others)
        set_to(others, 1.0 + others.rank)
        others.sync_parameters()
        return begun, value(others)

    assert together(machine, machine, machine) == [(0.0, 2.0)] * 3


def test_what_is_learnt_while_an_average_is_under_way_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    snapshot, taken = Peers.snapshot, [FORK.Event(), FORK.Event()]

    def slowly(others: Peers) -> torch.Tensor:
        before = snapshot(others)
        taken[others.rank].set()
        time.sleep(0.5)
        return before

    def machine(others: Peers) -> float:
        others.broadcast_parameters()
        taken[others.rank].clear()
        set_to(others, 2.0 * others.rank)
        others.sync_if_due(0.25)
        assert taken[others.rank].wait(20)
        set_to(others, value(others) + 10)
        while others.averaging:
            others.sync_if_due(0.25)
        return value(others)

    monkeypatch.setattr(Peers, "snapshot", slowly)
    assert together(machine, machine) == [11.0, 11.0]


def test_a_machine_whose_parameters_are_no_numbers_takes_the_others() -> None:
    def machine(others: Peers) -> float:
        others.broadcast_parameters()
        set_to(others, [4.0, float("nan"), 8.0][others.rank])
        others.sync_parameters()
        return value(others)

    assert together(machine, machine, machine) == [6.0] * 3


def test_arrays_and_messages_of_all_are_gathered_in_the_order_of_their_ranks() -> None:
    def machine(others: Peers) -> tuple[Any, ...]:
        rank = others.rank
        rows, names = others.all_gather(
            [np.full((rank + 1, 2), rank, np.float32), np.array([10 * rank])]
        )
        [total] = others.all_reduce([np.array([1.0, rank])])
        return (
            rows[:, 0].tolist(),
            names.tolist(),
            total.tolist(),
            others.all_gather_bytes(b"x" * rank),
            others.broadcast_bytes(1, b"of 1" if rank == 1 else b""),
        )

    assert (
        together(machine, machine, machine)
        == [([0, 1, 1, 2, 2, 2], [0, 10, 20], [3.0, 3.0], [b"", b"x", b"xx"], b"of 1")] * 3
    )


def test_a_machine_that_is_late_is_waited_for_as_long_as_it_does_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "STALLED", 1.5)

    def late(others: Peers) -> None:
        for _ in range(25):
            time.sleep(0.1)
            others.heartbeat()

    def stuck(others: Peers) -> None:
        others.process.join(60)  # it gives up, and so do the others

    def early(others: Peers) -> None:
        pass

    assert together(early, late) == [None, None]
    assert all("no machine has got anything done" in answer for answer in together(early, stuck))


def test_a_machine_that_dies_is_noticed_at_once() -> None:
    noticed = FORK.Event()

    def die(others: Peers) -> None:
        others.barrier()
        others.process.kill()
        assert noticed.wait(60) and peers.TIMEOUT > 60, (
            "long before one that is cut off is given up"
        )

    def live(others: Peers) -> None:
        others.barrier()
        try:
            others.barrier()
        finally:
            noticed.set()

    ours, theirs = together(live, die)
    assert "reset" in ours.lower() or "closed" in ours.lower(), ours
    assert "has died" in theirs
