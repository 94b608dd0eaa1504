"""Measure the checkpoint on the whole test split: a table, and model/eval_results.json.

    python eval.py
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hogwear import dataset, decoding, machine, metrics, progress, settings
from hogwear.decoding import Limits
from hogwear.errors import BadInput
from hogwear.pixels import signatures_at_hand

RESULTS = "eval_results.json"


@dataclass(frozen=True)
class Settings:
    """Measure model/checkpoint.pt on the test split (val, where there is no test); write model/eval_results.json."""

    data_dir: Path = settings.data_dir()
    model_dir: Path = settings.model_dir()
    cache_dir: Path = settings.cache_dir()
    max_megapixels: int = decoding.max_megapixels()
    max_megabytes: int = decoding.max_megabytes()


def main(settings: Settings) -> None:
    import torch  # takes seconds, so not before the flags are known to be good

    import model
    from hogwear import predict

    machine.keep_freed_memory()
    torch.set_num_threads(1)
    trained = model.load(settings.model_dir, model.fast_dtype(settings.cache_dir))
    photos = dataset.find(settings.data_dir, settings.cache_dir)
    if photos.is_sample:
        print("Photos: the built-in sample (data/ is empty)")
    if photos.class_names != trained.class_names:
        raise BadInput(
            f"{photos.folder}: classes {', '.join(photos.class_names)}, but the checkpoint was trained on "
            f"{', '.join(trained.class_names)}: use the photos it was trained on, or train again"
        )
    split = photos.evaluated
    if split is not photos.test:
        print(f"Warning: {photos.folder} has no test split; these figures are of val, which chose the weights", file=sys.stderr)
    started = time.perf_counter()
    limits = Limits(settings.max_megapixels, settings.max_megabytes)
    pixels = progress.decoded(split, trained.image_size, limits, settings.cache_dir)
    if (in_train := signatures_at_hand(photos.train, trained.image_size, settings.cache_dir, limits)) is not None:
        progress.warn_of_leakage(in_train, pixels.signatures, split.name)
    logits = predict.predict(trained.net, pixels.images, pixels.rows, machine.cpus())
    seconds = time.perf_counter() - started
    results = measure(logits, pixels.labels, trained.class_names) | {
        "split": split.name,
        "skipped": len(pixels.skipped),
        "images_per_second": round(len(pixels) / seconds, 1),
        "checkpoint": {"sha256": trained.sha256, "epoch": trained.epoch, "arch": trained.arch, "image_size": trained.image_size},
    }
    dataset.write_atomically(settings.model_dir / RESULTS, (json.dumps(results, indent=2) + "\n").encode())
    print(table(results))
    print(f"Written to {settings.model_dir / RESULTS}.")


def measure(logits: metrics.Floats, labels: metrics.Ints, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The figures of eval_results.json that come from the predictions alone."""
    matrix = metrics.confusion_matrix(logits.argmax(axis=1), labels, len(class_names))
    by_class = {name: values.tolist() for name, values in metrics.per_class(matrix).items()}
    return {
        "test_loss": metrics.cross_entropy(logits, labels),
        "test_acc": metrics.accuracy(logits, labels),
        "num_examples": len(labels),
        "class_names": list(class_names),
        "per_class": {c: {name: values[i] for name, values in by_class.items()} for i, c in enumerate(class_names)},
        "confusion_matrix": matrix.tolist(),  # [true][predicted]
    }


def table(results: dict[str, Any]) -> str:
    """What people read: a row a class, with what it was taken for, and the overall figures."""
    names, wide = results["class_names"], max(len("class"), *map(len, results["class_names"]))
    lines = [f"{'class':{wide}}  precision  recall     F1  photos  mistaken for"]
    for i, name in enumerate(names):
        row, mistakes = results["per_class"][name], enumerate(results["confusion_matrix"][i])
        taken_for = ", ".join(f"{names[j]} {n}" for j, n in sorted(mistakes, key=lambda m: -m[1]) if n and j != i)
        lines.append(
            f"{name:{wide}}  {row['precision']:9.3f}  {row['recall']:6.3f}  {row['f1']:5.3f}  {row['support']:6d}  {taken_for}".rstrip()
        )
    right = round(results["test_acc"] * results["num_examples"])
    lines += ["", f"{results['split']} accuracy {results['test_acc']:.4f} ({right} of {results['num_examples']} photos), "
                  f"loss {results['test_loss']:.4f}, {results['images_per_second']:.0f} images/s"]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    settings.run(main, Settings)
