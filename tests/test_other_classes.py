"""What the commands do when classes were added, removed or renamed since the checkpoint."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    CLASSES,
    FAST,
    SIZE,
    Call,
    Start,
    Trained,
    at,
    flat,
    refusal,
    saved,
    stopped_after,
    without_test,
)

import eval
import infer
import model
import train
from hogwear.commands import export
from hogwear.system import flags
from hogwear.training import checkpoint

FOUR = tuple(name for name in CLASSES if name != "footwear")
RENAMED = (*FOUR, "umbrellas")  # footwear moves to the end
ROWS = [0, 1, 3, 4, 2]  # of CLASSES
ONCE = "--epochs", 1, "--workers", 1
SOLVED = "--epochs", 0, "--workers", 1
Evaluate = Callable[[Path, Path], float]
TINY = "--arch", "tinyvgg", "--image-size", 32, "--workers", 1, "--batch-size", 8


@pytest.fixture(scope="module")
def cache(trained: Trained) -> Path:
    return trained.cache


@pytest.fixture(scope="module")
def four(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos without footwear."""
    folder = Path(shutil.copytree(data, tmp_path_factory.mktemp("four") / "data"))
    for split in ("train", "val", "test"):
        shutil.rmtree(folder / split / "footwear")
    return folder


@pytest.fixture(scope="module")
def renamed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos with umbrellas instead of footwear."""
    folder = Path(shutil.copytree(data, tmp_path_factory.mktemp("renamed") / "data"))
    for split in ("train", "val", "test"):
        (folder / split / "footwear").rename(folder / split / "umbrellas")
    return folder


@pytest.fixture
def folder(trained: Trained, tmp_path: Path) -> Path:
    """A model folder with a finished run on five classes."""
    return Path(shutil.copytree(trained.model, tmp_path / "model"))


@pytest.fixture(scope="module")
def interrupted(data: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a run on five classes, stopped in its third epoch."""
    folder = tmp_path_factory.mktemp("interrupted")
    small = "--image-size", SIZE, "--epochs", 4, "--batch-size", 8, "--workers", 1
    with stopped_after(35):
        train.main(flags.parse(train.Settings, [*map(str, (*small, *at(data, folder, cache)))]))
    assert not saved(folder)["finished"]
    return folder


@pytest.fixture
def evaluate(call: Call, cache: Path) -> Evaluate:
    """evaluate(data, model): the accuracy that eval measures."""

    def evaluate(data: Path, folder: Path) -> float:
        assert call(eval, *at(data, folder, cache)).code == 0
        return float(json.loads((folder / "eval_results.json").read_text())["test_acc"])

    return evaluate


def stages(state: dict[str, Any]) -> list[tuple[float, str]]:
    return [(row["epoch"], row["stage"]) for row in state["history"]]


# --- added and removed


def test_a_class_that_is_removed_and_added_again_costs_a_pass_each_and_both_are_saved_at_once(
    folder: Path, data: Path, four: Path, cache: Path, call: Call
) -> None:
    before = saved(folder)
    before["best"]["weights"]["last.bias"] += (
        1e-5  # on some CPUs, the untrained network is the best
    )
    checkpoint.save(folder, {key: before[key] for key in before if key not in checkpoint.HEADER})
    old = (folder / "checkpoint.pt").read_bytes()
    features = sorted(cache.rglob("features-*"))
    answer = call(train, *SOLVED, *at(four, folder, cache))
    assert answer.code == 0, answer
    assert "The classes have changed since the last run: removed footwear." in answer.stdout
    assert f"Starting from the network in {folder}/checkpoint.pt" in answer.stdout
    assert "\nclasses changed: " in answer.stdout and "\nepoch" not in answer.stdout
    fewer = saved(folder)
    assert fewer["class_names"] == list(FOUR) and fewer["history"][:3] == before["history"]
    assert stages(fewer)[3:] == [(10, "classes changed")] and fewer["finished"]
    assert fewer["best"]["val_loss"] == fewer["history"][3]["val_loss"], "none of five classes"
    assert (fewer["ridge"], fewer["forecast"]) == (before["ridge"], None)
    tails = (state["best"]["weights"]["last.weight"] for state in (before, fewer))
    assert torch.equal(*tails), "the network is kept"
    assert sorted(cache.rglob("features-*")) == features != [], "those that new runs begin with"
    [kept] = folder.glob("checkpoint-*.pt")
    assert kept.read_bytes() == old and f"The old checkpoint is kept as {kept}." in answer.stdout
    assert call(eval, *at(four, folder, cache)).code == 0

    answer = call(train, *ONCE, *at(data, folder, cache))
    assert answer.code == 0 and "the last run: added footwear." in answer.stdout, answer
    again = saved(folder)
    assert again["class_names"] == list(CLASSES)
    assert stages(again)[4:] == [(10, "classes changed"), (11, "hogwild")]
    with (folder / "metrics.csv").open(newline="") as file:
        assert [row["stage"] for row in csv.DictReader(file)][4:] == ["classes changed", "hogwild"]
    # The tail has not changed in between, so five classes have the head that they would have had.
    solved, best = again["history"][4], before["best"]
    assert again["start_loss"] == solved["val_loss"]
    assert abs(solved["val_acc"] - best["val_acc"]) <= 2 / 40
    assert best["val_loss"] / 2 < solved["val_loss"] < best["val_loss"] * 2


@pytest.mark.long
def test_the_first_classifier_of_an_untrained_network_is_that_of_a_new_run(
    data: Path, four: Path, cache: Path, call: Call, tmp_path: Path
) -> None:
    small = "--image-size", SIZE, *SOLVED
    for name, photos in (("new", data), ("grown", four), ("grown", data)):
        answer = call(train, *small, *at(photos, tmp_path / name, cache))
        assert answer.code == 0 and "expected accuracy" in answer.stdout, answer
    new, grown = saved(tmp_path / "new"), saved(tmp_path / "grown")
    assert stages(grown) == [(0, "closed form"), (0, "classes changed")]
    for key in "forecast", "ridge", "class_names":
        assert new[key] == grown[key], key
    assert new["history"][0]["val_loss"] == grown["history"][1]["val_loss"]
    assert torch.equal(flat(new["best"]["weights"]), flat(grown["best"]["weights"]))


def test_an_interrupted_run_ends_where_the_classes_change(
    interrupted: Path, four: Path, cache: Path, call: Call, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(interrupted, tmp_path / "model"))
    before = saved(folder)
    answer = call(train, "--epochs", 2, "--workers", 1, *at(four, folder, cache))
    assert answer.code == 0, answer
    assert f"The interrupted run ends after {before['images_seen']} images." in answer.stdout
    state = saved(folder)
    assert state["hyperparameters"]["epochs"] == 2 and state["finished"]
    done = round(before["snapshot"]["epochs_done"], 2)
    rows = stages(state)[len(before["history"]) :]
    assert rows[0] == (done, "classes changed") and 2 < done < 3
    assert rows[-1] == (5, "hogwild"), "two epochs after three"


def test_a_network_trained_from_scratch_keeps_the_rows_of_the_classes_that_remain(
    data: Path, four: Path, cache: Path, call: Call, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    assert call(train, *TINY, "--epochs", 6, *at(four, folder, cache)).code == 0
    before = saved(folder)
    answer = call(train, *SOLVED, *at(data, folder, cache))
    assert answer.code == 0 and "\nclasses changed: " in answer.stdout, answer
    after = saved(folder)
    weight, old = (state["best"]["weights"]["head.weight"] for state in (after, before))
    assert torch.equal(weight[[0, 1, 3, 4]], old) and not weight[2].any()
    assert stages(after)[-1] == (6, "classes changed")
    answer = call(train, "--epochs", 1, "--workers", 1, *at(data, folder, cache))
    assert answer.code == 0 and stages(saved(folder))[-1] == (7, "hogwild"), answer
    assert saved(folder)["start_loss"] == after["best"]["val_loss"]


@pytest.mark.parametrize("line", ["Plan: ", "classes changed: "])
def test_a_run_that_is_killed_leaves_the_old_network_or_the_new_one(
    line: str,
    folder: Path,
    data: Path,
    four: Path,
    cache: Path,
    start: Start,
    call: Call,
) -> None:
    script = start("train.py", "--workers", 1, *at(four, folder, cache))
    script.wait_for(f"^{line}")
    script.kill()
    names = model.load(folder, FAST).class_names
    assert names in ((FOUR,) if line == "classes changed: " else (CLASSES, FOUR))
    assert call(eval, *at(four if names == FOUR else data, folder, cache)).code == 0
    if names == CLASSES:
        assert call(train, *SOLVED, *at(four, folder, cache)).code == 0
        assert saved(folder)["class_names"] == list(FOUR)


@pytest.mark.parametrize("script", [eval, infer, export])
def test_other_commands_need_the_classes_of_the_checkpoint(
    script: Any,
    trained: Trained,
    four: Path,
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = call(script, *at(four, trained.model, trained.cache))
    said = refusal(answer.stderr)
    assert answer.code == 2 and ", ".join(FOUR) in said and ", ".join(CLASSES) in said
    assert "or run train, which adapts the network to the new classes" in said


# --- renamed


def test_a_renamed_class_keeps_its_row_and_every_figure(
    folder: Path, renamed: Path, data: Path, cache: Path, call: Call, evaluate: Evaluate
) -> None:
    before, accuracy = saved(folder), evaluate(data, folder)
    rename = *SOLVED, "--rename", "footwear=umbrellas"
    answer = call(train, *rename, *at(renamed, folder, cache))
    assert answer.code == 0, answer
    said = answer.stdout
    assert "changed since the last run: renamed footwear to umbrellas." in said
    assert "The photos have changed" not in said and "evaluated again" not in said
    after = saved(folder)
    assert after["class_names"] == list(RENAMED) and after["history"] == before["history"]
    old, new = before["best"], after["best"]
    assert torch.equal(new["weights"]["head.weight"], old["weights"]["head.weight"][ROWS])
    quantiles = [best.pop("novelty_quantiles") for best in (new, old)]
    assert torch.equal(*quantiles) and {**new, "weights": 0} == {**old, "weights": 0}
    assert not list(folder.glob("checkpoint-*.pt")), "nothing is lost"
    assert (after["forecast"], after["ridge"]) == (before["forecast"], before["ridge"])
    assert evaluate(renamed, folder) == accuracy
    answer = call(train, *rename, *at(renamed, folder, cache))
    assert answer.code == 0 and "The classes have changed" not in answer.stdout, "it is done"


def test_other_photos_of_a_renamed_class_are_noticed(
    folder: Path, renamed: Path, cache: Path, call: Call, tmp_path: Path
) -> None:
    photos = without_test(renamed, tmp_path / "fewer")
    sorted((photos / "train" / "umbrellas").iterdir())[0].unlink()
    answer = call(train, *SOLVED, "--rename", "footwear=umbrellas", *at(photos, folder, cache))
    assert answer.code == 0 and "120 training photos before, 119 now." in answer.stdout, answer
    assert stages(saved(folder))[3:] == [(10, "closed form")]


def test_an_interrupted_run_resumes_with_a_renamed_class(
    interrupted: Path, renamed: Path, cache: Path, call: Call, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(interrupted, tmp_path / "model"))
    images = saved(folder)["images_seen"]
    answer = call(
        train, "--rename", "footwear=umbrellas", "--workers", 1, *at(renamed, folder, cache)
    )
    assert answer.code == 0 and f"after {images} images" in answer.stdout, answer
    state = saved(folder)
    assert state["class_names"] == list(RENAMED) and state["images_seen"] == 4 * 120
    assert "classes changed" not in answer.stdout and state["history"][-1]["val_acc"] > 0.5


def test_without_rename_it_is_a_class_less_and_a_new_one(
    folder: Path, renamed: Path, cache: Path, call: Call
) -> None:
    answer = call(train, *SOLVED, *at(renamed, folder, cache))
    assert answer.code == 0 and "added umbrellas; removed footwear." in answer.stdout, answer
    assert "add --rename footwear=umbrellas" in answer.stdout
    assert stages(saved(folder))[3:] == [(10, "classes changed")]


REFUSED: dict[str, tuple[object, ...]] = {
    "the checkpoint has no class shoes; its classes are bottomwear": ("--rename", "shoes=umbrellas"),
    "has a class handbag already; to merge both": ("--rename", "footwear=handbag"),
    "there is no class boots in": ("--rename", "footwear=boots"),
    "'footwear' is not OLD=NEW": ("--rename", "footwear"),
    "--rename: a new run starts (--fresh)": ("--fresh", "--rename", "footwear=umbrellas"),
}  # fmt: skip


@pytest.mark.parametrize(("message", "arguments"), REFUSED.items())
def test_a_renaming_that_cannot_be_is_refused_in_one_line(
    message: str,
    arguments: tuple[object, ...],
    trained: Trained,
    renamed: Path,
    call: Call,
) -> None:
    before = (trained.model / "checkpoint.pt").read_bytes()
    answer = call(train, *arguments, *at(renamed, trained.model, trained.cache))
    assert answer.code == 2 and message in refusal(answer.stderr)
    assert (trained.model / "checkpoint.pt").read_bytes() == before


def test_without_a_checkpoint_there_is_nothing_to_rename(
    renamed: Path, cache: Path, call: Call, tmp_path: Path
) -> None:
    answer = call(train, "--rename", "footwear=umbrellas", *at(renamed, tmp_path / "m", cache))
    assert answer.code == 2 and "--rename: a new run starts (there is no " in refusal(answer.stderr)
