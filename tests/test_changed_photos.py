"""What train, eval and infer do with a checkpoint when the photos have changed."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    CLASSES,
    SIZE,
    SMALL_RUN,
    Call,
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
import train
from hogwear.cluster.peers import SINGLE_MACHINE
from hogwear.commands import doctor, preparation
from hogwear.system import flags
from hogwear.system.artifacts import CHECKPOINT
from hogwear.training import checkpoint
from hogwear.training.model_folder import ModelFolder

ONCE = "--epochs", 1, "--workers", 1
TINY = "--arch", "tinyvgg", "--image-size", 32, "--workers", 1, "--batch-size", 8


@pytest.fixture(scope="module")
def cache(trained: Trained) -> Path:
    return trained.cache


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder without photos: the built-in sample is used instead."""
    (folder := tmp_path_factory.mktemp("mount") / "data").mkdir()
    (folder / ".gitkeep").touch()
    return folder


@pytest.fixture(scope="module")
def interrupted(data: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a run on real photos that was stopped in its third epoch."""
    return stopped(
        tmp_path_factory.mktemp("interrupted"),
        "--image-size",
        SIZE,
        "--epochs",
        4,
        "--batch-size",
        8,
        "--workers",
        1,
        data=data,
        cache=cache,
    )


def stopped(folder: Path, *arguments: object, data: Path, cache: Path, batches: int = 35) -> Path:
    with stopped_after(batches):
        train.main(
            flags.parse(train.Settings, [*map(str, arguments), *map(str, at(data, folder, cache))])
        )
    assert not saved(folder)["finished"]
    return folder


@pytest.fixture(scope="module")
def of_the_sample(empty: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a run on the built-in sample that was interrupted."""
    return stopped(
        tmp_path_factory.mktemp("sample"), *TINY, "--epochs", 2, data=empty, cache=cache, batches=3
    )


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "model"))


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# --- real photos and the built-in sample


@pytest.mark.parametrize("script", [train, eval, infer])
@pytest.mark.parametrize("which", ["finished", pytest.param("interrupted", marks=pytest.mark.long)])
def test_an_empty_data_folder_is_refused_for_a_checkpoint_of_real_photos(
    which: str, script: Any, trained: Trained, interrupted: Path, empty: Path, call: Call, copied: Callable[[Path], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = copied(trained.model if which == "finished" else interrupted)
    before = files(folder)
    monkeypatch.chdir(tmp_path)
    answer = call(script, *at(empty, folder, trained.cache))
    said = refusal(answer.stderr)
    assert (
        answer.code == 2
        and f"{empty}: empty, but the checkpoint was trained on real photos" in said
        and "mount" in said
        and "--data-dir" in said
    )
    assert files(folder) == before and not (tmp_path / "responses").exists()
    assert answer.stdout == "", "no photo is drawn, no plan is printed"


def test_given_photos_are_predicted_without_a_data_folder(
    trained: Trained, empty: Path, photo_files: list[Path], call: Call, tmp_path: Path
) -> None:
    for data in empty, tmp_path / "nowhere":
        answer = call(
            infer,
            *at(data, trained.model, trained.cache),
            "--responses-dir",
            tmp_path / "responses",
            "--images",
            photo_files[0],
        )
        assert answer.code == 0, answer


@pytest.mark.long
def test_a_run_on_the_built_in_sample_resumes_with_it(
    of_the_sample: Path, empty: Path, cache: Path, call: Call, copied: Callable[[Path], Path]
) -> None:
    folder = copied(of_the_sample)
    for script in train, eval:
        assert call(script, *at(empty, folder, cache)).code == 0
    assert len(saved(folder)["history"]) >= 2 and saved(folder)["photos"]["is_sample"]


@pytest.mark.parametrize("which", ["finished", "interrupted"])
def test_the_first_real_photos_start_a_new_run_and_the_checkpoint_of_the_sample_is_kept(
    which: str,
    of_the_sample: Path,
    data: Path,
    cache: Path,
    call: Call,
    copied: Callable[[Path], Path],
) -> None:
    folder = copied(of_the_sample)
    if which == "finished":
        state = saved(folder)
        checkpoint.save(folder, state | {"finished": True, "snapshot": None})
    before = (folder / CHECKPOINT).read_bytes()
    answer = call(train, "--arch", "tinyvgg", "--image-size", 64, *ONCE, *at(data, folder, cache))
    assert (
        answer.code == 0
        and f"Starting a new run: {folder}/{CHECKPOINT} was trained on the built-in sample"
        in answer.stdout
    ), answer
    assert (
        before in [file.read_bytes() for file in folder.glob("checkpoint-*.pt")]
        and "The old checkpoint is kept as" in answer.stdout
    )
    state = saved(folder)
    assert (
        not state["photos"]["is_sample"]
        and state["hyperparameters"]["image_size"] == 64
        and len(state["history"]) == 2
    )


@pytest.mark.parametrize("script", [eval, infer])
def test_a_network_trained_on_the_sample_is_not_evaluated_on_real_photos(
    script: Any,
    of_the_sample: Path,
    data: Path,
    cache: Path,
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = call(script, *at(data, of_the_sample, cache))
    assert (
        answer.code == 2
        and f"{data}: the checkpoint was trained on the built-in sample" in refusal(answer.stderr)
        and "run train" in answer.stderr
    )
    assert not list(tmp_path.iterdir())


# --- other photos


@pytest.fixture
def corrected(data: Path, tmp_path: Path) -> Path:
    """The same photos with two classes exchanged. Without a test split, eval measures val."""
    folder = without_test(data, tmp_path / "corrected")
    for split in ("train", "val"):
        one, other, aside = (folder / split / name for name in ("eyewear", "topwear", "aside"))
        one.rename(aside)
        other.rename(one)
        aside.rename(other)
    return folder


@pytest.fixture
def evaluate(call: Call, cache: Path) -> Callable[[Path, Path], float]:
    """evaluate(data, model): the accuracy that eval measures."""

    def evaluate(data: Path, model: Path) -> float:
        assert call(eval, *at(data, model, cache)).code == 0
        return float(json.loads((model / "eval_results.json").read_text())["test_acc"])

    return evaluate


Evaluate = Callable[[Path, Path], float]


@pytest.mark.long
def test_after_labels_were_corrected_train_and_eval_report_the_same_accuracy(
    trained: Trained,
    corrected: Path,
    cache: Path,
    call: Call,
    evaluate: Evaluate,
    copied: Callable[[Path], Path],
) -> None:
    folder = copied(trained.model)
    was, now = saved(folder)["best"]["val_acc"], evaluate(corrected, folder)
    assert now < was - 0.2, "the old weights have learned the old labels"
    answer = call(train, *SMALL_RUN, "--workers", 1, *at(corrected, folder, cache))
    assert answer.code == 0, answer
    assert (
        f"evaluated again, on the current validation photos: accuracy {now:.4f}, previously {was:.4f}."
        in answer.stdout
    )
    rows, best = saved(folder)["history"][3:], saved(folder)["best"]
    assert (rows[0]["epoch"], rows[0]["stage"]) == (10, "closed form"), "of the new labels"
    assert best["epoch"] >= 10 and best["val_acc"] > now, "the better weights win"
    assert (
        evaluate(corrected, folder) == best["val_acc"]
        and f"Done: validation loss {best['val_loss']:.4f}, accuracy {best['val_acc']:.4f} (epoch "
        in answer.stdout
    )


@pytest.mark.long
def test_better_old_weights_are_kept_with_figures_of_the_present_photos(
    trained: Trained,
    data: Path,
    cache: Path,
    call: Call,
    evaluate: Evaluate,
    copied: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    """They are evaluated at their own image size."""
    folder, photos = copied(trained.model), without_test(data, tmp_path / "fewer")
    for name in CLASSES:
        sorted((photos / "val" / name).iterdir())[0].unlink()
    before, measured = saved(folder)["best"], evaluate(photos, folder)
    answer = call(
        train, *ONCE, "--lr", 2, "--batch-size", 8, "--image-size", 32, *at(photos, folder, cache)
    )
    assert (
        answer.code == 0
        and f"accuracy {measured:.4f}, previously {before['val_acc']:.4f}" in answer.stdout
    )
    best = saved(folder)["best"]
    assert (best["epoch"], best["image_size"], best["val_acc"]) == (
        before["epoch"],
        SIZE,
        measured,
    ) and best["val_loss"] != before["val_loss"]
    assert best["temperature"] != before["temperature"] and torch.equal(
        flat(best["weights"]), flat(before["weights"])
    )


def test_an_interrupted_run_resumes_with_its_last_weights_not_its_best(
    interrupted: Path,
    corrected: Path,
    cache: Path,
    evaluate: Evaluate,
    copied: Callable[[Path], Path],
) -> None:
    folder = copied(interrupted)
    state, measured = saved(folder), evaluate(corrected, folder)
    settings = flags.parse(train.Settings, [*map(str, at(corrected, folder, cache))])
    prepared = preparation.prepare(settings, ModelFolder(folder), SINGLE_MACHINE, 0.0)
    assert prepared
    trainer = prepared.trainer
    best = trainer.state.history.best
    last = flat(state["snapshot"]["weights"])
    assert torch.equal(flat(trainer.net.state_dict()), last)
    assert not torch.equal(last, flat(state["best"]["weights"]))
    assert best and torch.equal(flat(best.weights), flat(state["best"]["weights"]))
    assert best.val_acc == measured != state["best"]["val_acc"]


@pytest.mark.parametrize("change", ["none", "another photo"])
def test_a_second_run_with_another_photo_solves_the_head_again_first(
    change: str, trained: Trained, data: Path, call: Call, copied: Callable[[Path], Path], tmp_path: Path,
) -> None:  # fmt: skip
    folder, photos = copied(trained.model), without_test(data, tmp_path / "data")
    if change == "another photo":
        more(photos)
    answer = call(train, *ONCE, *at(photos, folder, trained.cache))
    assert answer.code == 0, answer
    before, after = saved(trained.model), saved(folder)
    new = [(row["epoch"], row["stage"]) for row in after["history"][3:]]
    assert new == [(10, "closed form")] * (change != "none") + [(11, "hogwild")]
    assert answer.stdout.count("\nclosed form: ") == (change != "none")
    if change == "none":
        assert after["start_loss"] == before["best"]["val_loss"]


# --- corrections.csv


def true_class(photo: Path) -> str:
    """What the fixture `data` has written into the name of a photo, mislabelled or not."""
    return photo.name.partition("-")[0]


def test_every_command_takes_the_classes_from_the_corrections(
    trained: Trained, data: Path, call: Call, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    """All 29 mislabelled photos are corrected, and one is left out of each split."""
    folder, photos = copied(trained.model), Path(shutil.copytree(data, tmp_path / "data"))
    before = {file: file.read_bytes() for file in photos.rglob("*") if file.is_file()}
    rows = {file.relative_to(photos): true_class(file) for file in before}
    rows = {file: name for file, name in rows.items() if file.parent.name != name}
    for split in ("train", "val", "test"):
        first = next(file for file in sorted(before) if split in file.parts)
        rows[first.relative_to(photos)] = "-"
    relabelled = sum(name != "-" for name in rows.values())
    table = "".join(f"{file},{name}\n" for file, name in rows.items())
    (photos / "corrections.csv").write_text(f"file,class\n{table}")
    said = f"{photos}/corrections.csv: {relabelled} photos relabelled, 3 left out."
    counts = {"relabelled": relabelled, "left_out": 3, "unchanged": 0, "unmatched": 0}

    where = at(photos, folder, trained.cache)
    answers = [call(doctor, *where), call(eval, *where)]
    report = json.loads((folder / "doctor.json").read_text())
    assert report["corrections"] == counts
    assert report["counts"]["test"] == {
        name: 8 - (rows[first.relative_to(photos)] == "-" and true_class(first) == name)
        for name in CLASSES
    }
    results = json.loads((folder / "eval_results.json").read_text())
    supports = {name: row["support"] for name, row in results["per_class"].items()}
    assert supports == report["counts"]["test"] and results["data"]["corrections"] == counts
    answers += [
        call(infer, *where, "--num-images", 40, "--responses-dir", tmp_path / "responses"),
        call(train, *ONCE, *where),
    ]
    for answer in answers:
        assert answer.code == 0 and said in answer.stdout.splitlines(), answer
    predictions = json.loads((tmp_path / "responses/predictions.json").read_text())
    assert len(predictions) == 39
    assert all(p["true_class"] == true_class(Path(p["file"])) for p in predictions)
    assert "120 training photos before, 119 now" in answers[-1].stdout
    assert saved(folder)["history"][3]["stage"] == "closed form", "of the new labels"
    assert all(file.read_bytes() == content for file, content in before.items())


# --- train names the changes


def fewer(folder: Path) -> None:
    for name in CLASSES:
        for photo in sorted((folder / "train" / name).iterdir())[6:]:
            photo.unlink()


def more(folder: Path) -> None:
    shutil.copy(
        next((folder / "train" / "handbag").iterdir()), folder / "train" / "eyewear" / "more.jpg"
    )


def relabelled(folder: Path) -> None:
    one, other = (sorted((folder / "train" / name).iterdir())[0] for name in ("eyewear", "handbag"))
    one.rename(other.parent / "one.jpg")
    other.rename(one.parent / "other.jpg")


def relabelled_by_corrections(folder: Path) -> None:
    photo = sorted((folder / "train" / "eyewear").iterdir())[0]
    (folder / "corrections.csv").write_text(f"file,class\n{photo.relative_to(folder)},handbag\n")


def removed_from_val(folder: Path) -> None:
    sorted((folder / "val" / "eyewear").iterdir())[0].unlink()


def renamed(folder: Path) -> None:
    for photo in sorted((folder / "train" / "eyewear").iterdir()):
        photo.rename(photo.with_name(f"renamed-{photo.name}"))


CHANGES: dict[Callable[[Path], None], str] = {
    fewer: "120 training photos before, 30 now.",
    more: "120 training photos before, 121 now.",
    relabelled: "some of the 120 training photos are new or in another class.",
    relabelled_by_corrections: "some of the 120 training photos are new or in another class.",
    removed_from_val: "40 validation photos before, 39 now.",
    renamed: "",
}


@pytest.mark.parametrize("which", ["finished", "interrupted"])
@pytest.mark.parametrize(
    ("change", "said"), CHANGES.items(), ids=[change.__name__ for change in CHANGES]
)
def test_train_prints_in_one_line_which_photos_have_changed(
    said: str,
    change: Callable[[Path], None],
    which: str,
    trained: Trained,
    interrupted: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = Path(shutil.copytree(data, tmp_path / "data"))
    change(photos)
    arguments = at(
        photos, trained.model if which == "finished" else interrupted, tmp_path / "cache"
    )
    settings = flags.parse(train.Settings, [*map(str, arguments)])
    preparation.prepare(settings, ModelFolder(settings.model_dir), SINGLE_MACHINE, 0.0)
    lines = re.findall(
        r"^The photos have changed since the last run: (.*)$", capsys.readouterr().out, re.MULTILINE
    )
    assert lines == ([said] if said else [])
