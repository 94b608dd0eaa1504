"""Machines of a cluster that die, start late, are slow or are cut off: training still finishes."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import CLASSES, FASHION5, Start, at, saved
from machines import Cluster

from bench import network
from hogwear.cluster import membership
from hogwear.data.sample import generate

pytestmark = pytest.mark.long  # in make test, tests/test_documentation.py leaves a machine alone
FLAGS = ("--image-size", 64, "--workers", 1, "--sync-every", 256)
EPOCHS = 4


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return (
        FASHION5
        if FASHION5.is_dir()
        else generate.ensure_sample(tmp_path_factory.mktemp("sample") / "data")
    )


@pytest.fixture(scope="module")
def alone(photos: Path, start: Start, tmp_path_factory: pytest.TempPathFactory) -> float:
    """The validation accuracy of a single machine."""
    folder = tmp_path_factory.mktemp("alone")
    start(
        "train.py", *FLAGS, "--epochs", EPOCHS, *at(photos, folder / "model", folder / "cache")
    ).ok(120)
    return float(saved(folder / "model")["best"]["val_acc"])


@pytest.fixture
def cluster(photos: Path, tmp_path: Path) -> Iterator[Cluster]:
    machines = Cluster(tmp_path, photos, *FLAGS, "--epochs", EPOCHS)
    yield machines
    machines.end()


def require_a_good_end(cluster: Cluster, alone: float, epochs: int = EPOCHS) -> None:
    state = cluster.result()
    assert state["finished"] and state["history"][-1]["epoch"] == epochs, cluster.output()
    assert state["best"]["val_acc"] >= alone - 0.01
    cluster.require_nothing_left()


def resumed_at(cluster: Cluster) -> list[int]:
    return [
        int(images) for images in re.findall(r"Resuming .* after (\d+) images", cluster.output())
    ]


@pytest.mark.parametrize("victim", ["rank 0", "another"])
def test_a_machine_that_is_killed_is_left_behind(
    cluster: Cluster, alone: float, victim: str
) -> None:
    for number in range(2):
        cluster.start(number)
    cluster.wait_for(r"Cluster: 2 machines(?s:.*)\nepoch ")
    killed = cluster.first() if victim == "rank 0" else 1 - cluster.first()
    cluster.kill(killed)
    cluster.wait_for(r"lost contact with another machine", 60)
    assert membership.TIMEOUT > 60, (
        "a connection that breaks is noticed at once, and not when a machine that is cut off is given up"
    )
    assert cluster.codes()[1 - killed] == 0, cluster.output()
    assert max(resumed_at(cluster)) > 0, "not from the beginning, whichever machine is left"
    require_a_good_end(cluster, alone)


def test_a_machine_that_starts_late_joins(cluster: Cluster, alone: float) -> None:
    more = 3 * EPOCHS  # it takes seconds to join
    cluster.start(0, "--epochs", more)
    cluster.wait_for("\nepoch ")
    cluster.start(1, "--epochs", more)
    cluster.wait_for("Cluster: 2 machines; this is rank 1")
    assert set(cluster.codes().values()) == {0}, cluster.output()
    assert resumed_at(cluster) and cluster.result()["machines"] == 2
    require_a_good_end(cluster, alone, more)


def test_a_slow_machine_is_waited_for(cluster: Cluster, alone: float) -> None:
    busy = subprocess.Popen(
        ["taskset", "--cpu-list", "0", sys.executable, "-c", "while True: pass"]
    )
    try:
        for number in range(2):
            os.sched_setaffinity(
                cluster.start(number, nnodes="2").pid, {number % (os.cpu_count() or 1)}
            )
        assert set(cluster.codes().values()) == {0}, cluster.output()
    finally:
        busy.kill()
    require_a_good_end(cluster, alone)
    assert "lost contact with another machine" not in cluster.output()


def test_machines_with_other_flags_are_refused(cluster: Cluster) -> None:
    cluster.start(0, nnodes="2", restarts=0)
    cluster.start(1, "--lr", 0.01, nnodes="2", restarts=0)
    assert 0 not in cluster.codes().values()
    assert (
        "--lr: 0.01 on rank" in cluster.output() or "--lr: not set on rank" in cluster.output()
    ), cluster.output()


def test_machines_with_other_photos_are_refused(cluster: Cluster, data: Path) -> None:
    cluster.start(0, nnodes="2", restarts=0)
    cluster.start(1, "--data-dir", data, nnodes="2", restarts=0)
    assert 0 not in cluster.codes().values()
    assert re.search(r"train.py: \S+: rank 1 has other photos", cluster.output()), cluster.output()


def test_machines_go_on_with_another_class_from_the_network_of_one_of_them(
    photos: Path, start: Start, tmp_path: Path
) -> None:
    four = tmp_path / "four"
    for split in ("train", "val"):
        for name in set(CLASSES) - {"footwear"}:
            shutil.copytree(photos / split / name, four / split / name)
    folders = at(four, tmp_path / "model-1", tmp_path / "cache-1")
    start("train.py", *FLAGS, "--epochs", 1, *folders).ok(120)
    cluster = Cluster(tmp_path, photos, *FLAGS, "--epochs", 1)
    try:
        for number in range(2):
            cluster.start(number, nnodes="2")
        assert set(cluster.codes().values()) == {0}, cluster.output()
        assert "The classes have changed since the last run: added footwear." in cluster.output()
        state = cluster.result()
        stages = [row["stage"] for row in state["history"]]
        trained = ["hogwild", "hogwild"]
        assert stages == ["closed form", *trained, "classes changed", *trained]
        assert tuple(state["class_names"]) == CLASSES and state["machines"] == 2
        assert state["best"]["val_acc"] > 0.9
    finally:
        cluster.end()


@pytest.mark.skipif(
    os.getuid() != 0 or not Path("/dev/net/tun").exists(),
    reason="network namespaces need root and /dev/net/tun",
)
def test_a_network_cut_for_half_a_minute_only_takes_that_long(
    photos: Path, tmp_path: Path, alone: float
) -> None:
    with network.machines(2) as net:
        cluster = Cluster(tmp_path, photos, *FLAGS, "--epochs", EPOCHS, net=net)
        try:
            for number in range(2):
                cluster.start(number)
            cluster.wait_for(r"Cluster: 2 machines(?s:.*)\nepoch ")
            os.kill(net.link.pid, signal.SIGSTOP)
            time.sleep(30)
            os.kill(net.link.pid, signal.SIGCONT)
            assert set(cluster.codes().values()) == {0}, cluster.output()
            require_a_good_end(cluster, alone)
        finally:
            cluster.end()
