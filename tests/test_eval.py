"""eval.py: figures that agree with each other, with training's, and with predictions made one by one."""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    CLASSES,
    FAST,
    SIZE,
    Call,
    Completed,
    Script,
    Trained,
    at,
    refusal,
    saved,
    wait_until,
    without_test,
)

import eval
import model
from hogwear.data.decoding import decode


@pytest.fixture(scope="module")
def evaluated(data: Path, trained: Trained, start: Callable[..., Script]) -> Script:
    return start("eval.py", *at(data, trained.model, trained.cache)).ok()


@pytest.fixture(scope="module")
def results(evaluated: Script, trained: Trained) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((trained.model / "eval_results.json").read_text())
    return found


def results_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "eval_results.json").read_text())
    return found


def test_the_results_say_what_was_measured(results: dict[str, Any], trained: Trained) -> None:
    assert results["class_names"] == list(CLASSES) and results["num_examples"] == 40
    assert (results["split"], results["skipped"]) == ("test", 0) and results[
        "images_per_second"
    ] > 0
    assert results["checkpoint"] == {
        "sha256": hashlib.sha256((trained.model / "checkpoint.pt").read_bytes()).hexdigest(),
        "epoch": saved(trained.model)["best"]["epoch"],
        "expected_acc": saved(trained.model)["forecast"]["accuracy"], "arch": "efficientnet_lite0", "image_size": SIZE,
    }  # fmt: skip


def test_the_figures_agree_with_each_other(results: dict[str, Any]) -> None:
    matrix = np.array(results["confusion_matrix"])
    assert matrix.shape == (5, 5) and matrix.sum(1).tolist() == [8, 5, 9, 11, 7]
    assert results["test_acc"] == pytest.approx(matrix.trace() / 40)
    for i, name in enumerate(CLASSES):
        row = results["per_class"][name]
        right, predicted, support = matrix[i, i], matrix[:, i].sum(), matrix[i].sum()
        assert row["support"] == support
        assert row["recall"] == pytest.approx(right / support)
        assert row["precision"] == pytest.approx(right / predicted if predicted else 0)
        assert row["f1"] == pytest.approx(2 * right / (predicted + support))


def test_the_figures_are_those_of_photos_predicted_one_by_one(
    results: dict[str, Any], data: Path, trained: Trained
) -> None:
    net = model.load(trained.model, FAST).net
    matrix, losses = np.zeros((5, 5), int), []
    for photo in sorted(data.glob("test/*/*")):
        image = torch.from_numpy(decode(photo, SIZE).copy())[None]
        with torch.no_grad():
            logits = net(image)[0]
        label = CLASSES.index(photo.parent.name)
        matrix[label, int(logits.argmax())] += 1
        losses.append(-float(logits.log_softmax(0)[label]))
    assert np.abs(matrix - results["confusion_matrix"]).sum() <= 2, (
        "one photo may be on the edge in bfloat16"
    )
    assert results["test_loss"] == pytest.approx(np.mean(losses), abs=0.02)
    assert (matrix.sum(axis=0) > 0).sum() >= 3, "not the same answer to everything"


def test_the_table_is_readable(evaluated: Script, results: dict[str, Any]) -> None:
    lines = evaluated.stdout.splitlines()
    for name in CLASSES:
        [line] = [line for line in lines if line.startswith(name)]
        row = results["per_class"][name]
        assert line.split()[1:5] == [
            f"{row['precision']:.3f}",
            f"{row['recall']:.3f}",
            f"{row['f1']:.3f}",
            str(row["support"]),
        ]
    assert (
        f"test accuracy {results['test_acc']:.4f} ({round(40 * results['test_acc'])} of 40 photos)"
        in evaluated.stdout
    )
    assert evaluated.stderr == ""


def test_the_worst_mistake_comes_first(trained: Trained, results: dict[str, Any]) -> None:
    loaded = model.load(trained.model, FAST)
    photos = np.stack([decode(Path(mistake["file"]), SIZE) for mistake in results["mistakes"]])
    with torch.inference_mode():
        probabilities = loaded.probabilities(loaded.net(torch.from_numpy(photos)).numpy())
    of_label = [
        row[CLASSES.index(mistake["true_class"])]
        for row, mistake in zip(probabilities, results["mistakes"], strict=True)
    ]
    assert len(of_label) > 1 and np.all(np.diff(of_label) > -0.01)


def test_train_and_eval_agree_where_there_is_no_test_split(
    data: Path, trained: Trained, call: Call, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained.model, tmp_path / "model"))
    answer = call(eval, *at(without_test(data, tmp_path / "data"), folder, trained.cache))
    assert (
        answer.code == 0
        and "has no test split; using val, which selected the weights" in refusal(answer.stderr)
    )
    results, best = results_in(folder), saved(folder)["best"]
    assert results["split"] == "val" and results["num_examples"] == 40
    assert results["test_acc"] == pytest.approx(best["val_acc"], abs=1e-6)
    assert results["calibration"]["loss_after"] == pytest.approx(best["val_loss"], abs=1e-6)


def test_an_unreadable_photo_is_named_and_left_out(
    data: Path, trained: Trained, call: Call, tmp_path: Path
) -> None:
    folder, photos = (
        Path(shutil.copytree(trained.model, tmp_path / "model")),
        without_test(data, tmp_path / "data"),
    )
    shutil.copytree(data / "test", photos / "test")
    broken = sorted(photos.glob("test/handbag/*"))[0]
    broken.write_bytes(b"")
    answer = call(eval, *at(photos, folder, tmp_path / "cache"))
    assert (
        answer.code == 0 and str(broken) in refusal(answer.stderr) and "empty file" in answer.stderr
    )
    results = results_in(folder)
    assert (
        results["num_examples"],
        results["skipped"],
        results["per_class"]["handbag"]["support"],
    ) == (39, 1, 10)


def test_other_classes_than_the_checkpoints_are_refused(
    data: Path, trained: Trained, call: Call, tmp_path: Path
) -> None:
    photos = tmp_path / "data"
    for split in ("train", "val"):
        for old, new in {"eyewear": "glasses", "handbag": "handbag"}.items():
            shutil.copytree(data / split / old, photos / split / new)
    answer = call(eval, *at(photos, trained.model, trained.cache))
    assert (
        answer.code == 2
        and "classes glasses, handbag, but" in refusal(answer.stderr)
        and ", ".join(CLASSES) in answer.stderr
    )


def test_without_a_checkpoint_train_has_to_run_first(
    data: Path, call: Call, tmp_path: Path
) -> None:
    answer = call(eval, *at(data, tmp_path, tmp_path / "cache"))
    assert answer == Completed(
        3, "", f"eval.py: {tmp_path}/checkpoint.pt: no checkpoint; run train first\n"
    )


def test_an_interrupt_while_torch_is_imported_is_one_line(
    data: Path, trained: Trained, start: Callable[..., Script]
) -> None:
    script = start("eval.py", *at(data, trained.model, trained.cache))
    wait_until(lambda: "libtorch" in Path(f"/proc/{script.pid}/maps").read_text())
    os.kill(script.pid, signal.SIGINT)
    assert (script.code(), script.stderr) == (130, "eval.py: interrupted\n")
