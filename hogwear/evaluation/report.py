"""The page that eval writes: one file, nothing in it comes from anywhere else, readable on a phone and in the dark."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from hogwear.evaluation import charts
from hogwear.system.arrays import FloatArray, Int64Array, UInt8Array
from hogwear.system.artifacts import REPORT
from hogwear.system.files import write_atomically
from hogwear.system.text import shorten

FEW = 0.1  # an interval of accuracy wider than this claims too much of its test photos
GLOW = (213, 94, 0)  # orange: where the network looked


@dataclass(frozen=True)
class Mistake:
    """A photo of the evaluated split that was answered wrongly."""

    file: Path
    true_class: str
    predicted: str
    probability: float  # of the predicted class, calibrated
    maybe_mislabelled: bool  # so sure that its folder may be what is wrong
    image: UInt8Array  # (S, S, 3) uint8
    evidence: FloatArray  # (H, W): how far each place speaks for the predicted class

    def as_json(self) -> dict[str, Any]:
        return {"file": str(self.file), "true_class": self.true_class, "predicted": self.predicted,
                "probability": self.probability, "maybe_mislabelled": self.maybe_mislabelled}  # fmt: skip


def write(
    folder: Path,
    results: dict[str, Any],
    logits: FloatArray,
    labels: Int64Array,
    history: tuple[dict[str, float], ...],
    mistakes: list[Mistake],
) -> Path:
    """folder/report.html and folder/*.png, from the `results` of eval_results.json and what they were computed from."""
    calibration, sure = results["calibration"], results["sure"]
    matrix, names = np.array(results["confusion_matrix"]), results["class_names"]
    drawn = {
        "confusion": charts.confusion(matrix, names),
        "reliability": charts.reliability(logits, labels, calibration["temperature"]),
        "coverage": charts.coverage(logits, labels, calibration["temperature"], sure["from"]),
    }
    if history:
        drawn["learning_curves"] = charts.learning_curves(history)
    svgs = {name: charts.save(figure, folder / f"{name}.png") for name, figure in drawn.items()}
    gallery = [
        (mistake, picture(mistake.image), picture(glowing(mistake.image, mistake.evidence)))
        for mistake in mistakes
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=harmless,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}\N{NO-BREAK SPACE}%"
    confusions = [
        (names[i], names[j], matrix[i, j], matrix[i, j] / matrix[i].sum())
        for i, j in charts.confusions(matrix)
    ]
    page = environment.get_template("report.html").render(
        r=results,
        charts=svgs,
        confusions=confusions,
        shown_classes=len(charts.most_confused(matrix)),
        gallery=gallery,
        few=FEW,
        history=history,
    )
    write_atomically(folder / REPORT, page.encode())
    return folder / REPORT


def harmless(value: object) -> object:
    """Whatever the page shows, but for what we made ourselves, which contains only text that has been here."""
    return value if isinstance(value, Markup) else shorten(str(value), 200)


def picture(image: UInt8Array) -> Markup:
    """(S, S, 3) uint8 as a data: URL."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return Markup(f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}")


def glowing(image: UInt8Array, evidence: FloatArray) -> UInt8Array:
    """The photo in grey, orange where there is more evidence than on average, the strongest most."""
    size, mean = (image.shape[1], image.shape[0]), float(evidence.mean())
    strength = np.maximum(evidence - mean, 0) / max(float(evidence.max()) - mean, 1e-9)
    mask = np.asarray(
        Image.fromarray(strength.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    ).clip(0, 1)[..., None]
    grey = np.asarray(Image.fromarray(image).convert("L"))[..., None]
    blended: UInt8Array = ((1 - 0.7 * mask) * grey + 0.7 * mask * np.array(GLOW)).astype(np.uint8)
    return blended
