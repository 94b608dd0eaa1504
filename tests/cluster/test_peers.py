"""Calls between machines: here processes of this one, connected by a real gloo."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from machines import run_machines

from hogwear.cluster import collectives, membership
from hogwear.cluster.peers import SINGLE_MACHINE, Peers, SingleMachine
from hogwear.system.workers import FORK


def call_everything(cluster: SingleMachine) -> tuple[Any, ...]:
    rank = cluster.rank
    rows, tens = cluster.all_gather(
        [np.full((rank + 1, 2), rank, np.float32), np.array([10 * rank])]
    )
    [total] = cluster.all_reduce([np.array([1.0, rank])])
    return (
        rows[:, 0].tolist(),
        tens.tolist(),
        total.tolist(),
        cluster.all_gather_bytes(b"x" * rank),
        cluster.broadcast_bytes(cluster.machines - 1, b"from %d" % rank),
    )


def test_arrays_and_messages_arrive_everywhere_in_the_order_of_the_ranks() -> None:
    expected = ([0, 1, 1, 2, 2, 2], [0, 10, 20], [3.0, 3.0], [b"", b"x", b"xx"], b"from 2")
    assert run_machines(*[call_everything] * 3) == [expected] * 3


def test_a_single_machine_gets_what_it_sends() -> None:
    assert call_everything(SINGLE_MACHINE) == ([0], [0], [1.0, 0.0], [b""], b"from 0")


def test_every_photo_is_in_the_shard_of_exactly_one_machine() -> None:
    photos = np.arange(10)
    shards = run_machines(*[lambda peers: photos[peers.shard].tolist()] * 3)
    assert shards == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert photos[SINGLE_MACHINE.shard].tolist() == photos.tolist()


def test_syncs_are_spread_over_an_epoch_and_counted_from_the_progress() -> None:
    def train(peers: Peers) -> tuple[int, int]:
        peers.broadcast_parameters()
        for epochs in (0.1, 0.3, 0.5, 0.55, 0.8, 1.0):
            peers.sync_if_due(epochs)
        before_the_end = peers.syncs
        peers.sync_parameters()
        return before_the_end, peers.syncs

    assert run_machines(train, train) == [(4, 5)] * 2, "4 per epoch: after 0.25, 0.5, 0.75 and 1"


def test_the_summary_says_how_often_and_how_much() -> None:
    def train(peers: Peers) -> str:
        peers.broadcast_parameters()
        peers.sync_parameters()
        return peers.summary()

    for line in run_machines(train, train):
        assert line.startswith("Averaging: 1 times, 0.0 MB sent per machine in ")
    assert SINGLE_MACHINE.summary() == ""


def test_a_late_machine_is_waited_for_as_long_as_it_makes_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collectives, "STALLED", 1.5)

    def be_late(peers: Peers) -> None:
        for _ in range(25):
            time.sleep(0.1)
            peers.heartbeat()

    def be_stuck(peers: Peers) -> None:
        peers.process.join(60)  # it gives up, and so do the others

    def be_early(peers: Peers) -> None:
        pass

    assert run_machines(be_early, be_late) == [None, None]
    reasons = run_machines(be_early, be_stuck)
    assert all("no machine has made progress" in reason for reason in reasons)


def test_a_machine_that_dies_is_noticed_at_once() -> None:
    noticed = FORK.Event()

    def die(peers: Peers) -> None:
        peers.barrier()
        peers.process.kill()
        assert noticed.wait(60) and membership.TIMEOUT > 60, "long before the timeout"

    def live(peers: Peers) -> None:
        peers.barrier()
        try:
            peers.barrier()
        finally:
            noticed.set()

    of_the_living, of_the_dead = run_machines(live, die)
    assert "reset" in of_the_living.lower() or "closed" in of_the_living.lower(), of_the_living
    assert "lost contact with another machine" in of_the_living
    assert "the communication process has died" in of_the_dead


Command = Callable[[Peers], Any]


@pytest.mark.parametrize(
    "command",
    [Peers.barrier, Peers.broadcast_parameters, Peers.sync_parameters],
    ids=["barrier", "broadcast", "sync"],
)
def test_no_call_returns_before_all_machines_have_made_it(command: Command) -> None:
    called = FORK.Event()

    def first(peers: Peers) -> bool:
        peers.broadcast_parameters()
        command(peers)
        return called.is_set()

    def second(peers: Peers) -> bool:
        peers.broadcast_parameters()
        time.sleep(0.5)
        called.set()
        command(peers)
        return called.is_set()

    assert run_machines(first, second) == [True, True]
