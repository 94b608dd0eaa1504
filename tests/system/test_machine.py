"""What the container may use: cgroup trees as the kernel writes them, real signals, the real /dev/shm."""

import os
import signal
from pathlib import Path

import pytest

from hogwear.system import machine, signals
from hogwear.system.errors import BadInput

CPUS = len(os.sched_getaffinity(0))


def tree(folder: Path, files: dict[str, str], membership: str) -> tuple[Path, Path]:
    """A cgroup tree of these files, and a /proc/self/cgroup."""
    for name, text in files.items():
        (folder / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup" / name).write_text(text + "\n")
    (folder / "membership").write_text(membership + "\n")
    return folder / "cgroup", folder / "membership"


def cpus_under(folder: Path, files: dict[str, str], membership: str) -> int:
    """machine.cpus() there, on a machine with CPUs to spare."""
    return machine.cpus(*tree(folder, files, membership))


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("quota", "cpus"), [("max", 8), ("400000", 4), ("150000", 1), ("50000", 1), ("1600000", 8)]
)
def test_a_version_2_quota_limits_the_cpus_and_is_rounded_down(
    tmp_path: Path, quota: str, cpus: int
) -> None:
    assert cpus_under(tmp_path, {"cpu.max": f"{quota} 100000"}, "0::/") == cpus


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(("quota", "cpus"), [("-1", 8), ("300000", 3), ("150000", 1), ("50000", 1)])
def test_a_version_1_quota_limits_the_cpus_and_is_rounded_down(
    tmp_path: Path, quota: str, cpus: int
) -> None:
    files = {
        "cpu,cpuacct/docker/1/cpu.cfs_quota_us": quota,
        "cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000",
    }
    assert cpus_under(tmp_path, files, "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n0::/") == cpus


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("outer", "inner", "cpus"),
    [("200000", "500000", 2), ("500000", "300000", 3), ("max", "600000", 6)],
)
def test_the_smallest_of_nested_quotas_counts(
    tmp_path: Path, outer: str, inner: str, cpus: int
) -> None:
    files = {"pod/cpu.max": f"{outer} 100000", "pod/container/cpu.max": f"{inner} 100000"}
    assert cpus_under(tmp_path, files, "0::/pod/container") == cpus


@pytest.mark.usefixtures("eight_cpus")
def test_the_quota_of_another_cgroup_does_not_count(tmp_path: Path) -> None:
    files = {"ours/cpu.max": "max 100000", "theirs/cpu.max": "100000 100000"}
    assert cpus_under(tmp_path, files, "0::/ours") == 8


@pytest.mark.usefixtures("eight_cpus")
def test_a_cgroup_outside_the_mount_means_the_mount(tmp_path: Path) -> None:
    assert cpus_under(tmp_path, {"cpu.max": "300000 100000"}, "0::/../../elsewhere") == 3


def test_without_cgroups_affinity_decides(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert machine.cpus(tmp_path, tmp_path / "none") == 1
    finally:
        os.sched_setaffinity(0, before)
    assert machine.cpus(tmp_path, tmp_path / "none") == CPUS


@pytest.mark.parametrize(
    ("files", "membership"),
    [
        ({"memory.max": "max", "box/memory.max": "419430400"}, "0::/box"),
        ({"box/memory.max": "max", "memory.max": "419430400"}, "0::/box"),
        (
            {
                "memory/docker/1/memory.limit_in_bytes": "419430400",
                "memory/memory.limit_in_bytes": "9223372036854771712",
            },
            "4:memory:/docker/1\n0::/",
        ),
    ],
    ids=["version 2", "the outer one", "version 1"],
)
def test_a_memory_limit_is_found_and_refused_if_it_is_too_low(
    files: dict[str, str], membership: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = tree(tmp_path, files, membership)
    assert machine.memory_limit(*folders) == 400 << 20
    monkeypatch.setattr(machine, "memory_limit", lambda: 400 << 20)
    with pytest.raises(
        BadInput,
        match=r"400 MiB of memory, training with 2 workers needs more than \d+: .*HOGWEAR_MEMORY",
    ):
        machine.require_memory(2)


def test_unlimited_memory_is_accepted(tmp_path: Path) -> None:
    assert machine.memory_limit(*tree(tmp_path, {"memory.max": "max"}, "0::/")) == float("inf")
    machine.require_memory(2)


def test_too_little_shared_memory_is_refused_with_the_fix() -> None:
    filesystem = os.statvfs("/dev/shm")
    machine.require_shared_memory(1)
    with pytest.raises(
        BadInput, match=r"/dev/shm has \d+ MiB free, training needs \d+ MiB: .*--shm-size"
    ):
        machine.require_shared_memory(filesystem.f_blocks * filesystem.f_frsize + 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_remembers_the_signal_and_the_process_goes_on(number: signal.Signals) -> None:
    with signals.Stop() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and stop.signal == number


def test_stop_restores_the_previous_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), signals.Stop():
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) != before
        raise ZeroDivisionError
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
