"""The options of a peer, and what it reports."""

import argparse
import time
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor


class Options(argparse.Namespace):
    peer: str
    photos: Path
    epochs: int
    seed: int
    size: int
    workers: int
    started: float  # when the process started, in seconds since the machine did

    def seconds(self) -> float:
        """Since the process started, imports included; also in a process that it has spawned."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.started


class Clock:
    """Times an epoch. Its methods can be callbacks of any library; the last epoch counts."""

    def start(self, *_: object) -> None:
        self.started = time.perf_counter()

    def stop(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.started


def measure(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy and log loss of logits, (n, classes), for labels, (n,)."""
    return {
        "test_acc": (logits.argmax(1) == labels).double().mean().item(),
        "test_loss": F.cross_entropy(logits.double(), labels).item(),
    }


def result(
    quality: dict[str, float], images_per_second: float, train_seconds: float
) -> dict[str, Any]:
    """What a peer returns: `measure` on the test photos, and its time without measuring."""
    return {
        **quality,
        "images_per_second": images_per_second,
        "train_seconds": train_seconds,
    }
