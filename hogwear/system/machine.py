"""What this container may really use: CPUs and memory."""

import ctypes
import math
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from hogwear.system.errors import BadInput

CGROUP, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
SHARED_MEMORY = Path("/dev/shm")
LEAST_MEMORY, LEAST_MEMORY_A_WORKER = 400 << 20, 100 << 20  # bytes; docs/decisions/memory.md


def cpus(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> int:
    """CPUs that affinity and every cgroup quota above us allow, floored, at least 1.

    A quota (docker run --cpus) shows in neither os.cpu_count() nor sched_getaffinity(). Version 2 has it in
    cpu.max, "QUOTA PERIOD" or "max PERIOD"; version 1 in cpu.cfs_quota_us (-1: none) and cpu.cfs_period_us.
    """
    allowed = float(len(os.sched_getaffinity(0)))
    for folder in cgroup_folders("cpu", cgroup, membership):
        try:
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = (
                    (folder / f"cpu.cfs_{name}_us").read_text().strip()
                    for name in ("quota", "period")
                )
        except OSError:
            continue
        if quota not in ("max", "-1"):
            allowed = min(allowed, int(quota) / int(period))
    return max(1, int(allowed))


def cpu_name() -> str:
    """What the kernel calls the first CPU."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):  # the second is ARM's
                return line.partition(":")[2].strip()
    return "unknown"


def memory_limit(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> float:
    """Bytes that every cgroup above us allows (docker run --memory); infinity where none says."""
    limit = math.inf
    for folder in cgroup_folders("memory", cgroup, membership):
        for name in (
            "memory.max",
            "memory.limit_in_bytes",
        ):  # version 2, "max" for none, and 1, a huge number for none
            with suppress(OSError, ValueError):
                limit = min(limit, int((folder / name).read_text()))
    return limit


def cgroup_folders(controller: str, cgroup: Path, membership: Path) -> list[Path]:
    """The folders of our cgroup and of all above it, for version 2 and for this controller of version 1."""
    folders = []
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            root = cgroup / controllers if controllers else cgroup
            inner = root / path.lstrip("/")
            # In a cgroup namespace the path may lie outside what is mounted; the mount's root is then ours.
            folders += [folder for folder in (inner, *inner.parents) if folder.is_relative_to(root)]
    return folders or [cgroup]


def require_memory(workers: int) -> None:
    """BadInput where the cgroup has less memory than training takes at the least: the kernel would kill it without a word."""
    limit, needed = memory_limit(), LEAST_MEMORY + workers * LEAST_MEMORY_A_WORKER
    if limit < needed:
        raise BadInput(
            f"this container may take {int(limit) >> 20} MiB of memory, training with {workers} workers needs more than "
            f"{needed >> 20}: raise the limit (HOGWEAR_MEMORY in compose, docker run --memory), or use fewer --workers"
        )


def require_shared_memory(needed: int, folder: Path = SHARED_MEMORY) -> None:
    """BadInput where /dev/shm has fewer than `needed` bytes left: without this the first write ends in SIGBUS."""
    filesystem = os.statvfs(folder)
    free = filesystem.f_bavail * filesystem.f_frsize
    if free < needed:
        raise BadInput(
            f"{folder} has {free >> 20} MiB free, training needs {-(-needed >> 20)} MiB: give the container more "
            f"(docker run --shm-size, shm_size: in compose), or use fewer --workers"
        )


def keep_freed_memory() -> None:
    """Let malloc keep what is freed instead of giving it back to the kernel.

    Activations of tens of MB come and go hundreds of times a second; by default glibc maps each anew, and page
    faults then take half of the forward pass (measured: trunk at batch 32, 351 -> 574 images/s a thread).
    """
    if sys.platform == "linux":
        m_mmap_threshold, m_trim_threshold, gigabyte = -3, -1, 1 << 30  # malloc.h
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(m_mmap_threshold, gigabyte)
            libc.mallopt(m_trim_threshold, gigabyte)


def die_with_parent() -> None:
    """The kernel kills this process when the one that forked it is gone, however that ended."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class Stop:
    """SIGTERM and SIGINT as a flag, for work that must be put away first: `with Stop() as stop: ... if stop.requested`."""

    def __init__(self) -> None:
        self.signal = 0

    @property
    def requested(self) -> bool:
        return self.signal != 0

    def __enter__(self) -> "Stop":
        self.before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, signum: int, frame: object) -> None:
        self.signal = signum

    def __exit__(self, *error: object) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)
