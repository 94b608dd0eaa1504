"""The CPUs and the memory that this container may really use."""

import ctypes
import math
import os
import sys
from contextlib import suppress
from pathlib import Path

from hogwear.system.errors import BadInput

CGROUP, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
SHARED_MEMORY = Path("/dev/shm")
MIN_MEMORY, MIN_MEMORY_PER_WORKER = 400 << 20, 100 << 20  # bytes; docs/decisions/memory.md


def cpus(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> int:
    """The CPUs that the affinity and every cgroup quota above us allow, rounded down, at least 1.

    A quota (docker run --cpus) shows in neither os.cpu_count() nor sched_getaffinity(). Version 2
    of cgroups has it in cpu.max, "QUOTA PERIOD" or "max PERIOD"; version 1 has cpu.cfs_quota_us
    (-1: none) and cpu.cfs_period_us.
    """
    allowed = float(len(os.sched_getaffinity(0)))
    for folder in cgroup_folders("cpu", cgroup, membership):
        with suppress(OSError):
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text().strip()
                period = (folder / "cpu.cfs_period_us").read_text()
            if quota not in ("max", "-1"):
                allowed = min(allowed, int(quota) / int(period))
    return max(1, int(allowed))


def cpu_name() -> str:
    """The kernel's name for the first CPU."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):  # the second is ARM's
                return line.partition(":")[2].strip()
    return "unknown"


def memory_limit(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> float:
    """The bytes that every cgroup above us allows (docker run --memory); infinity without limit."""
    limit = math.inf
    for folder in cgroup_folders("memory", cgroup, membership):
        # Version 2 says "max" if there is no limit, version 1 a huge number
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                limit = min(limit, int((folder / name).read_text()))
    return limit


def cgroup_folders(controller: str, cgroup: Path, membership: Path) -> list[Path]:
    """The folders of our cgroup and of all above it: version 2, and this controller's version 1."""
    folders = []
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            root = cgroup / controllers if controllers else cgroup
            inner = root / path.lstrip("/")
            # In a cgroup namespace, the path may lie outside the mount, whose root is then ours
            folders += [folder for folder in (inner, *inner.parents) if folder.is_relative_to(root)]
    return folders or [cgroup]


def require_memory(workers: int) -> None:
    """BadInput if the cgroup has too little memory to train: the kernel would kill us silently."""
    limit, needed = memory_limit(), MIN_MEMORY + workers * MIN_MEMORY_PER_WORKER
    if limit < needed:
        raise BadInput(
            f"this container may use {int(limit) >> 20} MiB of memory, training with {workers} "
            f"workers needs more than {needed >> 20}: raise the limit (HOGWEAR_MEMORY in compose, "
            "docker run --memory), or use fewer --workers"
        )


def require_shared_memory(needed: int, folder: Path = SHARED_MEMORY) -> None:
    """BadInput if /dev/shm has fewer than `needed` bytes left: writing there would raise SIGBUS."""
    filesystem = os.statvfs(folder)
    free = filesystem.f_bavail * filesystem.f_frsize
    if free < needed:
        raise BadInput(
            f"{folder} has {free >> 20} MiB free, training needs {-(-needed >> 20)} MiB: give the "
            "container more (docker run --shm-size, shm_size: in compose), or use fewer --workers"
        )


def keep_freed_memory() -> None:
    """Have malloc keep freed memory instead of giving it back to the kernel.

    Activations of tens of MB come and go hundreds of times per second. By default, glibc maps each
    of them anew, and page faults take half of the forward pass (measured: trunk at batch 32,
    351 -> 574 images/s per thread).
    """
    if sys.platform == "linux":
        m_mmap_threshold, m_trim_threshold, gigabyte = -3, -1, 1 << 30  # malloc.h
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(m_mmap_threshold, gigabyte)
            libc.mallopt(m_trim_threshold, gigabyte)
