"""Export the trained network to ONNX, for other programs: model/model.onnx and MODEL_CARD.md.

python -m hogwear.commands.export
"""

import importlib.util
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hogwear.commands.model_card import write_card
from hogwear.commands.shared_settings import SharedSettings, find_photos, load_model
from hogwear.data import leakage, loading
from hogwear.system import command, machine
from hogwear.system.arrays import FloatArray, UInt8Array
from hogwear.system.artifacts import EVALUATION, MODEL_CARD, ONNX_MODEL
from hogwear.system.errors import BadInput
from hogwear.system.files import write_atomically
from hogwear.system.text import plural

# torch, onnx and onnxruntime take seconds to import, so only once the flags are known to be valid.

TOLERANCE = (
    1e-3  # of probabilities and novelty scores; summing float32 numbers in another order costs 1e-5
)
MOST_PHOTOS = 1000  # that are measured: a fair sample of a large split


@dataclass(frozen=True)
class Settings(SharedSettings):
    """Export model/checkpoint.pt to ONNX, preprocessing included, and write a model card.

    The exported network is measured on the test split, or on val where there is no test split.
    """


def main(settings: Settings) -> None:
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise BadInput(f"export needs {package}: pip install --requirement requirements.txt")
    import torch

    from hogwear.commands.onnx_model import to_onnx
    from hogwear.evaluation.predict import predict_logits

    trained = load_model(settings, torch.float32)
    results = read_results(settings.model_dir, trained.sha256)
    split = find_photos(settings, trained).evaluated
    decoded = loading.Loader(settings.cache).load(split, trained.image_size)
    pixels = leakage.exclude_trained_on(decoded, trained.trained_on, split.name)
    count = min(MOST_PHOTOS, len(pixels))
    chosen = np.linspace(0, len(pixels) - 1, count).round().astype(np.int64)  # of all classes
    images, labels = pixels.images[pixels.rows[chosen]], pixels.labels[chosen]  # (n, S, S, 3), (n,)
    some_photos = f"{plural(len(images), 'photo')} of {split.name}"
    logits = predict_logits(trained.net, images, np.arange(len(images)), machine.cpus())
    exported = to_onnx(trained)
    actual, novelty, milliseconds = run_onnx(exported, images)
    scores = trained.net.novelty.score(logits)
    difference = max(
        float(np.abs(actual - trained.probabilities(logits)).max()),
        float((np.abs(novelty - scores) / np.maximum(1, np.abs(scores))).max()),
    )
    if not difference < TOLERANCE:
        raise BadInput(
            f"onnxruntime's results differ from the checkpoint's by {difference:.2g}, "
            f"expected less than {TOLERANCE:g}; nothing was written: "
            "install the onnxruntime that requirements.txt names"
        )
    print(
        f"Equivalent to the checkpoint: results differ by at most {difference:.1e} "
        f"on {some_photos}."
    )
    accuracy = float((actual.argmax(axis=1) == labels).mean())
    measured = (
        f"{ONNX_MODEL}, {len(exported) / 1e6:.1f} MB: accuracy {accuracy:.4f} on {some_photos}, "
        f"{milliseconds:.1f} ms per photo with onnxruntime "
        "(one photo at a time, one thread, preprocessing included)."
    )
    write_atomically(settings.model_dir / ONNX_MODEL, exported)
    card = write_card(trained, measured, results)
    write_atomically(settings.model_dir / MODEL_CARD, card.encode())
    print(f"{measured}\nWritten to {settings.model_dir}: {ONNX_MODEL} and {MODEL_CARD}.")


def read_results(model_dir: Path, sha256: str) -> dict[str, Any] | None:
    """eval_results.json, if it is about the checkpoint with this hash."""
    file = model_dir / EVALUATION
    if not file.exists():
        return None
    try:
        results: dict[str, Any] = json.loads(file.read_text())
        return results if results["checkpoint"]["sha256"] == sha256 else None
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{file}: not what eval writes; delete it, or run eval again") from None


def run_onnx(exported: bytes, photos: UInt8Array) -> tuple[FloatArray, FloatArray, float]:
    """What onnxruntime computes, and its median milliseconds per photo.

    The former are (n, classes) probabilities and (n,) novelty scores. Photos are run one at a time,
    on one thread.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(exported, options)
    results, times = [], []
    for photo in photos:
        started = time.perf_counter()
        results.append(session.run(None, {"photo": photo}))
        times.append(1000 * (time.perf_counter() - started))
    probabilities, novelty = map(np.stack, zip(*results, strict=True))
    return probabilities, novelty, float(np.median(times))


if __name__ == "__main__":
    command.run(main, Settings)
