"""The report of an evaluation: one self-contained HTML file."""

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image, ImageColor

from hogwear.evaluation import charts, palette
from hogwear.evaluation.evaluation import Evaluation
from hogwear.evaluation.mistakes import Mistake
from hogwear.system.arrays import FloatArray, UInt8Array
from hogwear.system.artifacts import REPORT
from hogwear.system.files import write_atomically
from hogwear.system.text import plural, shorten

WIDE_INTERVAL = 0.1  # a confidence interval of the accuracy that gets a warning


def write_report(
    folder: Path, results: dict[str, Any], evaluation: Evaluation, mistakes: list[Mistake]
) -> Path:
    """Write folder/report.html and its charts as PNG. `results` are those of eval_results.json."""
    names, matrix = evaluation.class_names, evaluation.confusion_matrix
    figures = {
        "confusion": charts.draw_confusion_matrix(matrix, names),
        "reliability": charts.draw_reliability_diagram(evaluation),
        "coverage": charts.draw_coverage_curve(evaluation),
    }
    if evaluation.history:
        figures["learning_curves"] = charts.draw_learning_curves(evaluation.history)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=escape_value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda share: f"{100 * share:.1f}\N{NO-BREAK SPACE}%",
        "photos": lambda count: plural(count, "photo"),
        "data_url": to_data_url,
        "overlay": overlay,
    }
    page = environment.get_template("report.html").render(
        r=results,
        palette=palette.REPORT,
        charts={
            name: Markup(charts.save_chart(figure, folder / f"{name}.png"))
            for name, figure in figures.items()
        },
        confusions=[
            (names[i], names[j], matrix[i, j], matrix[i, j] / matrix[i].sum())
            for i, j in charts.find_confusions(matrix)
        ],
        shown_classes=len(charts.find_most_confused(matrix)),
        mistakes=mistakes,
        wide_interval=WIDE_INTERVAL,
    )
    write_atomically(folder / REPORT, page.encode())
    return folder / REPORT


def escape_value(value: object) -> object:
    """Escape and shorten a value for the page. Markup is our own and stays as it is."""
    return value if isinstance(value, Markup) else shorten(str(value), 200)


def to_data_url(image: UInt8Array) -> Markup:
    """(S, S, 3) -> a JPEG as a data: URL."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return Markup(f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}")


def overlay(image: UInt8Array, activation_map: FloatArray) -> UInt8Array:
    """The photo, (S, S, 3), in grey, and orange where the map, (H, W), is above its mean."""
    size, mean = (image.shape[1], image.shape[0]), float(activation_map.mean())
    strength = np.maximum(activation_map - mean, 0) / max(float(activation_map.max()) - mean, 1e-9)
    mask = Image.fromarray(strength.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    opacity = 0.7 * np.asarray(mask).clip(0, 1)[..., None]
    grey = np.asarray(Image.fromarray(image).convert("L"))[..., None]
    blended = (1 - opacity) * grey + opacity * np.array(ImageColor.getrgb(palette.ORANGE))
    return blended.astype(np.uint8)
