"""A project over time: its split, its cache and its photos change between real runs."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Call, Completed, Start, at, descendants, refusal, saved, wait_until
from machines import Cluster

import eval
import infer
import train
from hogwear.commands.export import main as export
from hogwear.data import contents, decoding
from hogwear.system.artifacts import EVALUATION, SPLIT
from hogwear.training.trainer import Trainer

TINY = ("--arch", "tinyvgg", "--image-size", 32, "--workers", 1)
ONCE = (*TINY, "--epochs", 1)


@dataclass(frozen=True)
class Project:
    """data/, model/ and .cache/ of somebody."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def where(self) -> tuple[object, ...]:
        return at(self.data, self.model, self.cache)

    def copy(self, folder: Path) -> "Project":
        return Project(Path(shutil.copytree(self.folder, folder)))

    def results(self) -> dict[str, Any]:
        return dict(json.loads((self.model / EVALUATION).read_text()))

    def split(self) -> dict[str, str]:
        """{hash: split}"""
        return dict(json.loads((self.model / SPLIT).read_text())["split"])

    def change_split(self, changed: dict[str, str]) -> None:
        told = json.loads((self.model / SPLIT).read_text())
        (self.model / SPLIT).write_text(json.dumps(told | {"split": told["split"] | changed}))


def content_of(file: Path) -> str:
    return decoding.hash_content(file.read_bytes()).hex()


def of_two_classes(photo_files: list[Path]) -> dict[str, list[Path]]:
    return {
        name: [file for file in photo_files if file.name.startswith(name)][:20]
        for name in ("footwear", "handbag")
    }


@pytest.fixture(scope="module")
def divided(
    photo_files: list[Path], start: Start, tmp_path_factory: pytest.TempPathFactory
) -> Project:
    """Photos of ours to divide, 14 of each class, trained on once."""
    project = Project(tmp_path_factory.mktemp("divided"))
    for name, files in of_two_classes(photo_files).items():
        (project.data / name).mkdir(parents=True)
        for file in files[:14]:
            shutil.copy(file, project.data / name)
    start("train.py", *ONCE, *project.where).ok()
    return project


@pytest.fixture(scope="module")
def given(
    photo_files: list[Path], start: Start, tmp_path_factory: pytest.TempPathFactory
) -> Project:
    """Photos that their owner has divided, trained on once."""
    project = Project(tmp_path_factory.mktemp("given"))
    for name, files in of_two_classes(photo_files).items():
        for split, part in {"train": files[:10], "val": files[10:14], "test": files[14:]}.items():
            (project.data / split / name).mkdir(parents=True)
            for file in part:
                shutil.copy(file, project.data / split / name)
    start("train.py", *ONCE, *project.where).ok()
    return project


def of_model(
    call: Call,
    script: Any,
    project: Project,
    *arguments: object,
    main: Callable[[Any], None] | None = None,
) -> Completed:
    return call(script, *project.where, *arguments, main=main)


# --- a split of ours


def test_test_photos_are_never_trained_on_even_if_classes_grow_and_the_cache_is_deleted(
    divided: Project, photo_files: list[Path], start: Start, call: Call, tmp_path: Path
) -> None:
    project = divided.copy(tmp_path / "project")
    before = project.split()
    for name, files in of_two_classes(photo_files).items():
        for file in files[14:]:
            shutil.copy(file, project.data / name)
    shutil.rmtree(project.cache)
    moved = replace(project, folder=project.folder.rename(tmp_path / "moved"))
    start("train.py", *ONCE, *moved.where).ok()
    after = moved.split()
    assert before.items() < after.items() and list(after)[: len(before)] == list(before)
    trained_on = set(
        contents.shorten_hashes(
            np.frombuffer(
                bytes.fromhex("".join(k for k, side in after.items() if side == "train")), np.uint8
            ).reshape(-1, 16)
        ).tolist()
    )
    assert set(saved(moved.model)["trained_on"].tolist()) == trained_on
    answer = of_model(call, eval, moved)
    assert answer.code == 0 and answer.stderr == "", answer.stderr
    assert (
        moved.results()["num_examples"] == sizes(after)["test"]
        and moved.results()["trained_on"] == 0
    )


def sizes(split: dict[str, str]) -> dict[str, int]:
    return {side: list(split.values()).count(side) for side in set(split.values())}


def test_the_split_is_saved_before_training_starts(
    divided: Project, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path)
    shutil.copytree(divided.data, project.data)

    def fit(run: Trainer, *arguments: object) -> None:
        assert (
            project.split() == divided.split()
            and run.state.split["count"] == 28
            and len(run.state.trained_on) == 20
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        of_model(call, train, project, *ONCE)


@pytest.mark.parametrize("damage", [pytest.param("deleted", marks=pytest.mark.long), "changed"])
def test_no_command_uses_a_checkpoint_without_its_split(
    damage: str, divided: Project, call: Call, start: Start, tmp_path: Path
) -> None:
    project = divided.copy(tmp_path / "project")
    file, lost = project.model / SPLIT, project.split()
    if damage == "deleted":
        file.unlink()
    else:
        test = next(photo for photo, side in lost.items() if side == "test")
        project.change_split({test: "train"})
    before = file.read_bytes() if file.exists() else None
    for answer in (
        of_model(call, eval, project), of_model(call, infer, project, "--responses-dir", tmp_path / "responses"), of_model(call, train, project, *ONCE),
        of_model(call, eval, project, main=export),
    ):  # fmt: skip
        what = "missing" if damage == "deleted" else "changed"
        assert answer.code == 2 and f"{file}: {what} since the checkpoint was trained" in refusal(
            answer.stderr
        )
        assert "restore it, or train with --fresh" in answer.stderr
    assert (file.read_bytes() if file.exists() else None) == before and not (
        project.model / EVALUATION
    ).exists()
    photo = next(project.data.glob("*/*"))
    assert (
        of_model(
            call, infer, project, "--responses-dir", tmp_path / "responses", "--images", photo
        ).code
        == 0
    ), "which needs no split"
    fresh = start("train.py", *ONCE, "--fresh", *project.where).ok()
    assert fresh.stderr == "" and of_model(call, eval, project).code == 0
    if damage == "changed":
        assert before and project.split() == json.loads(before)["split"], "--fresh keeps it"


def test_only_train_writes_the_split(
    divided: Project, photo_files: list[Path], call: Call, tmp_path: Path
) -> None:
    project = divided.copy(tmp_path / "project")
    written = (project.model / SPLIT).read_bytes()
    shutil.copy(of_two_classes(photo_files)["handbag"][19], project.data / "handbag" / "new.jpg")
    for answer in (
        of_model(call, eval, project),
        of_model(call, infer, project, "--responses-dir", tmp_path / "responses"),
    ):
        assert answer.code == 0
        assert (
            answer.stderr
            == f"Warning: 1 of 29 photos in {project.data} not in {project.model / SPLIT} yet, ignored; run train to assign them to a split\n"
        )
    assert (project.model / SPLIT).read_bytes() == written and project.results()[
        "num_examples"
    ] == sizes(project.split())["test"]


# --- one of the user's


def test_test_photos_that_were_trained_on_are_excluded_and_counted(
    given: Project, call: Call, tmp_path: Path
) -> None:
    project = given.copy(tmp_path / "project")
    moved = sorted(project.data.glob("train/*/*"))[:3]
    for file in moved:
        file.rename(project.data / "test" / file.parent.name / f"moved-{file.name}")
    shutil.copy(
        next(project.data.glob("train/*/*")), project.data / "test" / "handbag" / "copy.jpg"
    )
    answer = of_model(call, eval, project)
    assert (
        answer.code == 0
        and "Warning: 4 of 16 photos in test were used for training and are excluded\n"
        in answer.stderr
    )
    assert (project.results()["num_examples"], project.results()["trained_on"]) == (12, 4)
    original = of_model(call, eval, given)
    assert (
        original.stderr == ""
        and project.results()["data"]["fingerprint"] == given.results()["data"]["fingerprint"]
    ), "the same twelve"
    of_model(call, infer, project, "--responses-dir", tmp_path / "responses", "--num-images", 16)
    shown = [
        row["file"] for row in json.loads((tmp_path / "responses" / "predictions.json").read_text())
    ]
    assert len(shown) == 12 and not any("moved" in file or "copy" in file for file in shown)


def test_a_test_split_that_was_trained_on_is_refused(
    given: Project, call: Call, tmp_path: Path
) -> None:
    project = given.copy(tmp_path / "project")
    shutil.rmtree(project.data / "test")
    (project.data / "train").rename(project.data / "test")
    shutil.copytree(project.data / "val", project.data / "train")
    assert "20 of 20 photos in test were used for training" in refusal(
        of_model(call, eval, project).stderr
    )
    answer = of_model(call, infer, project, "--responses-dir", tmp_path / "responses")
    assert answer.code == 2 and "all 20 photos in test were used for training" in refusal(
        answer.stderr
    )


@pytest.mark.long
def test_photos_moved_from_train_to_val_do_not_select_the_weights(
    given: Project, start: Start, tmp_path: Path
) -> None:
    project = given.copy(tmp_path / "project")
    for file in sorted(project.data.glob("train/*/*"))[::4]:
        file.rename(project.data / "val" / file.parent.name / f"moved-{file.name}")
    before = saved(project.model)["trained_on"]
    further = start("train.py", *ONCE, *project.where).ok()
    assert (
        "Warning: 5 of 13 photos in val were used for training and are excluded\n" in further.stderr
    )
    assert saved(project.model)["trained_on"].tolist() == before.tolist(), "and nobody forgets"
    fresh = start("train.py", *ONCE, "--fresh", *project.where).ok()
    assert "trained on" not in fresh.stderr and len(saved(project.model)["trained_on"]) == 15


# --- the cache while train runs


@pytest.mark.parametrize(
    "replaced", [pytest.param(False, marks=pytest.mark.long), True], ids=["removed", "replaced"]
)
def test_train_survives_the_removal_of_the_cache(
    replaced: bool, given: Project, start: Start, tmp_path: Path
) -> None:
    project = given.copy(tmp_path / "project")
    script = start(
        "train.py", *TINY, "--epochs", 10_000, "--batch-size", 4, "--fresh", *project.where
    )
    script.wait_for("^initial:")
    folders = list(project.cache.glob("pixels/*/*/pixels.npy"))
    shutil.rmtree(project.cache / "pixels")
    if replaced:
        for file in folders:
            file.parent.mkdir(parents=True)
            np.save(file, np.zeros((3, 8, 8, 3), np.uint8))
    [worker] = descendants(script.pid)
    os.kill(worker, signal.SIGKILL)
    validated = script.stdout.count("\nepoch ")
    wait_until(lambda: script.stdout.count("\nepoch ") > validated or script.ended)
    script.process.terminate()
    assert script.code() == 128 + signal.SIGTERM, script.stderr


# --- several machines


@pytest.fixture
def cluster(divided: Project, tmp_path: Path) -> Iterator[Cluster]:
    machines = Cluster(tmp_path, divided.data, *ONCE, "--sync-every", 16)
    yield machines
    machines.end()


@pytest.mark.long
def test_machines_use_the_split_of_the_machine_that_has_one(
    cluster: Cluster, divided: Project
) -> None:
    told = json.loads((divided.model / SPLIT).read_text())
    sides = {"train": "val", "val": "test", "test": "train"}
    one, other = [photo for photo, side in told["split"].items() if side != "train"][:2]
    told["split"] |= {photo: sides[told["split"][photo]] for photo in (one, other)}
    cluster.model(1).mkdir()
    (cluster.model(1) / SPLIT).write_text(json.dumps(told))
    for number in (1, 0):  # the first one is rank 0, as long as numbers of processes grow
        cluster.start(number, nnodes="2")
    assert set(cluster.codes(120).values()) == {0}, cluster.output()
    assert all(
        json.loads((cluster.model(number) / SPLIT).read_text()) == told for number in range(2)
    )
    assert len(cluster.result()["trained_on"]) == sizes(told["split"])["train"]
