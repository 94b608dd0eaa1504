"""The charts of an evaluation: PNG files, and SVG for the report, in its colours."""

import io
import itertools
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hogwear.evaluation import calibration
from hogwear.evaluation.evaluation import Evaluation
from hogwear.evaluation.palette import BLUE, GREY, INK, ORANGE
from hogwear.system.arrays import Int64Array
from hogwear.system.files import write_atomically
from hogwear.system.text import shorten

STYLE: Any = {  # matplotlib types the keys as literals
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), GREY),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("legend.frameon", "text.parse_math"), False),
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.size": 10,
    "grid.alpha": 0.25,
    "savefig.dpi": 150,
    "svg.fonttype": "none",
    "svg.hashsalt": "hogwear",
}
SHOWN_CLASSES = 25  # of a confusion matrix; names and numbers of more could not be read
SHOWN_EPOCHS = 6  # ticks of an axis


@matplotlib.rc_context(STYLE)
def save_chart(figure: Figure, file: Path) -> str:
    """Write `file` as PNG on white, and return an <svg> element without a background."""
    with warnings.catch_warnings():
        # A letter that the font lacks is a box in the PNG; in the SVG the browser has more fonts.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(png := io.BytesIO(), facecolor="white", metadata={"Software": None})
        write_atomically(file, png.getvalue())
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r'(width|height)="[^"]*"', "", svg, count=2
    )  # the page sets them, from the viewBox
    variables = {INK: "currentColor", BLUE: "var(--blue)", ORANGE: "var(--orange)"}
    return re.sub("|".join(variables), lambda match: variables[match[0]], svg)


def find_confusions(matrix: Int64Array) -> Int64Array:
    """(k, 2) pairs of a true class and another class predicted for it, the most frequent first."""
    pairs = np.argwhere(matrix * ~np.eye(len(matrix), dtype=bool))
    return pairs[np.argsort(-matrix[pairs[:, 0], pairs[:, 1]], kind="stable")]


def find_most_confused(matrix: Int64Array) -> Int64Array:
    """All classes or, of more than SHOWN_CLASSES, those in the most frequent confusions, sorted."""
    classes = np.arange(len(matrix))
    if len(matrix) > SHOWN_CLASSES:
        confused = list(dict.fromkeys(find_confusions(matrix).flatten().tolist()))
        classes = np.sort((confused or classes)[:SHOWN_CLASSES])
    return classes


@matplotlib.rc_context(STYLE)
def draw_confusion_matrix(matrix: Int64Array, class_names: Sequence[str]) -> Figure:
    """Photos by true class (rows) and predicted class (columns); the colour is the share of a row.

    Only the classes of `find_most_confused` are shown.
    """
    shown = find_most_confused(matrix)
    names = [shorten(class_names[i], 24) for i in shown]
    count, side = len(shown), 1.8 + 0.4 * len(shown)
    shares = (matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))[np.ix_(shown, shown)]
    matrix = matrix[np.ix_(shown, shown)]
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.add_subplot()
    colours = np.empty((count, count, 4))
    colours[..., :3] = to_rgb(BLUE)
    colours[..., 3] = 0.04 + 0.96 * shares  # transparent: the page may be light or dark
    axes.imshow(colours)
    for i, j in np.argwhere(matrix):
        colour = "white" if shares[i, j] > 0.5 else INK
        axes.text(j, i, str(matrix[i, j]), ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(count), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names)
    axes.set(xlabel="Predicted class", ylabel="True class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


@matplotlib.rc_context(STYLE)
def draw_learning_curves(history: Sequence[dict[str, Any]]) -> Figure:
    """Loss and accuracy at each validation, from the rows of metrics.csv.

    Closed-form classifiers, before training, are diamonds. Where the classes have changed, the
    curves are interrupted: figures on both sides are not comparable.
    """
    changed = [i for i, row in enumerate(history) if row["stage"] == "classes changed"]
    parts = [history[a:b] for a, b in itertools.pairwise([0, *changed, len(history)])]
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    for axes, (title, name) in zip(
        figure.subplots(1, 2), {"Loss": "loss", "Accuracy": "acc"}.items(), strict=True
    ):
        for split, colour in (("train", BLUE), ("val", ORANGE)):
            style: dict[str, Any] = {"color": colour, "markersize": 4, "clip_on": False}
            label = split
            for part in parts:
                rows = [row for row in part if row[f"{split}_{name}"] is not None]
                points = [(row["epoch"], row[f"{split}_{name}"]) for row in rows]
                if points:
                    xs, ys = zip(*points, strict=True)
                    axes.plot(xs, ys, "o-", label=label, **style)
                    label = ""  # once in the legend
        solved = [row for row in history if row["stage"] == "closed form"]
        if solved:
            style = {"color": ORANGE, "markersize": 7, "clip_on": False, "label": "closed form"}
            points = [(row["epoch"], row[f"val_{name}"]) for row in solved]
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, "D", **style)
        for i in changed:
            label = "classes changed" if i == changed[0] else ""
            axes.axvline(history[i]["epoch"], linestyle=":", color=GREY, zorder=1, label=label)
        axes.set_title(title)
        axes.set_xlabel("Epoch")
        axes.grid(axis="y")
        last = max(1.0, history[-1]["epoch"])
        axes.set_xlim(-0.03 * last, 1.03 * last)
        axes.xaxis.set_major_locator(MaxNLocator(SHOWN_EPOCHS))
        axes.legend()
    return figure


@matplotlib.rc_context(STYLE)
def draw_reliability_diagram(evaluation: Evaluation) -> Figure:
    """Accuracy over confidence, before and after calibration, with the photos in each bin below.

    On the diagonal, predictions are correct as often as their probability says.
    """
    figure = Figure(figsize=(4.6, 5.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    upper.plot((0, 1), (0, 1), "--", color=GREY, linewidth=1)
    curves = {
        "before calibration": (calibration.confidences(evaluation.logits), ORANGE, "s"),
        "after calibration": (evaluation.confidence, BLUE, "o"),
    }
    for label, (confidence, colour, marker) in curves.items():
        bins = calibration.reliability_bins(confidence, evaluation.correct)
        upper.scatter(  # empty bins are NaN, and are not drawn
            bins["confidence"],
            bins["accuracy"],
            s=15 + 150 * bins["count"] / bins["count"].max(),  # bins of few photos mean little
            c=colour,
            marker=marker,
            alpha=0.8,
            linewidths=0,
            clip_on=False,
            label=label,
        )
    edges = np.linspace(0, 1, len(bins["count"]) + 1)
    lower.bar(edges[:-1], bins["count"], np.diff(edges), align="edge", color=BLUE, alpha=0.6)
    upper.set(ylim=(-0.02, 1.02), ylabel="Accuracy", xlim=(0, 1))
    for mark in upper.legend(loc="upper left").legend_handles:
        mark.set_sizes([40])
    upper.grid()
    lower.set(xlabel="Confidence", ylabel="Photos")
    return figure


@matplotlib.rc_context(STYLE)
def draw_coverage_curve(evaluation: Evaluation) -> Figure:
    """Accuracy over coverage: of the photos that reach a confidence, and how many those are."""
    thresholds, shares, accuracies = calibration.coverage_curve(
        evaluation.confidence, evaluation.correct
    )
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(shares, accuracies, color=BLUE)
    if (sure := thresholds >= evaluation.confidence_threshold).any():
        last = np.flatnonzero(sure)[-1]
        label = f"confidence {evaluation.confidence_threshold:.2f} or more"
        axes.plot(shares[last], accuracies[last], "o", color=ORANGE, label=label)
        axes.legend(loc="lower left")
    axes.set(xlabel="Coverage", ylabel="Accuracy", xlim=(0, 1.02))
    axes.set_ylim(min(0.95, float(accuracies.min()) - 0.02), 1.005)
    axes.grid()
    return figure
