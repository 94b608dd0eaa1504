"""Helpers of the tests: commands as real processes, small runs, and readers of their results."""

import hashlib
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
from hogwear.data.cache import PhotoCache
from hogwear.data.contents import read_contents
from hogwear.data.decoding import LIMITS, Limits, decode
from hogwear.data.photos import Split
from hogwear.data.pixels import Pixels
from hogwear.data.split_assignments import NO_ASSIGNMENTS
from hogwear.networks.parameters import OptimizerState
from hogwear.system import signals
from hogwear.system.arrays import Int64Array, UInt8Array
from hogwear.system.paths import Paths
from hogwear.system.workers import FORK
from hogwear.training import checkpoint
from hogwear.training.history import HOGWILD, QUANTILES, Best, History, HistoryRow, RunningMetrics
from hogwear.training.hyperparameters import Hyperparameters
from hogwear.training.photo_sets import PhotoSet, PhotoSets
from hogwear.training.recovery import DivergenceDetector, Snapshot
from hogwear.training.run_state import RunState

torch.set_num_threads(1)  # a process with threads must not fork

with tempfile.TemporaryDirectory() as folder:
    FAST = model.choose_dtype(Path(folder))  # the data type that networks compute in

FASHION5 = Path(os.environ.get("FASHION5", ROOT.parent / "shared" / "data" / "fashion5"))
CLASSES = ("bottomwear", "eyewear", "footwear", "handbag", "topwear")
COUNTS = {"train": 24, "val": 8, "test": 8}  # photos per class in the fixture `data`
LEAKED = {"10244.jpg"}  # in fashion5's test, and under another name in train
SIZE = 64
# Of 120 photos: 80 steps, validated after 69 of them, 1,024 images, and at the end
SMALL_RUN = ("--image-size", SIZE, "--epochs", 10, "--batch-size", 16)


class Script:
    """A script as a real process in its own session. Its output goes to files."""

    def __init__(self, name: str, *arguments: object, folder: Path, **options: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.out")))
        self.out, self.err = folder / f"{number}.out", folder / f"{number}.err"
        env = {key: value for key, value in os.environ.items() if not key.startswith("HOGWEAR_")}
        command = [sys.executable, str(ROOT / name), *map(str, arguments)]
        with self.out.open("w") as out, self.err.open("w") as err:
            defaults: dict[str, Any] = {"env": env, "stdin": subprocess.DEVNULL}
            defaults |= {"stdout": out, "stderr": err, "cwd": folder}
            self.process = subprocess.Popen(command, start_new_session=True, **defaults | options)

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
        """Wait for the exit code."""
        try:
            return self.process.wait(seconds)
        finally:
            self.kill()

    def ok(self, seconds: float = 60) -> "Script":
        """Wait until it has succeeded."""
        assert self.code(seconds) == 0, self.stdout + self.stderr
        return self

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait_for(self, pattern: str) -> None:
        """Wait until a line on stdout matches."""
        wait_until(lambda: re.search(pattern, self.stdout, re.MULTILINE) or self.ended)
        found = re.search(pattern, self.stdout, re.MULTILINE)
        assert found, f"no {pattern!r} in:\n{self.stdout}{self.stderr}"

    def wait_for_warning(self, text: str, times: int) -> None:
        """Wait until stderr has this warning `times` times."""
        warning = f"Warning: {text}"
        wait_until(lambda: self.stderr.count(warning) >= times or self.ended)
        assert self.stderr.count(warning) == times, self.stdout + self.stderr


def log_to(file: Path) -> Callable[[str], None]:
    """A function that notes a line in a file, from any process."""
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(text: str) -> None:
        os.write(handle, f"{text}\n".encode())

    return note


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.01)


@dataclass(frozen=True)
class Trained:
    """Folders and output of a finished run of train.py."""

    model: Path
    cache: Path
    stdout: str
    stderr: str


def at(data: Path, model: Path, cache: Path) -> tuple[object, ...]:
    """The flags for these folders."""
    return "--data-dir", data, "--model-dir", model, "--cache-dir", cache


@dataclass(frozen=True)
class Completed:
    """Exit code and output of a command."""

    code: int
    stdout: str
    stderr: str


# Types of fixtures in conftest.py.
Start = Callable[..., Script]
Call = Callable[..., Completed]
Times = Callable[[int, int], int]
Held = Callable[[str, int, str], None]


def pretrained_network(num_classes: int, dtype: torch.dtype) -> model.EfficientNetLite0:
    """Pretrained but for its head, whose weights are random, the same every time."""
    net = model.EfficientNetLite0(num_classes, SIZE, dtype)
    net.load_pretrained()
    random = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(net.head.weight, std=0.05, generator=random)
    return net.requires_grad_(False)


def decode_some(files: list[Path], count: int, size: int) -> UInt8Array:
    """(count, size, size, 3): every nth of the photos."""
    return np.stack([decode(path, size) for path in files[:: len(files) // count][:count]])


def pixels_of(images: UInt8Array, labels: Int64Array, folder: Path | None = None) -> Pixels:
    """Pixels as the cache would return them, from arrays. Features are kept in the folder."""
    count = len(images)
    return Pixels(
        folder or Path("/nowhere"),
        images,
        np.arange(count),
        labels,
        np.zeros((count, 16), np.uint8),
        np.zeros((count, 16), np.uint8),
        {},
        np.zeros((count, 256), np.uint8),
    )


def new_state(arch: str = "tinyvgg", image_size: int = 32, **values: Any) -> RunState:
    """The state of a run on a few photos that has not begun."""
    photo_set = PhotoSet(4, "0" * 64)
    return RunState(
        class_names=CLASSES,
        hyperparameters=Hyperparameters(arch=arch, image_size=image_size, **values),
        photos=PhotoSets(False, photo_set, photo_set),
        split=NO_ASSIGNMENTS.version(),
        trained_on=np.arange(4),
    )


def hogwild_row(epoch: float, val_loss: float = 0.5, val_acc: float = 0.75) -> HistoryRow:
    return HistoryRow(float(epoch), HOGWILD, 120, 0.001, 0.25, 0.9, val_loss, val_acc, 98.76)


def validated_state(*rows: HistoryRow, images_seen: int = 0) -> RunState:
    """The state of a run of TinyVGG by one worker on 120 photos, with these validations."""
    state, net = new_state(), model.build("tinyvgg", 5, 32)
    epochs, optimizer = images_seen / 120, OptimizerState.create(net, 1)
    snapshot = Snapshot.take(net, optimizer, images_seen, epochs, RunningMetrics())
    best = Best(
        rows[0].epoch,
        32,
        rows[0].val_loss,
        rows[0].val_acc,
        1.5,
        0.8,
        torch.zeros(QUANTILES),
        snapshot.weights,
    )
    state.history = History(list(rows), best)
    state.images_seen, state.snapshot = images_seen, snapshot
    return state


def make_split(
    files: list[Path], labels: list[int] | None = None, limits: Limits = LIMITS
) -> Split:
    """Photos in one folder as a split; the cache is beside the folder."""
    paths, root = Paths(files), files[0].parent
    hashes, unread = read_contents(paths, root, root.parent / "cache", limits)
    labelled = paths, np.array(labels or [0] * len(files))
    return Split("train", *labelled, root, hashes, np.zeros_like(hashes), unread)


def open_pixels(files: list[Path], cache: Path) -> Pixels:
    """The photos from the cache, which must have their own pixels and hashes."""
    pixels = PhotoCache(cache, processes=1).open(make_split(files), SIZE)
    assert np.array_equal(pixels.images[pixels.rows], [decode(path, SIZE) for path in files])
    assert [bytes(row) for row in pixels.hashes] == [
        hashlib.blake2b(path.read_bytes(), digest_size=16).digest() for path in files
    ]
    return pixels


def damage_file(file: Path, damage: bytes | int | None) -> None:
    """Replace its content, cut it to a length (from the end, if negative), or remove it."""
    if damage is None:
        file.unlink()
    elif isinstance(damage, bytes):
        file.write_bytes(damage)
    else:
        os.truncate(file, damage % file.stat().st_size)


@contextmanager
def stopped_after(batches: int) -> Iterator[None]:
    """Interrupt a call of train.main after some batches, as by Ctrl-C."""
    losses: list[float] = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(DivergenceDetector, "add", lambda self, loss: losses.append(loss))
        patch.setattr(signals.Stop, "requested", property(lambda self: len(losses) >= batches))
        yield


def without_test(data: Path, folder: Path) -> Path:
    """Copy the photos without their test split."""
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copytree(data / split, folder / split, copy_function=os.link)
    return folder


def refusal(stderr: str) -> str:
    """The only line on stderr, which says why a command refused."""
    assert stderr.count("\n") == 1 and stderr.endswith("\n"), stderr
    return stderr


def saved(model_dir: Path) -> dict[str, Any]:
    """The contents of a checkpoint."""
    return checkpoint.load(model_dir).state


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """All weights in one vector."""
    return torch.cat([tensor.flatten() for tensor in weights.values()])


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name != "images_per_second"}
        for row in history
    ]


def same_run(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two checkpoints have bit-identical best weights, and the same history."""
    return (
        torch.equal(flat(one["best"]["weights"]), flat(other["best"]["weights"]))
        and without_times(one["history"]) == without_times(other["history"])
        and (one["forecast"], one["start_loss"]) == (other["forecast"], other["start_loss"])
    )


def descendants(pid: int) -> set[int]:
    """All child processes, their children, and so on."""
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
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class ForkedCall:
    """Call a function in a forked process; `result()` waits for what it returns.

    A process that has computed gradients cannot fork workers that do, so tests compute them here.
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
