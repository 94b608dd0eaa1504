"""The passes that compute features: what interrupts them costs nothing that was done before."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    COUNTS,
    ROOT,
    SIZE,
    SMALL_RUN,
    Held,
    Start,
    Times,
    Trained,
    at,
    log_to,
    refusal,
    same_run,
    saved,
)

import train
from hogwear.data import feature_file
from hogwear.data.feature_file import FeatureFile
from hogwear.system import command
from hogwear.system.arrays import Int64Array
from hogwear.system.workers import FORK
from hogwear.training import passes
from hogwear.training.passes import Pass

FIRST_STAGE = ("--image-size", SIZE, "--epochs", 0, "--workers", 2)
BATCH_SIZE = 4
# The passes of the first stage, in order, and the batches in each
PASSES = {
    "trunk": 5 * COUNTS["train"] // BATCH_SIZE,
    "first features": 5 * COUNTS["train"] // BATCH_SIZE,
    "trunk of val": 5 * COUNTS["val"] // BATCH_SIZE,
}


@pytest.fixture(scope="module")
def undisturbed(data: Path, start: Start, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The checkpoint of a first stage that nothing interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    start("train.py", *FIRST_STAGE, *at(data, folder / "model", folder / "cache")).ok()
    return saved(folder / "model")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "BATCH_SIZE", BATCH_SIZE)
    monkeypatch.setattr(feature_file, "SECONDS_BETWEEN_NOTES", 0)


@pytest.fixture
def computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The batches that workers have computed since the last call: "trunk 8"."""
    log, job = tmp_path / "computed", Pass.job
    note = log_to(log)

    def compute(self: Pass, start: int) -> None:
        job(self, start)
        note(f"{self.name} {self.todo[start]}")

    def read() -> list[str]:
        lines = log.read_text().splitlines()
        os.truncate(log, 0)
        return lines

    monkeypatch.setattr(Pass, "job", compute)
    return read


EVERYTHING = {
    f"{name} {BATCH_SIZE * batch}" for name, batches in PASSES.items() for batch in range(batches)
}


def run_train(*arguments: object) -> int:
    """The exit code of train in a process of its own, once its workers have ended, too.

    Whatever is patched here is patched there.
    """
    alive, theirs = FORK.Pipe(duplex=False)

    def main() -> None:
        sys.argv = ["train.py", *map(str, arguments)]
        os._exit(command.exit_code(train.main, train.Settings))

    process: ForkProcess = FORK.Process(target=main)
    process.start()
    theirs.close()
    with pytest.raises(EOFError):  # from now on, nobody has the other end any more
        alive.recv()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.long
def test_features_computed_before_train_was_killed_are_not_computed_again(
    data: Path,
    undisturbed: Any,
    computed: Callable[[], list[str]],
    tmp_path: Path,
    times: Times,
    held: Held,
) -> None:
    tries, note = times(3, 30), FeatureFile.note
    for number in range(tries):
        folder = tmp_path / str(number)
        arguments = *FIRST_STAGE, *at(data, folder / "model", folder / "cache")
        # In each of the passes once
        batches = list(PASSES.values())
        before = sum(batches[: number % 3])
        last = random.randrange(before + 1, before + batches[number % 3])
        noted: list[Int64Array] = []

        def note_and_die(
            self: FeatureFile, index: Int64Array, last: int = last, noted: Any = noted
        ) -> None:
            note(self, index)
            noted.append(index)
            if len(noted) == last:
                os.kill(os.getpid(), signal.SIGKILL)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FeatureFile, "note", note_and_die)
            assert run_train(*arguments) == -signal.SIGKILL
        before_kill = computed()
        assert last <= len(before_kill) <= len(EVERYTHING)
        assert run_train(*arguments) == 0
        after = computed()
        assert len(after) == len(set(after)) == len(EVERYTHING) - last, "only what was missing"
        assert {*before_kill, *after} == EVERYTHING
        assert same_run(saved(folder / "model"), undisturbed)
    held(
        "SIGKILL of train while it computes features",
        tries,
        "the next run computed only the missing ones, with the same result to the bit",
    )


def test_a_worker_killed_while_it_computes_features_costs_nothing(
    data: Path,
    undisturbed: Any,
    computed: Callable[[], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    times: Times,
    held: Held,
) -> None:
    """One in each pass, when it has written some of the rows of a batch."""
    tries, job = times(1, 10), Pass.job
    for number in range(tries):
        folder = tmp_path / str(number)
        folder.mkdir()
        doomed = {
            name: (random.randrange(count) * BATCH_SIZE, random.randint(0, BATCH_SIZE))
            for name, count in PASSES.items()
        }

        def compute(self: Pass, start: int, doomed: Any = doomed, folder: Path = folder) -> None:
            where, rows = doomed[self.name]
            if start != where or (folder / self.name).exists():
                return job(self, start)
            (folder / self.name).touch()
            if rows:
                job(replace(self, todo=self.todo[start : start + rows]), 0)
            os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(Pass, "job", compute)
        assert run_train(*FIRST_STAGE, *at(data, folder / "model", folder / "cache")) == 0
        assert all((folder / name).exists() for name in PASSES)
        done = computed()
        again = sum(rows > 0 for _, rows in doomed.values())
        assert set(done) == EVERYTHING and len(done) == len(EVERYTHING) + again
        assert same_run(saved(folder / "model"), undisturbed)
    held(
        "SIGKILL of a worker while it computes features",
        3 * tries,
        "replaced; only its own batch was computed again, with the same result to the bit",
    )


# --- the disk is full


def copy_pixels(cache: Path, folder: Path) -> Path:
    """A copy of a cache without features."""
    shutil.copytree(cache, folder, ignore=shutil.ignore_patterns("trunk-*", "features*"))
    return folder


def train_with_failing_writes(
    number: int, *arguments: object
) -> "subprocess.CompletedProcess[str]":
    """Run train; no space is left for its features after so many rows by each worker."""
    inject = f"inject=pwrite64:error=ENOSPC:when={number}+"
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=pwrite64", "-e", inject]
    return subprocess.run(
        [*strace, sys.executable, ROOT / "train.py", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def needs_strace(times: Times) -> None:
    if not shutil.which("strace") and not times(0, 1):
        pytest.skip("NO STRACE: the failing of system calls was not tested")


def test_a_disk_that_fills_up_with_features_is_one_line_and_the_next_run_computes_them(
    data: Path,
    trained: Trained,
    undisturbed: Any,
    start: Start,
    tmp_path: Path,
    needs_strace: None,
    held: Held,
) -> None:
    cache = copy_pixels(trained.cache, tmp_path / "cache")
    arguments = *FIRST_STAGE, *at(data, tmp_path / "model", cache)
    for rows in 10, 5 * COUNTS["train"] // 2 + 10:  # in the trunk's pass and in the next one
        failed = train_with_failing_writes(rows, *arguments)
        assert failed.returncode == 2, failed
        line = refusal(failed.stderr)
        assert "No space left on device" in line and str(cache) in line
        assert not (tmp_path / "model" / "checkpoint.pt").exists()
    start("train.py", *arguments).ok()
    assert same_run(saved(tmp_path / "model"), undisturbed)
    held(
        "ENOSPC while features are written",
        2,
        "ended in one line; the next run computed them, with the same result to the bit",
    )


@pytest.mark.long
def test_a_disk_that_fills_up_later_costs_nothing_that_was_learned(
    data: Path, trained: Trained, start: Start, tmp_path: Path, needs_strace: None, held: Held
) -> None:
    """With the features of the first stage in the cache, those of the first validation fail."""
    cache = copy_pixels(trained.cache, tmp_path / "cache")
    start("train.py", *FIRST_STAGE, *at(data, tmp_path / "first", cache)).ok()
    arguments = *SMALL_RUN, "--epochs", 10, *at(data, tmp_path, cache)
    failed = train_with_failing_writes(10, *arguments)
    assert failed.returncode == 2, failed
    assert "No space left on device" in refusal(failed.stderr)
    state = saved(tmp_path)
    assert state["images_seen"] == 1040 and not state["finished"], "all until the validation"
    assert [row["stage"] for row in state["history"]] == ["closed form"]
    script = start("train.py", *arguments).ok()
    assert "after 1040 images" in script.stdout
    assert saved(tmp_path)["finished"] and saved(tmp_path)["images_seen"] == 10 * 120
    held(
        "ENOSPC in a validation",
        1,
        "ended in one line with everything learned saved; the next run went on",
    )
