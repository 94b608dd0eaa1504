"""Whatever happens to a save or to its file, a good checkpoint is found or the loss is reported."""

import hashlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Call, Held, Times, Trained, at, refusal, saved, wait_until

import eval
import train
from hogwear.system.artifacts import CHECKPOINT, PREVIOUS_CHECKPOINT
from hogwear.system.errors import BadInput
from hogwear.system.workers import FORK
from hogwear.training import checkpoint

Strace = Callable[..., tuple[str, int]]

SAVING = "openat,unlink,write,fchmod,fsync,link,rename,close"


def state(number: int, size: int = 1000) -> dict[str, Any]:
    return {"number": number, "w": torch.from_numpy(np.full(size, number, np.float32))}


def number_in(folder: Path) -> int:
    """The number in the checkpoint of a folder, which must be complete."""
    loaded = checkpoint.load(folder).state
    assert (loaded["w"] == loaded["number"]).all()
    return int(loaded["number"])


def forked(function: Callable[[], object]) -> Any:
    process = FORK.Process(target=function)
    process.start()
    return process


# --- killed and failing saves


def save_three(folder: Path) -> None:
    """Save in a process that first stops itself, so that strace can attach. Exit code 7: refused."""
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        checkpoint.save(folder, state(3))
    except BadInput as error:
        assert "could not be saved" in str(error) and "run train again" in str(error)
        os._exit(7)


@pytest.fixture
def strace(tmp_path: Path, times: Times) -> Strace:
    """strace(folder, *options): save number 3 after 1 and 2 under strace -> (log, exit code)."""
    if not shutil.which("strace") and not times(0, 1):
        pytest.skip("NO STRACE: the failing of system calls was not tested")

    def run(folder: Path, *options: str) -> tuple[str, int]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for number in (1, 2):
            checkpoint.save(folder, state(number))
        process, log = forked(lambda: save_three(folder)), tmp_path / "strace"
        wait_until(
            lambda: (
                Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
            )
        )
        with log.open("w") as file:
            tracer = subprocess.Popen(["strace", "-p", str(process.pid), *options], stderr=file)
            wait_until(lambda: "attached" in log.read_text())
            os.kill(process.pid, signal.SIGCONT)
            tracer.wait(20)
        process.join()
        return log.read_text(), process.exitcode

    return run


def calls_of_a_save(strace: Strace, folder: Path) -> list[tuple[str, int]]:
    """The system calls of a save in order, as (name, how many times so far)."""
    log, code = strace(folder, "-e", f"trace={SAVING}")
    assert code == 0 and number_in(folder) == 3
    names, counts = re.findall(r"^(\w+)\(", log, re.MULTILINE), Counter[str]()
    calls = []
    for name in names:
        counts[name] += 1
        calls.append((name, counts[name]))
    assert {"write", "fsync", "link", "rename"} <= counts.keys() and counts["fsync"] == 2
    return calls


def test_a_save_killed_at_any_system_call_leaves_the_old_one_or_the_new_one(
    strace: Strace, tmp_path: Path, held: Held
) -> None:
    folder = tmp_path / "model"
    calls, found = calls_of_a_save(strace, folder), []
    for name, number in calls:
        _, code = strace(
            folder, "-e", f"trace={SAVING}", "-e", f"inject={name}:signal=SIGKILL:when={number}"
        )
        assert code == -signal.SIGKILL, (name, number)
        assert (folder / CHECKPOINT).exists()
        found.append(number_in(folder))
        checkpoint.save(
            folder, state(4)
        )  # the next run goes on, and leaves nothing of the killed save
        assert number_in(folder) == 4 and {file.name for file in folder.iterdir()} == {
            CHECKPOINT,
            PREVIOUS_CHECKPOINT,
        }
    assert found == sorted(found) and set(found) == {2, 3}
    held(
        "SIGKILL at each system call of a save",
        len(calls),
        "the old checkpoint or the new one, whole; the next save tidied up",
    )


FAILURES = {
    "openat": "EROFS",
    "write": "ENOSPC",
    "fsync": "EIO",
    "rename": "EIO",
    "link": "EPERM",
    "fchmod": "EPERM",
    "unlink": "EIO",
}


def test_a_save_whose_system_call_fails_says_so_and_leaves_the_old_one(
    strace: Strace, tmp_path: Path, held: Held
) -> None:
    folder, tried = tmp_path / "model", 0
    for name, number in calls_of_a_save(strace, folder):
        if name not in FAILURES:
            continue
        log, code = strace(
            folder,
            "-e",
            f"trace={SAVING}",
            "-e",
            f"inject={name}:error={FAILURES[name]}:when={number}",
        )
        assert "(INJECTED)" in log
        assert code in (0, 7), (
            name,
            number,
            code,
        )  # done, where there is another way; else refused in one line
        assert number_in(folder) == 3 if code == 0 else number_in(folder) in (2, 3)
        assert code == 7 or name in ("link", "openat"), (name, number)
        tried += 1
    assert tried >= 7
    held(
        "ENOSPC, EIO, EROFS or EPERM from each system call of a save",
        tried,
        "refused in one line, a whole checkpoint left; without hard links saved by renaming",
    )


def test_a_full_disk_leaves_both_checkpoints_and_nothing_else(tmp_path: Path, held: Held) -> None:
    import resource

    for number in (1, 2):
        checkpoint.save(tmp_path, state(number))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
    try:
        with pytest.raises(
            BadInput, match=r"checkpoint\.pt: could not be saved \(File too large\); .* is intact"
        ):
            checkpoint.save(tmp_path, state(3, size=1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (
        number_in(tmp_path) == 2
        and checkpoint.read(tmp_path / PREVIOUS_CHECKPOINT).state["number"] == 1
    )
    assert {file.name for file in tmp_path.iterdir()} == {CHECKPOINT, PREVIOUS_CHECKPOINT}
    held(
        "a limit of file size in the middle of a save",
        1,
        "refused in one line, both checkpoints intact",
    )


def test_a_save_killed_at_a_random_moment_leaves_the_old_one_or_the_new_one(
    tmp_path: Path, times: Times, held: Held
) -> None:
    half_way, tries = 0, times(12, 100)
    for _ in range(tries):
        last = FORK.RawValue("i", 0)  # without a lock, with which it could be killed

        def save_for_ever(last: Any = last) -> None:
            for number in range(1, 1 << 30):
                checkpoint.save(tmp_path, state(number, size=1 << 20))
                last.value = number

        def has_saved_twice(last: Any = last) -> bool:
            return bool(last.value >= 2)

        process = forked(save_for_ever)
        wait_until(has_saved_twice)
        time.sleep(random.uniform(0, 0.03))
        process.kill()
        process.join()
        half_way += len(list(tmp_path.glob(f".{CHECKPOINT}.*")))
        assert number_in(tmp_path) in (last.value, last.value + 1)
    assert half_way, "some were killed half-way"
    held(
        "SIGKILL of a process that saves 4 MB again and again",
        tries,
        "the last one saved, or the one under way, whole",
    )


# --- damaged files


def test_any_changed_byte_and_any_truncation_is_noticed(
    trained: Trained, tmp_path: Path, times: Times, held: Held
) -> None:
    """In a real checkpoint. File systems lose the end of a file at multiples of 4 KiB."""
    content = bytearray((trained.model / CHECKPOINT).read_bytes())
    file, random_ = tmp_path / CHECKPOINT, random.Random(0)
    places = [0, 1, len(content) - 1, *random_.sample(range(len(content)), times(20, 500))]
    file.write_bytes(content)
    with file.open("r+b", buffering=0) as damaged:
        for place in places:
            os.pwrite(damaged.fileno(), bytes([content[place] ^ 1 << random_.randrange(8)]), place)
            with pytest.raises(checkpoint.Damaged):
                checkpoint.read(file)
            os.pwrite(damaged.fileno(), content[place : place + 1], place)
        assert checkpoint.read(file).state["finished"], "valid again once it is restored"
        cuts = range(0, len(content), 4096)
        cuts = cuts[:: max(1, len(cuts) // times(20, len(cuts)))]
        for cut in reversed(cuts):
            damaged.truncate(cut)
            with pytest.raises(checkpoint.Damaged):
                checkpoint.read(file)
    held(f"one bit of a checkpoint of {len(content) >> 20} MiB flipped", len(places), "noticed")
    held("a checkpoint cut off at multiples of 4 KiB", len(cuts), "noticed")


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture
def model_dir(trained: Trained, tmp_path: Path) -> Path:
    """A run that has saved more than once."""
    return Path(shutil.copytree(trained.model, tmp_path / "model"))


@pytest.mark.parametrize(
    "damage", [flip_a_bit, pytest.param(Path.unlink, marks=pytest.mark.long)], ids=["bit", "gone"]
)
def test_train_resumes_from_the_checkpoint_before_a_damaged_one_and_keeps_both(
    damage: Callable[[Path], object],
    model_dir: Path,
    data: Path,
    trained: Trained,
    call: Call,
    held: Held,
) -> None:
    before = checkpoint.read(model_dir / PREVIOUS_CHECKPOINT)
    damage(model_dir / CHECKPOINT)
    damaged = (model_dir / CHECKPOINT).read_bytes() if (model_dir / CHECKPOINT).exists() else None
    answer = call(train, "--workers", 1, *at(data, model_dir, trained.cache))
    assert answer.code == 0, answer
    assert (
        answer.stderr.startswith(f"Warning: {model_dir}/{CHECKPOINT}: ")
        and f"using the previous checkpoint, {PREVIOUS_CHECKPOINT}\n" in answer.stderr
    )
    assert f"after {before.state['images_seen']} images" in answer.stdout
    assert saved(model_dir)["images_seen"] > before.state["images_seen"]
    kept = [file.read_bytes() for file in model_dir.glob("checkpoint-*.pt")]
    assert kept == ([damaged] if damaged is not None else [])
    held(
        "the last checkpoint damaged or gone: train",
        1,
        "went on from the one before, with a warning; the damaged file was kept",
    )


def test_eval_uses_the_checkpoint_before_a_damaged_one(
    model_dir: Path, data: Path, trained: Trained, call: Call, held: Held
) -> None:
    flip_a_bit(model_dir / CHECKPOINT)
    answer = call(eval, *at(data, model_dir, trained.cache))
    assert answer.code == 0 and "using the previous checkpoint" in answer.stderr
    digest = hashlib.sha256((model_dir / PREVIOUS_CHECKPOINT).read_bytes()).hexdigest()
    assert f'"sha256": "{digest}"' in (model_dir / "eval_results.json").read_text()
    held(
        "the last checkpoint damaged: eval",
        1,
        "measured the one before, with a warning, and named it by its hash",
    )


def test_with_no_readable_checkpoint_nothing_is_deleted_and_no_run_starts(
    model_dir: Path, data: Path, trained: Trained, call: Call, held: Held
) -> None:
    for name in (CHECKPOINT, PREVIOUS_CHECKPOINT):
        flip_a_bit(model_dir / name)
    before = {file.name: file.read_bytes() for file in model_dir.iterdir()}
    for script in (train, eval):
        answer = call(script, *at(data, model_dir, trained.cache))
        assert answer.code == 2, answer
        assert re.search(
            r"checkpoint\.pt: damaged .*checkpoint\.previous\.pt: damaged .*: move them away, or train with --fresh",
            refusal(answer.stderr),
        )
    assert {file.name: file.read_bytes() for file in model_dir.iterdir()} == before
    held(
        "both checkpoints damaged",
        2,
        "refused in one line that names both; nothing deleted, nothing started over",
    )


class Payload:
    """Creates a file when it is unpickled without care."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_a_malicious_pickle_is_refused_and_does_not_run(
    tmp_path: Path, data: Path, trained: Trained, call: Call, held: Held
) -> None:
    body, model_dir = io.BytesIO(), tmp_path / "model"
    torch.save({"format": checkpoint.FORMAT, "weights": Payload(tmp_path / "ran")}, body)
    torch.load(io.BytesIO(body.getvalue()), weights_only=False)
    assert (tmp_path / "ran").exists(), "the payload works"
    (tmp_path / "ran").unlink()
    model_dir.mkdir()
    (model_dir / CHECKPOINT).write_bytes(body.getvalue() + hashlib.sha256(body.getvalue()).digest())
    for script in (train, eval):
        answer = call(script, *at(data, model_dir, trained.cache))
        assert answer.code == 2 and "not a Hogwear checkpoint" in refusal(answer.stderr)
    assert not (tmp_path / "ran").exists()
    held(
        "a malicious pickle with the right checksum, as checkpoint",
        2,
        "refused in one line; its payload did not run",
    )
