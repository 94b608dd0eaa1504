"""Evaluate the checkpoint on the test split: a table, report.html and eval_results.json.

python eval.py
"""

import hashlib
import json
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from hogwear import __version__
from hogwear.commands.shared_settings import (
    UNKNOWN_RATE,
    SharedSettings,
    find_photos,
    load_model,
)
from hogwear.data import leakage, loading
from hogwear.data.photos import Photos, Split
from hogwear.data.pixels import Pixels
from hogwear.system import command, machine
from hogwear.system.arrays import Float32Array
from hogwear.system.artifacts import EVALUATION
from hogwear.system.files import write_atomically
from hogwear.system.text import escape, warn

if TYPE_CHECKING:
    from hogwear.evaluation.trained_model import TrainedModel

# torch and matplotlib take seconds to import, so only once the flags are known to be valid.

SCHEMA = 1  # of eval_results.json, described in docs/eval_results.md


@dataclass(frozen=True)
class Settings(SharedSettings):
    """Measure model/checkpoint.pt on the test split; write report.html and eval_results.json.

    Without a test split, the validation photos are used.
    """

    unknown_rate: float = UNKNOWN_RATE


def main(settings: Settings) -> None:
    from hogwear.evaluation.evaluation import Evaluation
    from hogwear.evaluation.mistakes import find_worst_mistakes
    from hogwear.evaluation.predict import predict_logits

    trained = load_model(settings)
    photos = find_photos(settings, trained)
    split = choose_split(photos)
    started = time.perf_counter()
    decoded = loading.Loader(settings.cache).load(split, trained.image_size)
    pixels = leakage.exclude_trained_on(decoded, trained.trained_on, split.name)
    if train := settings.cache.open_if_complete(photos.train, trained.image_size):
        leakage.warn_about_leakage(train, pixels, split.name)
    logits = predict_logits(trained.net, pixels.images, pixels.rows, machine.cpus())
    seconds = time.perf_counter() - started

    evaluation = Evaluation(
        trained.class_names,
        logits,
        pixels.labels,
        trained.temperature,
        trained.confidence_threshold,
        trained.history,
    )
    mistakes = find_worst_mistakes(trained.net, evaluation, pixels, split)
    results = {
        "schema": SCHEMA,
        **evaluation.measure_accuracy(),
        **evaluation.measure_calibration(),
        "unknown": measure_unknown(trained, logits, settings.unknown_rate),
        "mistakes": [mistake.to_json() for mistake in mistakes],
        "split": split.name,
        "skipped": len(pixels.skipped),
        "trained_on": len(decoded) - len(pixels),
        "images_per_second": round(len(pixels) / seconds, 1),
        **provenance(trained, photos, pixels),
    }
    file = settings.model_dir / EVALUATION
    write_atomically(file, (json.dumps(results, indent=2) + "\n").encode())
    for line in format_table(results):
        print(escape(line))

    from hogwear.evaluation.report import write_report  # with matplotlib, after the table is shown

    page = write_report(settings.model_dir, results, evaluation, mistakes)
    print(escape(f"Report: {page}. All metrics: {file}."))


def choose_split(photos: Photos) -> Split:
    """The test split; val, with a warning, where there is none."""
    if photos.is_sample:
        print("Photos: the built-in sample (data/ is empty)")
    split = photos.evaluated
    if split is not photos.test:
        warn(
            f"{photos.folder} has no test split; using val, which selected the weights, "
            "so the accuracy is optimistic"
        )
    return split


def measure_unknown(
    trained: "TrainedModel", logits: Float32Array, rate: float
) -> dict[str, float | str | None]:
    """How many photos of the split are called unknown, by their logits, (n, classes)."""
    is_unknown = trained.is_unknown(logits, rate)
    return {
        "rate": rate,
        "threshold": trained.novelty_threshold(rate),
        "share": None if is_unknown is None else float(is_unknown.mean()),
        "auroc": trained.novelty_auroc,
        "off": trained.unknown_is_off or None,
    }


def provenance(trained: "TrainedModel", photos: Photos, pixels: Pixels) -> dict[str, Any]:
    """Where the figures come from: checkpoint, settings, photos, machine, packages, time."""
    return {
        "checkpoint": {
            "sha256": trained.sha256,
            "epoch": trained.epoch,
            "expected_acc": trained.expected_acc,
            "arch": trained.arch,
            "image_size": trained.image_size,
        },
        "run": trained.hyperparameters,
        "data": {
            "folder": "the built-in sample" if photos.is_sample else str(photos.folder),
            "fingerprint": fingerprint(pixels),
            "corrections": photos.corrections and photos.corrections.to_json(),
        },
        "machine": {
            "cpu": machine.cpu_name(),
            "cpus": machine.cpus(),
            "dtype": str(trained.dtype).removeprefix("torch."),
        },
        "packages": {
            "hogwear": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "pillow", "matplotlib")},
        },
        "made": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def fingerprint(pixels: Pixels) -> str:
    """A hash of the photos' contents and classes, whatever their names and order."""
    labels = pixels.labels[:, None].astype("<u8").view(np.uint8)
    rows = np.concatenate([pixels.hashes, labels], axis=1)
    return hashlib.sha256(b"".join(sorted(map(bytes, rows)))).hexdigest()[:16]


def format_table(results: dict[str, Any]) -> list[str]:
    """The lines for the terminal: metrics and confusions by class, then overall."""
    names = [escape(name) for name in results["class_names"]]
    width = max(len("class"), *map(len, names))
    lines = [f"{'class':{width}}  precision  recall     F1  photos  confused with"]
    for i, row in enumerate(results["per_class"].values()):
        confusions = sorted(enumerate(results["confusion_matrix"][i]), key=lambda pair: -pair[1])
        confused = ", ".join(f"{names[j]} {n}" for j, n in confusions if n and j != i)
        lines.append(
            f"{names[i]:{width}}  {row['precision']:9.3f}  {row['recall']:6.3f}  {row['f1']:5.3f}  "
            f"{row['support']:6d}  {confused}".rstrip()
        )
    low, high = results["test_acc_interval"]
    unknown = results["unknown"]
    other_things = f"Photos of other things are not recognised as unknown: {unknown['off']}."
    if unknown["off"] is None:
        other_things = (
            f"called unknown: {unknown['share']:.1%} of these photos (--unknown-rate "
            f"{unknown['rate']:g}); AUROC for other things: {unknown['auroc']:.3f}"
        )
    return [
        *lines,
        "",
        f"{results['split']} accuracy {results['test_acc']:.4f} ({results['num_right']} of "
        f"{results['num_examples']} photos), 95 % confidence interval {low:.3f} to {high:.3f}, "
        f"loss {results['test_loss']:.4f}",
        f"baseline (always {results['majority_class']}): {results['majority_acc']:.4f}; "
        f"{results['images_per_second']:.0f} images/s",
        other_things,
    ]


if __name__ == "__main__":
    command.run(main, Settings)
