"""The report of an evaluation: one self-contained HTML file."""

import io
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from hogwear.evaluation import charts, pages
from hogwear.evaluation.evaluation import Evaluation
from hogwear.evaluation.mistakes import Mistake
from hogwear.evaluation.pictures import overlay
from hogwear.system.arrays import UInt8Array
from hogwear.system.artifacts import REPORT
from hogwear.system.files import write_atomically

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
    page = pages.render(
        "report.html",
        r=results,
        charts={
            name: Markup(charts.save_chart(figure, folder / f"{name}.png"))
            for name, figure in figures.items()
        },
        confusions=[
            (names[i], names[j], matrix[i, j], matrix[i, j] / matrix[i].sum())
            for i, j in charts.find_confusions(matrix)
        ],
        shown_classes=len(charts.find_most_confused(matrix)),
        mistakes=[(mistake, *draw_mistake(mistake)) for mistake in mistakes],
        wide_interval=WIDE_INTERVAL,
    )
    write_atomically(folder / REPORT, page.encode())
    return folder / REPORT


def draw_mistake(mistake: Mistake) -> tuple[bytes, bytes]:
    """The photo, and what the network looked at, as JPEG files."""
    return to_jpeg(mistake.image), to_jpeg(overlay(mistake.image, mistake.activation_map))


def to_jpeg(image: UInt8Array) -> bytes:
    """(S, S, 3) -> a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
