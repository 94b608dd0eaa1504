"""Measure the checkpoint on the whole test split: a table, model/report.html, its charts, and model/eval_results.json.

python eval.py
"""

import hashlib
import json
import platform
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hogwear.commands.common import SharedSettings
from hogwear.data import leakage, loading
from hogwear.data.photos import Photos, Split
from hogwear.data.pixels import Pixels
from hogwear.data.split_assignments import SplitAssignments
from hogwear.evaluation import metrics
from hogwear.system import command, machine
from hogwear.system.arrays import FloatArray, Int64Array
from hogwear.system.artifacts import EVALUATION
from hogwear.system.files import write_atomically
from hogwear.system.text import escape

if TYPE_CHECKING:
    from hogwear.evaluation.report import Mistake
    from hogwear.evaluation.trained_model import TrainedModel

SCHEMA = 1  # of eval_results.json, as docs/eval_results.md describes it
WORST = 12  # mistakes shown in the report
SURELY_WRONG = 0.9  # so probable an answer, and wrong: maybe the photo is in the wrong folder
CURVE = 100  # points of accuracy against coverage that are kept


@dataclass(frozen=True)
class Settings(SharedSettings):
    """Measure model/checkpoint.pt on the test split; write report.html and eval_results.json.

    Without a test split, the validation photos are used.
    """


def main(settings: Settings) -> None:
    import torch  # takes seconds, so not before the flags are known to be good

    import model
    from hogwear.evaluation import predict

    machine.keep_freed_memory()
    torch.set_num_threads(1)
    trained = model.load(settings.model_dir, model.choose_dtype(settings.cache_dir))
    SplitAssignments.read(settings.model_dir).require(trained.split)
    photos = settings.photos_of(trained.class_names, trained.is_sample)
    if photos.is_sample:
        print("Photos: the built-in sample (data/ is empty)")
    split = photos.evaluated
    if split is not photos.test:
        print(
            escape(
                f"Warning: {photos.folder} has no test split; these figures are of val, which chose the weights"
            ),
            file=sys.stderr,
        )
    started = time.perf_counter()
    decoded = loading.Loader(settings.cache).load(split, trained.image_size)
    pixels = loading.exclude_trained_on(decoded, trained.trained_on.numpy(), split.name)
    if train := settings.cache.open_if_complete(photos.train, trained.image_size):
        leakage.warn_about_leakage(train, pixels, split.name)
    logits = predict.predict_logits(trained.net, pixels.images, pixels.rows, machine.cpus())
    seconds = time.perf_counter() - started
    mistakes = worst_mistakes(trained, logits, pixels, split)
    results = (
        {"schema": SCHEMA}
        | measure(logits, pixels.labels, trained.class_names)
        | probabilities(logits, pixels.labels, trained.temperature, trained.confidence_threshold)
        | {"mistakes": [mistake.as_json() for mistake in mistakes]}
        | {
            "split": split.name,
            "skipped": len(pixels.skipped),
            "trained_on": len(decoded) - len(pixels),
            "images_per_second": round(len(pixels) / seconds, 1),
        }
        | circumstances(trained, photos, pixels)
    )
    write_atomically(
        settings.model_dir / EVALUATION, (json.dumps(results, indent=2) + "\n").encode()
    )
    for line in table(results):
        print(escape(line))
    page = write_report(settings.model_dir, results, logits, pixels.labels, trained, mistakes)
    print(escape(f"Report: {page}. All metrics: {settings.model_dir / EVALUATION}."))


def measure(logits: FloatArray, labels: Int64Array, class_names: tuple[str, ...]) -> dict[str, Any]:
    """How often it is right, overall and by class."""
    matrix = metrics.confusion_matrix(logits.argmax(axis=1), labels, len(class_names))
    by_class, right, support = metrics.per_class(matrix), int(matrix.trace()), matrix.sum(axis=1)
    return {
        "test_loss": metrics.cross_entropy(logits, labels),
        "test_acc": metrics.accuracy(logits, labels),
        "test_acc_interval": metrics.wilson(right, len(labels)),
        "majority_class": class_names[support.argmax()],
        "majority_acc": int(support.max()) / len(labels),
        "num_examples": len(labels),
        "num_right": right,
        "class_names": list(class_names),
        "macro": metrics.macro(by_class),
        "per_class": {
            c: {name: values[i].item() for name, values in by_class.items()}
            for i, c in enumerate(class_names)
        },
        "confusion_matrix": matrix.tolist(),  # [true][predicted]
    }


def probabilities(
    logits: FloatArray, labels: Int64Array, temperature: float, sure_from: float
) -> dict[str, Any]:
    """Whether its probabilities mean what they say, and what comes of answering only where it is sure."""
    right, confidence = logits.argmax(axis=1) == labels, metrics.confidences(logits, temperature)
    found, sure = metrics.reliability(confidence, right), confidence >= sure_from
    _, shares, accuracies = metrics.coverage(confidence, right)
    points = np.unique(np.linspace(0, len(shares) - 1, CURVE).astype(int))
    return {
        "calibration": {
            "temperature": temperature,
            "ece_before": metrics.calibration_error(metrics.confidences(logits), right),
            "ece_after": metrics.calibration_error(confidence, right),
            "loss_after": metrics.cross_entropy(logits / temperature, labels),
            "bins": [
                {name: values[i].item() for name, values in found.items()}
                for i in np.flatnonzero(found["count"])
            ],
        },
        "sure": {
            "from": sure_from,
            "share": float(sure.mean()),
            "accuracy": float(right[sure].mean()) if sure.any() else None,
        },
        "coverage": [{"share": shares[i].item(), "accuracy": accuracies[i].item()} for i in points],
    }


def worst_mistakes(
    trained: "TrainedModel", logits: FloatArray, pixels: Pixels, split: Split
) -> "list[Mistake]":
    """The WORST photos by the probability of their true class, and what the network looked at."""
    import torch

    from hogwear.evaluation.report import Mistake

    log_probabilities, predicted = (
        metrics.log_softmax(logits / trained.temperature),
        logits.argmax(axis=1),
    )
    wrong = np.flatnonzero(predicted != pixels.labels)
    worst = wrong[np.argsort(log_probabilities[wrong, pixels.labels[wrong]], kind="stable")][:WORST]
    if not len(worst):
        return []
    images = pixels.images[pixels.rows[worst]]
    with torch.inference_mode():
        evidence = trained.net.class_activation_map(
            torch.from_numpy(images), torch.from_numpy(predicted[worst])
        ).numpy()
    mistakes = []
    for i, image, seen in zip(worst, images, evidence, strict=True):
        probability = float(np.exp(log_probabilities[i, predicted[i]]))
        true, answered = (trained.class_names[c] for c in (pixels.labels[i], predicted[i]))
        mistakes.append(
            Mistake(
                split.paths[pixels.rows[i]],
                true,
                answered,
                probability,
                probability >= SURELY_WRONG,
                image,
                seen,
            )
        )
    return mistakes


def circumstances(trained: "TrainedModel", photos: Photos, pixels: Pixels) -> dict[str, Any]:
    """What produced these figures."""
    return {
        "checkpoint": {
            "sha256": trained.sha256,
            "epoch": trained.epoch,
            "arch": trained.arch,
            "image_size": trained.image_size,
        },
        "run": trained.hyperparameters,
        "data": {
            "folder": "the built-in sample" if photos.is_sample else str(photos.folder),
            "fingerprint": fingerprint(pixels),
        },
        "machine": {
            "cpu": machine.cpu_name(),
            "cpus": machine.cpus(),
            "dtype": str(trained.dtype).removeprefix("torch."),
        },
        "packages": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "numpy", "pillow", "matplotlib")},
        "made": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def fingerprint(pixels: Pixels) -> str:
    """The same for the same photos anywhere: a hash of their contents and classes, in whatever order."""
    photos = np.concatenate(
        [pixels.hashes, pixels.labels[:, None].astype("<u8").view(np.uint8)], axis=1
    )
    return hashlib.sha256(b"".join(sorted(map(bytes, photos)))).hexdigest()[:16]


def write_report(
    folder: Path,
    results: dict[str, Any],
    logits: FloatArray,
    labels: Int64Array,
    trained: "TrainedModel",
    mistakes: "list[Mistake]",
) -> Path:
    from hogwear.evaluation import (
        report,  # and matplotlib with it: half a second, when the figures are already on the screen
    )

    return report.write(folder, results, logits, labels, trained.history, mistakes)


def table(results: dict[str, Any]) -> list[str]:
    """What people read: a row a class, with what it was taken for, and the overall figures."""
    names = [escape(name) for name in results["class_names"]]
    wide = max(len("class"), *map(len, names))
    lines = [f"{'class':{wide}}  precision  recall     F1  photos  mistaken for"]
    for i, name in enumerate(names):
        row, mistakes = (
            results["per_class"][results["class_names"][i]],
            enumerate(results["confusion_matrix"][i]),
        )
        taken_for = ", ".join(
            f"{names[j]} {n}" for j, n in sorted(mistakes, key=lambda m: -m[1]) if n and j != i
        )
        lines.append(
            f"{name:{wide}}  {row['precision']:9.3f}  {row['recall']:6.3f}  {row['f1']:5.3f}  {row['support']:6d}  {taken_for}".rstrip()
        )
    low, high = results["test_acc_interval"]
    lines += ["", f"{results['split']} accuracy {results['test_acc']:.4f} ({results['num_right']} of {results['num_examples']} photos), "
                  f"loss {results['test_loss']:.4f}, {results['images_per_second']:.0f} images/s",
              f"95 % interval {low:.3f} to {high:.3f}; always answering {results['majority_class']}: {results['majority_acc']:.3f}"]  # fmt: skip
    return lines


if __name__ == "__main__":
    command.run(main, Settings)
