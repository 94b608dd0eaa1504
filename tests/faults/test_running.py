"""Runs that are killed, corrupted or started twice: training continues, or ends with the reason."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers import (
    CLASSES,
    FASHION5,
    FAST,
    SIZE,
    SMALL_RUN,
    Call,
    Held,
    Script,
    Start,
    Times,
    Trained,
    at,
    descendants,
    is_running,
    refusal,
    same_run,
    saved,
    wait_until,
    without_test,
)

import eval
import infer
import model
from hogwear.commands import export
from hogwear.training.hyperparameters import MAX_ROLLBACKS

FOUR = tuple(name for name in CLASSES if name != "footwear")

# --- train is killed


@dataclass(frozen=True)
class Kill:
    """A run that was killed: images saved before and after, its processes and shared memory."""

    before: int
    after: int
    resumed_from: int | None
    processes: set[int]
    shared_memory: set[str]


def shared_memory(pids: set[int]) -> set[str]:
    """The files in /dev/shm that these processes have mapped."""
    maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids if is_running(pid))
    return set(re.findall(r"/dev/shm/\S+", maps))


def images_saved(model_dir: Path) -> int:
    """How many images the run in a checkpoint has seen; 0 if there is none."""
    is_there = (model_dir / "checkpoint.pt").exists()
    return int(saved(model_dir)["images_seen"]) if is_there else 0


def wait_until_saved(model_dir: Path, images: int) -> None:
    """Wait until the checkpoint is from after more than so many images."""
    wait_until(lambda: images_saved(model_dir) > images)


def test_a_run_killed_at_any_moment_resumes_with_any_number_of_workers(
    data: Path, trained: Trained, start: Start, tmp_path: Path, times: Times, held: Held
) -> None:
    """Runs with 1 and 2 workers, one after the other; the last is terminated, so it saves."""
    kills: list[Kill] = []
    tries = times(1, 100)
    for number in range(tries + 1):
        last, workers = number == tries, 2 - number % 2
        script = start(
            "train.py",
            *SMALL_RUN,
            "--epochs",
            1000,
            "--workers",
            workers,
            *at(data, tmp_path, trained.cache),
        )
        # One is killed as soon as it has begun, the next after it has saved what it learned.
        script.wait_for("^Resuming" if number else "^closed form")
        if last or number % 2 == 0:
            wait_until_saved(tmp_path, kills[-1].after if kills else 0)
        time.sleep(random.uniform(0, 1))
        processes = descendants(script.pid)
        mapped = shared_memory({script.pid, *processes})
        before = saved(tmp_path)["images_seen"]
        os.kill(script.pid, signal.SIGTERM if last else signal.SIGKILL)
        assert script.process.wait(60) == (143 if last else -signal.SIGKILL)
        resumed = re.search(r"Resuming .* after (\d+) images", script.stdout)
        after = saved(tmp_path)["images_seen"]
        kills.append(Kill(before, after, int(resumed[1]) if resumed else None, processes, mapped))

    assert kills[0].resumed_from is None
    assert all(kill.before <= kill.after for kill in kills)
    assert [kill.resumed_from for kill in kills[1:]] == [kill.after for kill in kills[:-1]], (
        "no run starts from an earlier image"
    )
    assert kills[-1].after > kills[0].after > 0
    held(
        "SIGKILL of train at a random moment",
        tries,
        "the next run went on from the last image saved, and never from an earlier one",
    )

    assert len(kills[0].processes) >= 2 and kills[0].shared_memory
    wait_until(lambda: not any(is_running(pid) for kill in kills for pid in kill.processes))
    assert not [file for kill in kills for file in kill.shared_memory if Path(file).exists()]
    held("SIGKILL of train: its workers, and its files in /dev/shm", tries, "none was left")


@pytest.mark.long
def test_a_run_that_is_killed_while_its_classes_change_leaves_the_old_network_or_the_new_one(
    data: Path, trained: Trained, start: Start, tmp_path: Path, times: Times, held: Held
) -> None:
    """The network of the classes before is there in any case, under one name or another."""
    four, tries, found = Path(shutil.copytree(data, tmp_path / "four")), times(1, 40), set()
    for split in four.iterdir():
        shutil.rmtree(split / "footwear")
    old = (trained.model / "checkpoint.pt").read_bytes()
    for number in range(tries):
        folder = Path(shutil.copytree(trained.model, tmp_path / f"model-{number}"))
        script = start("train.py", "--workers", 1, *at(four, folder, trained.cache))
        script.wait_for("^Plan: " if number % 2 else "^classes changed: ")
        time.sleep(random.uniform(0, 2))
        script.kill()
        names = tuple(saved(folder)["class_names"])
        assert names == (CLASSES if (folder / "checkpoint.pt").read_bytes() == old else FOUR)
        assert old in [file.read_bytes() for file in folder.glob("checkpoint*.pt")]
        assert model.load(folder, FAST).class_names == names
        found.add(names)
    assert FOUR in found
    held(
        "SIGKILL of train at a random moment after a class was removed",
        tries,
        "the old checkpoint or the new one in its place, the old one kept beside it",
    )


@pytest.mark.long
def test_a_run_killed_after_its_first_stage_leaves_a_model_that_is_at_least_as_good(
    data: Path,
    trained: Trained,
    start: Start,
    call: Call,
    tmp_path: Path,
    times: Times,
    held: Held,
) -> None:
    """Without a test split, eval measures the validation photos."""
    photos, tries = without_test(data, tmp_path / "data"), times(1, 20)
    for number in range(tries):
        folder = tmp_path / str(number)
        where = at(photos, folder, trained.cache)
        # At this learning rate, training makes a good classifier worse.
        spoil = "--arch", "efficientnet_lite0", "--lr", 0.3
        more = spoil if number % 4 in (0, 3) else ("--arch", "tinyvgg")
        script = start("train.py", *SMALL_RUN, *more, "--epochs", 1000, "--seed", number, *where)
        script.wait_for("^closed form|^initial")
        if number % 2 == 0:  # after a later validation has been saved, too

            def has_trained(folder: Path = folder) -> bool:
                return len(saved(folder)["history"]) > 1

            wait_until(has_trained)
        time.sleep(random.uniform(0, 5))
        os.kill(script.pid, signal.SIGKILL)
        script.process.wait(60)
        for command in eval, infer, export:
            to = ("--responses-dir", folder / "responses") if command is infer else ()
            answer = call(command, *where, *to)
            assert answer.code == 0, answer
        state = saved(folder)
        first, best = state["history"][0], state["best"]
        assert first["epoch"] == 0 and best["val_loss"] <= first["val_loss"]
        measured = json.loads((folder / "eval_results.json").read_text())
        loss, accuracy = measured["calibration"]["loss_after"], measured["test_acc"]
        assert (loss, accuracy) == pytest.approx((best["val_loss"], best["val_acc"]), abs=1e-6)
    held(
        "SIGKILL of train at a random moment after its first stage",
        tries,
        "eval, infer and export worked, with a validation loss no higher than after that stage",
    )


INTERRUPTIONS = signal.SIGINT, signal.SIGTERM, signal.SIGKILL


@pytest.mark.long
def test_one_worker_interrupted_many_times_ends_with_the_same_weights(
    data: Path, trained: Trained, start: Start, tmp_path: Path, held: Held
) -> None:
    tries, done, images = 10, 0, 0
    arguments = (
        *SMALL_RUN,
        "--epochs",
        120,
        "--workers",
        1,
        "--cache-dir",
        trained.cache,
        "--data-dir",
        data,
    )
    start("train.py", *arguments, "--model-dir", tmp_path / "whole").ok(seconds=300)
    while done < tries:
        script = start("train.py", *arguments, "--model-dir", tmp_path / "parts")
        script.wait_for("^Precision")
        if done > 2:  # the first ones are interrupted in the closed form, or soon after it
            wait_until_saved(tmp_path / "parts", images)
        time.sleep(random.uniform(0, 0.5))
        os.kill(script.pid, INTERRUPTIONS[done % 3])
        assert script.code() != 0, "interrupted in time"
        images = images_saved(tmp_path / "parts")
        done += 1
    assert images > 0
    start("train.py", *arguments, "--model-dir", tmp_path / "parts").ok(seconds=300)
    assert same_run(saved(tmp_path / "parts"), saved(tmp_path / "whole"))
    held(
        "one worker interrupted (SIGINT, SIGTERM, SIGKILL) and resumed",
        tries,
        "to the bit the weights of the run that was not interrupted",
    )


@pytest.mark.long
@pytest.mark.skipif(not FASHION5.is_dir(), reason="NO FASHION5 to compare accuracies on")
def test_two_workers_interrupted_are_as_accurate_as_not_interrupted(
    start: Start, tmp_path: Path, held: Held
) -> None:
    accuracies: dict[str, list[float]] = {"not interrupted": [], "interrupted": []}
    interruptions = 0
    for seed in range(5):
        for how, found in accuracies.items():
            arguments = (
                "--epochs",
                2,
                "--image-size",
                128,
                "--workers",
                2,
                "--seed",
                seed,
                *at(FASHION5, tmp_path / f"{how}-{seed}", tmp_path / "cache"),
            )
            for number in range(10 if how == "interrupted" else 0):
                script = start("train.py", *arguments)
                script.wait_for("^Plan")

                def trains_or_has_ended(script: Script = script) -> bool:
                    return script.process.poll() is not None or len(descendants(script.pid)) >= 2

                wait_until(trains_or_has_ended)
                time.sleep(random.uniform(0, 3))
                os.kill(script.pid, INTERRUPTIONS[number % 3])
                if script.code() == 0:
                    break
                interruptions += 1
            if not finished(tmp_path / f"{how}-{seed}"):
                start("train.py", *arguments).ok(seconds=300)
            found.append(float(saved(tmp_path / f"{how}-{seed}")["best"]["val_acc"]))
    means = {how: float(np.mean(found)) for how, found in accuracies.items()}
    assert abs(means["interrupted"] - means["not interrupted"]) <= 0.003, accuracies
    held(
        "two workers on fashion5, five seeds, interrupted (SIGINT, SIGTERM, SIGKILL) and resumed", interruptions,
        f"mean validation accuracy {means['interrupted']:.4f}, not interrupted {means['not interrupted']:.4f}",
    )  # fmt: skip


def finished(model_dir: Path) -> bool:
    return (model_dir / "checkpoint.pt").exists() and saved(model_dir)["finished"]


# --- workers are killed


def test_killed_workers_are_replaced_and_the_run_finishes(
    data: Path, trained: Trained, start: Start, tmp_path: Path, times: Times, held: Held
) -> None:
    tries = times(2, 50)
    epochs = 16 * tries  # enough for a kill to come before the end on fast CPUs, too
    script = start(
        "train.py",
        *SMALL_RUN,
        "--epochs",
        epochs,
        "--workers",
        2,
        *at(data, tmp_path, trained.cache),
    )
    script.wait_for("^closed form")
    killed: set[int] = set()

    def workers() -> list[int]:
        """The two of the run, unless a process solves a head at the moment."""
        alive = sorted(filter(is_running, descendants(script.pid)))
        return alive if len(alive) == 2 else []

    for _ in range(tries):
        time.sleep(random.uniform(0, 0.5))
        wait_until(workers)
        while not (alive := workers()):
            pass
        worker = random.choice(alive)
        killed.add(worker)
        os.kill(worker, signal.SIGKILL)
    assert script.code(60 + 10 * tries) == 0, script.stderr
    state = saved(tmp_path)
    assert state["finished"] and state["images_seen"] == 120 * epochs, (
        "every image of every epoch counted once"
    )
    assert sum(row["images"] for row in state["history"]) == 120 * epochs
    assert state["best"]["val_acc"] >= 0.7, "and what was learned was kept"
    assert len(killed) == tries and not any(map(is_running, killed))
    held(
        "SIGKILL of a worker at a random moment",
        tries,
        "replaced; the run ended with every image of every epoch trained on",
    )


@pytest.mark.long
def test_three_deaths_in_a_row_end_the_run_with_the_reason_and_a_checkpoint(
    data: Path, trained: Trained, start: Start, tmp_path: Path, held: Held
) -> None:
    slow = (
        "--image-size",
        SIZE,
        "--batch-size",
        120,
        "--epochs",
        300,
        "--workers",
        1,
    )  # a step takes half a second
    script = start("train.py", *slow, *at(data, tmp_path, trained.cache))
    script.wait_for("^epoch 9:")  # the next validation is far away
    killed: set[int] = set()
    while script.process.poll() is None:
        for worker in descendants(script.pid) - killed:
            killed.add(worker)
            os.kill(worker, signal.SIGKILL)
    assert script.code() == 2 and len(killed) == 3
    assert re.search(
        r"a worker died 3 times in a row \(SIGKILL\); memory ran out: use fewer --workers",
        script.stderr,
    )
    before = saved(tmp_path)["images_seen"]
    assert before >= 9 * 120
    again = start("train.py", "--workers", 1, *at(data, tmp_path, trained.cache))
    again.wait_for(f"Resuming .* after {before} images")
    again.wait_for("^epoch")
    again.kill()
    held(
        "SIGKILL of each of three workers in one place",
        3,
        "the run ended with the reason and a checkpoint; the next went on",
    )


# --- training diverges


def spoil_weights(pid: int, bytes_of_weights: int) -> None:
    """Write NaN into the shared weights of a running train."""
    page = os.sysconf("SC_PAGESIZE")
    size = -(-bytes_of_weights // page) * page
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if "/dev/shm/torch" in line and last - first == size:
            with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
                memory.seek(first + bytes_of_weights // 8 * 4)
                memory.write(np.full(1000, np.nan, np.float32).tobytes())
            return
    raise AssertionError("no weights in shared memory")


def weights_size() -> int:
    return sum(p.nbytes for p in model.build("efficientnet_lite0", len(CLASSES), SIZE).parameters())


@pytest.mark.long
def test_weights_that_are_nan_are_noticed_and_training_rolls_back(
    data: Path, trained: Trained, start: Start, tmp_path: Path, held: Held
) -> None:
    arguments = (
        *SMALL_RUN,
        "--epochs",
        1000,
        "--lr",
        0.02,
        "--workers",
        2,
        *at(data, tmp_path, trained.cache),
    )
    script = start("train.py", *arguments)
    # After a line, the next validation is far away. It would not notice what happens to the
    # weights, because it sets them to their average for a while.
    for rollback in range(1, MAX_ROLLBACKS + 1):
        script.wait_for("^closed form" if rollback == 1 else r"^epoch 8\.")
        spoil_weights(script.pid, weights_size())
        script.wait_for_warning("training diverged", rollback)
        assert f"half the learning rate, {0.02 / 2**rollback:g}" in script.stderr
    script.wait_for(r"(?s)^epoch .*\nepoch ")
    assert not re.search(r"^epoch .*\bnan\b", script.stdout, re.MULTILINE)
    spoil_weights(script.pid, weights_size())
    assert script.code() == 2
    assert re.search(r"training diverged 3 times .* --fresh --lr 0\.0005", script.stderr)
    state = saved(tmp_path)
    kept = {**state["snapshot"]["weights"], "average": state["snapshot"]["average"]}
    assert all(bool(weights.isfinite().all()) for weights in kept.values())
    assert state["rollbacks"] == MAX_ROLLBACKS and state["history"]
    held(
        "NaN written into the shared weights of a run",
        MAX_ROLLBACKS + 1,
        "back to the last good ones with half the learning rate, twice; then ended with the reason, the checkpoint good",
    )


@pytest.mark.long
def test_a_learning_rate_that_is_far_too_high_is_halved(
    data: Path, trained: Trained, start: Start, tmp_path: Path, held: Held
) -> None:
    arch = "--arch", "tinyvgg", "--image-size", SIZE, "--batch-size", 4, "--epochs", 12
    script = start(
        "train.py",
        *arch,
        "--lr",
        9.9,
        "--momentum",
        0.99,
        "--workers",
        1,
        *at(data, tmp_path, tmp_path / "cache"),
    )
    assert script.code() in (0, 2), script.stderr
    assert re.search(
        r"Warning: training diverged \(loss [\d.]+\) after \d+ images: back to \d+, with half the learning rate, 4\.95",
        script.stderr,
    )
    assert saved(tmp_path)["rollbacks"] >= 1
    held("a learning rate of 9.9", 1, "noticed within an epoch, and halved")


# --- two at the same time


@pytest.mark.long
def test_a_second_train_on_the_same_folder_is_refused_and_a_killed_one_holds_no_lock(
    data: Path, trained: Trained, start: Start, tmp_path: Path, times: Times, held: Held
) -> None:
    arguments = *SMALL_RUN, "--epochs", 1000, "--workers", 2, *at(data, tmp_path, trained.cache)
    first = start("train.py", *arguments)
    first.wait_for("^closed form")
    second = start("train.py", *arguments)
    assert second.code() == 2 and second.stdout == ""
    assert f"{tmp_path}: in use by another train" in refusal(second.stderr)

    for name in ("eval.py", "infer.py")[: times(1, 2)]:
        where = at(data, tmp_path, trained.cache) + (
            ("--responses-dir", tmp_path / "responses") if name == "infer.py" else ()
        )
        script = start(name, *where).ok()
        assert script.stderr == ""
    assert first.process.poll() is None

    workers = descendants(first.pid)
    for worker in workers:  # they outlive their parent, as one in the middle of a long step would
        os.kill(worker, signal.SIGSTOP)
    os.kill(first.pid, signal.SIGKILL)
    first.process.wait(60)
    third = start("train.py", *arguments)
    third.wait_for("^Resuming")
    third.kill()
    for worker in workers:
        os.kill(worker, signal.SIGCONT)
    wait_until(lambda: not any(map(is_running, workers)))
    held(
        "a second train on the same model folder",
        2,
        "refused at once; after SIGKILL of the first, whose workers still lived, it went on. Eval and infer worked meanwhile",
    )


# --- the disk and memory of a whole run


@pytest.mark.long
def test_a_disk_that_fails_ends_the_run_with_the_reason_and_the_next_run_resumes(
    data: Path, trained: Trained, start: Start, tmp_path: Path, held: Held
) -> None:
    script = start(
        "train.py", *SMALL_RUN, "--epochs", 1000, "--workers", 1, *at(data, tmp_path, trained.cache)
    )
    script.wait_for("^closed form")
    with subprocess.Popen(
        [
            "strace",
            "-qq",
            "-e",
            "trace=fsync",
            "-e",
            "inject=fsync:error=EIO",
            "-p",
            str(script.pid),
        ],
        stderr=subprocess.DEVNULL,
    ):
        assert script.code() == 2
    assert re.search(
        r"(checkpoint\.pt: could not be saved \(|metrics\.csv: )Input/output error",
        script.stderr.splitlines()[-1],
    )
    before = saved(tmp_path)["images_seen"]
    again = start("train.py", "--workers", 1, *at(data, tmp_path, trained.cache))
    again.wait_for(f"Resuming .* after {before} images")
    again.wait_for("^epoch")
    again.kill()
    held(
        "EIO from fsync in the middle of a run",
        1,
        "ended with the reason and the checkpoint before intact; the next run went on",
    )


@pytest.mark.long
def test_memory_that_runs_out_ends_the_run_with_the_reason(
    data: Path, start: Start, tmp_path: Path, held: Held
) -> None:
    """Under a limit of address space. The memory limits of containers are in test_containers.py."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))

    large = "--image-size", 1024, "--batch-size", 120, "--epochs", 1, "--workers", 1
    script = start("train.py", *large, *at(data, tmp_path, tmp_path / "cache"), preexec_fn=limited)
    assert script.code() == 2
    assert "memory ran out: ulimit -v allows 6291456 KiB" in refusal(script.stderr)
    held("an allocation that fails in a worker", 1, "ended in one line with the reason and the fix")
