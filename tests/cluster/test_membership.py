"""Several machines, started by torchrun, train one model."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import CLASSES, ROOT, SIZE, Call, Completed, Trained, at, refusal, saved, without_test
from machines import LOOPBACK, Cluster

import eval
import train
from hogwear.training import checkpoint

Refuse = Callable[..., str]


@pytest.fixture
def cluster(tmp_path: Path, data: Path) -> Iterator[Cluster]:
    machines = Cluster(
        tmp_path,
        data,
        "--image-size",
        SIZE,
        "--batch-size",
        8,
        "--workers",
        1,
        "--sync-every",
        40,
        "--epochs",
        4,
    )
    yield machines
    machines.end()


def test_two_machines_train_one_model_and_rank_0_saves_it(
    cluster: Cluster, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        cluster.start(number, nnodes="2")
    cluster.wait_for("closed form: ")
    assert cluster.listening() == {LOOPBACK}, "on the chosen interface, never on all of them"
    assert set(cluster.codes(120).values()) == {0}, cluster.output()
    [folder] = cluster.folder.glob("model-*/checkpoint.pt")
    state = cluster.result()
    assert folder.parent == cluster.model(cluster.first())
    assert state["finished"] and state["machines"] == 2 and state["images_seen"] == 480
    assert [row["images"] for row in state["history"]] == [0, 480]
    assert state["best"]["val_acc"] >= 0.7
    assert re.search(r"Averaging: 13 times, \d+\.\d MB sent per machine", cluster.output())
    assert cluster.output().count("Done: ") == 1, "the other machines print nothing"
    cluster.require_nothing_left()
    monkeypatch.setenv(
        "TORCHELASTIC_RUN_ID", "test"
    )  # one of them is started once more, for the same job
    again = call(train, *at(cluster.data, folder.parent, cluster.folder / "cache-0"))
    assert (
        again.code == 0
        and "Job test is done" in again.stdout
        and cluster.result()["images_seen"] == 480
    )


@pytest.mark.long
def test_machines_resume_from_real_photos_only_and_evaluate_the_best_weights_again(
    cluster: Cluster, trained: Trained, call: Call, tmp_path: Path
) -> None:
    """One has a newer checkpoint of the built-in sample, the other one of val with one more photo."""
    cluster.data = without_test(cluster.data, tmp_path / "fewer")
    for name in CLASSES:
        sorted((cluster.data / "val" / name).iterdir())[0].unlink()
    for number in range(2):
        shutil.copytree(trained.model, cluster.model(number))
    state = saved(cluster.model(0))
    later = [row | {"epoch": 11.0 + number} for number, row in enumerate(state["history"])]
    photos = state["photos"] | {"is_sample": True}
    checkpoint.save(
        cluster.model(0), state | {"history": state["history"] + later, "photos": photos}
    )
    before = saved(cluster.model(1))["best"]
    assert call(eval, *at(cluster.data, cluster.model(1), trained.cache)).code == 0
    measured = json.loads((cluster.model(1) / "eval_results.json").read_text())["test_acc"]
    for number in range(2):
        cluster.start(number, "--epochs", 1, "--lr", 1e-7, nnodes="2")
    assert set(cluster.codes(120).values()) == {0}, cluster.output()
    output = cluster.output(cluster.first())
    assert "finished run" in output and "40 validation photos before, 35 now" in output
    assert f"accuracy {measured:.4f}, previously {before['val_acc']:.4f}." in output
    state = saved(cluster.model(cluster.first()))
    assert (
        [row["epoch"] for row in state["history"]][2:] == [10, 11]
        and not state["photos"]["is_sample"]
        and state["photos"]["val"]["count"] == 35
    )


@pytest.mark.long
def test_machines_with_an_empty_data_folder_keep_a_checkpoint_of_real_photos(
    cluster: Cluster, trained: Trained, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    cluster.data = tmp_path / "empty"
    for number in range(2):
        shutil.copytree(trained.model, cluster.model(number))
        cluster.start(number, nnodes="2", restarts=0)
    assert 0 not in cluster.codes(120).values()
    assert re.search(
        r"train.py: .*/empty: empty, but the checkpoint was trained on real photos",
        cluster.output(),
    )
    for number in range(2):
        assert (cluster.model(number) / "checkpoint.pt").read_bytes() == (
            trained.model / "checkpoint.pt"
        ).read_bytes()


@pytest.fixture
def refuse(call: Call, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refuse:
    def refuse(*flags: object, **environment: object) -> str:
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        answer: Completed = call(
            train,
            "--data-dir",
            data,
            "--model-dir",
            tmp_path / "model",
            "--cache-dir",
            tmp_path / "cache",
            *flags,
        )
        assert answer.code == 2 and not (tmp_path / "model").exists()
        return refusal(answer.stderr)

    return refuse


def test_several_torchrun_processes_on_one_machine_are_refused(refuse: Refuse) -> None:
    assert "--nproc-per-node=1" in refuse(RANK=0, WORLD_SIZE=4, LOCAL_WORLD_SIZE=2)


@pytest.mark.parametrize("flags", [("--fresh",), ("--time-budget", 60)])
def test_flags_for_a_single_machine_are_refused_in_a_cluster(
    refuse: Refuse, flags: tuple[object, ...]
) -> None:
    assert str(flags[0]) in refuse(*flags, RANK=0, WORLD_SIZE=2, LOCAL_WORLD_SIZE=1)


def test_a_single_machine_does_not_import_torch_distributed() -> None:
    """None of it, that is, which torch does not import by itself."""
    code = """
import sys, torch
def distributed(): return {name for name in sys.modules if name.startswith("torch.distributed")}
before = distributed()
import model, train, hogwear.training.trainer
assert distributed() == before, distributed() - before
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
