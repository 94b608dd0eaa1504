"""How the parameters of several machines become one average."""

import time

import pytest
import torch
from machines import run_machines

from hogwear.cluster.collectives import PeerProcess
from hogwear.cluster.peers import Peers
from hogwear.system.workers import FORK


def set_value(peers: Peers, value: float) -> None:
    with torch.no_grad():
        peers.parameters[0].fill_(value)


def read_value(peers: Peers) -> float:
    weight = peers.parameters[0]
    assert (weight == weight[0, 0]).all()
    return weight[0, 0].item()


def test_all_machines_start_from_rank_0_and_agree_on_the_mean() -> None:
    def train(peers: Peers) -> tuple[float, float]:
        peers.broadcast_parameters()
        start = read_value(peers)
        set_value(peers, 1.0 + peers.rank)
        peers.sync_parameters()
        return start, read_value(peers)

    assert run_machines(train, train, train) == [(0.0, 2.0)] * 3


def test_what_is_learned_while_an_average_is_under_way_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    snapshot, taken = PeerProcess.snapshot, [FORK.Event(), FORK.Event()]

    def take_slowly(process: PeerProcess) -> torch.Tensor:
        before = snapshot(process)
        taken[process.rank.number].set()
        time.sleep(0.5)
        return before

    def train(peers: Peers) -> float:
        peers.broadcast_parameters()
        taken[peers.rank].clear()
        set_value(peers, 2.0 * peers.rank)
        peers.sync_if_due(0.25)
        assert taken[peers.rank].wait(20)
        set_value(peers, read_value(peers) + 10)
        while peers.sync_under_way:
            peers.sync_if_due(0.25)
        return read_value(peers)

    monkeypatch.setattr(PeerProcess, "snapshot", take_slowly)
    assert run_machines(train, train) == [11.0, 11.0]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_machine_whose_parameters_are_not_finite_takes_the_mean_of_the_others(
    broken: float,
) -> None:
    def train(peers: Peers) -> float:
        peers.broadcast_parameters()
        set_value(peers, [4.0, broken, 8.0][peers.rank])
        peers.sync_parameters()
        return read_value(peers)

    assert run_machines(train, train, train) == [6.0] * 3
