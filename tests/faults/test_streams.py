"""What the scripts do where their output is closed, full or no longer read, and where memory does not suffice to begin."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers import ROOT, Script, Start, Trained, at, refusal, saved

from hogwear.system import machine

SMALL = ("--arch", "tinyvgg", "--image-size", 32, "--batch-size", 4096, "--workers", 1)
SCRIPTS = ("train.py", "eval.py", "infer.py")


def in_shell(command: str, script: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """A script, run by a shell that does something for it first: 'exec "$@" >&-'."""
    words = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(
        ["bash", "-c", command, "bash", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def small(data: Path, start: Start, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("small")
    script = start(
        "train.py", *SMALL, "--epochs", 1, *at(data, folder / "model", folder / "cache")
    ).ok()
    return Trained(folder / "model", folder / "cache", script.stdout, script.stderr)


def arguments(script: str, data: Path, small: Trained, folder: Path) -> Sequence[object]:
    """What a script does with a model; train makes a new one."""
    if script == "train.py":
        return *SMALL, "--epochs", 1, *at(data, folder / "model", small.cache)
    return *at(data, small.model, small.cache), *(
        ("--responses-dir", folder / "responses") if script == "infer.py" else ()
    )


def made(script: str, small: Trained, folder: Path) -> bool:
    """Whether the script has done its work, and its files have in them what they should."""
    if script == "train.py":
        return bool(saved(folder / "model")["finished"])
    file = (
        small.model / "eval_results.json"
        if script == "eval.py"
        else folder / "responses" / "predictions.json"
    )
    return bool(json.loads(file.read_text()))


@pytest.mark.parametrize(
    ("script", "closed"),
    [
        (SCRIPTS[0], ">&- 2>&-"),
        pytest.param(SCRIPTS[1], ">&-", marks=pytest.mark.long),
        pytest.param(SCRIPTS[2], "2>&-", marks=pytest.mark.long),
    ],
)
def test_a_command_works_with_closed_streams(
    script: str, closed: str, data: Path, small: Trained, tmp_path: Path
) -> None:
    ended = in_shell(f'exec "$@" {closed}', script, *arguments(script, data, small, tmp_path))
    assert (ended.returncode, ended.stderr) == (0, "") and bool(ended.stdout) == closed.startswith(
        "2"
    )
    assert made(script, small, tmp_path)


@pytest.mark.parametrize("script", ["train.py", pytest.param("eval.py", marks=pytest.mark.long)])
def test_a_full_standard_output_is_named_in_one_line(
    script: str, data: Path, small: Trained, tmp_path: Path
) -> None:
    ended = in_shell('exec "$@" > /dev/full', script, *arguments(script, data, small, tmp_path))
    assert (ended.returncode, refusal(ended.stderr)) == (
        2,
        f"{script}: standard output: No space left on device; write it elsewhere\n",
    )


def test_help_that_cannot_be_written_is_not_success() -> None:
    ended = in_shell('exec "$@" > /dev/full', "train.py", "--help")
    assert (ended.returncode, refusal(ended.stderr)) == (
        2,
        "train.py: standard output: No space left on device; write it elsewhere\n",
    )


def test_a_warning_that_cannot_be_written_does_not_end_the_run(
    data: Path, small: Trained, tmp_path: Path
) -> None:
    more = "--workers", machine.cpus() + 1  # of which train warns
    ended = in_shell(
        'exec "$@" 2> /dev/full', "train.py", *arguments("train.py", data, small, tmp_path), *more
    )
    assert ended.returncode == 0 and made("train.py", small, tmp_path)


@pytest.mark.parametrize("script", ["eval.py", pytest.param("infer.py", marks=pytest.mark.long)])
def test_a_command_without_a_reader_ends_at_once_and_silently(
    script: str, data: Path, small: Trained, start: Start, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        run = start(script, *arguments(script, data, small, tmp_path), stdout=writing)
    finally:
        os.close(writing)
    assert (run.code(), run.stderr) == (141, "")


def lines_until(script: Script, beginning: str) -> None:
    """Read what it prints until a line begins so; then no more."""
    assert script.process.stdout
    with script.process.stdout as pipe:
        assert any(line.startswith(beginning.encode()) for line in pipe)


def test_train_saves_when_its_reader_is_gone_and_the_next_run_resumes(
    data: Path, small: Trained, start: Start, tmp_path: Path
) -> None:
    where = at(data, tmp_path / "model", small.cache)
    run = start("train.py", *SMALL, "--epochs", 1_000_000, *where, stdout=subprocess.PIPE)
    lines_until(run, "initial: ")
    assert (run.code(), run.stderr) == (141, "")
    state = saved(tmp_path / "model")
    photos = len(list(data.glob("train/*/*")))
    assert not state["finished"] and state["images_seen"] == 9 * photos, "a batch is an epoch"
    assert [row["epoch"] for row in state["history"]] == [0, 9], "the last line was not lost"
    run = start("train.py", *where, stdout=subprocess.PIPE)
    lines_until(run, "Precision: ")
    assert run.code() == 141
    later = saved(tmp_path / "model")
    assert (
        later["history"][: len(state["history"])] == state["history"]
        and later["images_seen"] > state["images_seen"]
    )


@pytest.mark.parametrize("script", ["train.py", pytest.param("infer.py", marks=pytest.mark.long)])
def test_too_little_address_space_for_pytorch_is_one_line_with_the_fix(
    script: str, data: Path, small: Trained, tmp_path: Path
) -> None:
    peak = "import re, sys; sys.path.insert(0, sys.argv[1]); __import__(sys.argv[2]); print(re.search(r'VmPeak:\\s*(\\d+)', open('/proc/self/status').read())[1])"
    before = subprocess.run(
        [sys.executable, "-c", peak, ROOT, script.removesuffix(".py")],
        capture_output=True,
        text=True,
        check=True,
    )
    limit = int(before.stdout) + 40_000  # KiB: enough for all but PyTorch
    ended = in_shell(
        f'ulimit -v {limit}; exec "$@"', script, *arguments(script, data, small, tmp_path)
    )
    assert ended.returncode == 2, ended.stderr
    assert refusal(ended.stderr).startswith(
        f"{script}: memory ran out: ulimit -v allows {limit} KiB of address space; raise it (ulimit -v unlimited), or use "
    )
