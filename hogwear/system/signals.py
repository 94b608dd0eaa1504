"""Signals that ask a process to stop, and the end of a process whose parent is gone."""

import ctypes
import signal
import sys


class Stop:
    """SIGTERM and SIGINT as a flag, for work that must be saved first.

    with Stop() as stop:
        while not stop.requested: ...
    """

    def __init__(self) -> None:
        self.signal = 0

    @property
    def requested(self) -> bool:
        return self.signal != 0

    def __enter__(self) -> "Stop":
        signals = signal.SIGTERM, signal.SIGINT
        self.previous = {number: signal.signal(number, self.remember) for number in signals}
        return self

    def remember(self, signum: int, frame: object) -> None:
        self.signal = signum

    def __exit__(self, *error: object) -> None:
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone, however that ended."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
