"""What the tests share: the scripts as real processes, small real runs, and readers of what those leave behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from containers import ROOT as ROOT  # for the tests, too

import model
from hogwear.data.pixels import Pixels
from hogwear.system import machine
from hogwear.system.arrays import Int64Array, UInt8Array
from hogwear.system.workers import FORK
from hogwear.training import checkpoint
from hogwear.training.trainer import DivergenceDetector

torch.set_num_threads(1)  # as the scripts do: a process with threads must not fork


with tempfile.TemporaryDirectory() as folder:
    FAST = model.choose_dtype(Path(folder))


FASHION5 = Path(os.environ.get("FASHION5", ROOT.parent / "shared" / "data" / "fashion5"))


COUNTS = {"train": 24, "val": 8, "test": 8}  # photos of each class


LEAKED = {"10244.jpg"}  # in test, and with another name in train


CLASSES = ("bottomwear", "eyewear", "footwear", "handbag", "topwear")


SIZE = 64


class Script:
    """train.py, eval.py or infer.py as a real process, in a session of its own, its output in files."""

    def __init__(self, name: str, *arguments: object, folder: Path, **options: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.out")))
        self.out, self.err = folder / f"{number}.out", folder / f"{number}.err"
        env = {key: value for key, value in os.environ.items() if not key.startswith("HOGWEAR_")}
        command = [sys.executable, str(ROOT / name), *map(str, arguments)]
        with self.out.open("w") as out, self.err.open("w") as err:
            files: dict[str, Any] = {
                "env": env,
                "stdin": subprocess.DEVNULL,
                "stdout": out,
                "stderr": err,
            }
            self.process = subprocess.Popen(
                command, cwd=folder, start_new_session=True, **files | options
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        return self.out.read_text()

    @property
    def stderr(self) -> str:
        return self.err.read_text()

    def code(self, seconds: float = 60) -> int:
        """Wait for its exit code."""
        try:
            return self.process.wait(seconds)
        finally:
            self.kill()

    def ok(self, seconds: float = 60) -> "Script":
        """Wait until it has ended, and well."""
        assert self.code(seconds) == 0, self.stdout + self.stderr
        return self

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()

    def wait_for(self, line: str) -> None:
        """Until a line with this pattern is on stdout."""
        wait_until(
            lambda: re.search(line, self.stdout, re.MULTILINE) or self.process.poll() is not None
        )
        assert re.search(line, self.stdout, re.MULTILINE), (
            f"no {line!r} in:\n{self.stdout}{self.stderr}"
        )

    def wait_for_warning(self, text: str, times: int) -> None:
        """Until it is on stderr so many times."""
        wait_until(
            lambda: (
                self.stderr.count(f"Warning: {text}") >= times or self.process.poll() is not None
            )
        )
        assert self.stderr.count(f"Warning: {text}") == times, self.stdout + self.stderr


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@dataclass(frozen=True)
class Trained:
    """What a finished run of train.py left."""

    model: Path
    cache: Path
    stdout: str
    stderr: str


SMALL_RUN = ("--image-size", SIZE, "--epochs", 6, "--batch-size", 8)


def at(data: Path, model: Path, cache: Path) -> tuple[object, ...]:
    return "--data-dir", data, "--model-dir", model, "--cache-dir", cache


Start = Callable[..., Script]


Times = Callable[[int, int], int]


Held = Callable[[str, int, str], None]


@dataclass(frozen=True)
class Completed:
    code: int
    stdout: str
    stderr: str


Call = Callable[..., Completed]


def pixels_of(images: UInt8Array, labels: Int64Array) -> Pixels:
    """As if they had come out of a cache."""
    count = len(images)
    return Pixels(
        Path(),
        images,
        np.arange(count),
        labels,
        np.zeros((count, 16), np.uint8),
        {},
        np.zeros((count, 256), np.uint8),
    )


@contextmanager
def stopped_after(batches: int) -> Iterator[None]:
    """A train.main within is interrupted after so many batches, as by Ctrl-C."""
    losses: list[float] = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(DivergenceDetector, "add", lambda self, loss: losses.append(loss))
        patch.setattr(machine.Stop, "requested", property(lambda self: len(losses) >= batches))
        yield


def without_test(data: Path, folder: Path) -> Path:
    """The same photos without a test split."""
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copytree(data / split, folder / split, copy_function=os.link)
    return folder


def refusal(stderr: str) -> str:
    """The one line that a script may say when it refuses."""
    assert stderr.count("\n") == 1 and stderr.endswith("\n"), stderr
    return stderr


def saved(model_dir: Path) -> dict[str, Any]:
    return checkpoint.load(model_dir).state


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in weights.values()])


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if name != "images_per_second"}
        for row in history
    ]


def same_run(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two checkpoints hold the same weights, best weights and history, to the last bit."""
    return (
        torch.equal(flat(one["weights"]), flat(other["weights"]))
        and torch.equal(flat(one["best"]["weights"]), flat(other["best"]["weights"]))
        and without_times(one["history"]) == without_times(other["history"])
    )


def descendants(pid: int) -> set[int]:
    """Processes that this one has started, and theirs."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(parent, []).append(int(stat.parent.name))
    found, queue = set(), [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found.update(children)
        queue += children
    return found


def is_running(pid: int) -> bool:
    """Not gone, and not a zombie that its parent has yet to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class ForkedCall:
    """function(*arguments) in a forked process of its own; `answer()` waits for what it returns.

    For what would leave its mark on this process: one that has computed gradients can fork no workers that do.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.pipe, theirs = FORK.Pipe()
        self.process = FORK.Process(target=lambda: theirs.send(function(*arguments)))
        self.process.start()
        theirs.close()

    def result(self) -> Any:
        try:
            return self.pipe.recv()
        finally:
            self.process.join()
