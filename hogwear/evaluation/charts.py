"""Charts of an evaluation: for the page as SVG, whose ink is the colour of the text around it, and as PNG files.

Blue and orange are Okabe and Ito's, which can be told apart by all.
"""

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from hogwear.evaluation import metrics
from hogwear.system.arrays import FloatArray, Int64Array
from hogwear.system.files import write_atomically
from hogwear.system.text import shorten

BLUE, ORANGE, GREY, INK = "#0072b2", "#d55e00", "#8a929b", "#22262b"
STYLE: Any = {
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY, "grid.color": GREY, "grid.alpha": 0.25,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11, "axes.titlelocation": "left", "font.size": 10,
    "legend.frameon": False, "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "hogwear", "savefig.dpi": 150,
}  # fmt: skip
SHOWN_CLASSES = 25  # of a confusion matrix; of more neither names nor numbers could be read


def save(figure: Figure, file: Path) -> str:
    """Write `file` as PNG on white, and return the same as an <svg> element without a background."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing"
        )  # in the PNG its place is taken by a box; a browser has more fonts
        figure.savefig(png := io.BytesIO(), facecolor="white", metadata={"Software": None})
        write_atomically(file, png.getvalue())
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*"', r"\1", svg[svg.index("<svg") :], count=1)
    svg = re.sub(
        r'(<svg [^>]*?)height="[^"]*"', r"\1", svg, count=1
    )  # as wide as the page lets it be, and as its viewBox is high
    return svg.replace(INK, "currentColor")


def confusions(matrix: Int64Array) -> Int64Array:
    """(k, 2) pairs of a true class and another one predicted for it, the most frequent first."""
    wrong = np.argwhere(matrix * ~np.eye(len(matrix), dtype=bool))
    return wrong[np.argsort(-matrix[wrong[:, 0], wrong[:, 1]], kind="stable")]


def most_confused(matrix: Int64Array) -> Int64Array:
    """All rows, or of more than SHOWN_CLASSES those of the most frequent confusions; the first ones, if there is no confusion."""
    rows = np.arange(len(matrix))
    if len(matrix) > SHOWN_CLASSES:
        confused = list(dict.fromkeys(confusions(matrix).flatten().tolist()))
        rows = np.sort((confused or rows)[:SHOWN_CLASSES])
    return rows


def confusion(matrix: Int64Array, class_names: Sequence[str]) -> Figure:
    """Photos by true class, down, and predicted class, across; darker: a larger share of the true class. Of the classes that are `most_confused`."""
    shown = most_confused(matrix)
    names = [shorten(class_names[i], 24) for i in shown]
    count, side = len(shown), 1.8 + 0.4 * len(shown)
    shares = (matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))[np.ix_(shown, shown)]
    matrix = matrix[np.ix_(shown, shown)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        axes = figure.add_subplot()
        colours = np.empty((count, count, 4))
        colours[..., :3] = matplotlib.colors.to_rgb(BLUE)
        colours[..., 3] = 0.04 + 0.96 * shares  # the page shows through, be it light or dark
        axes.imshow(colours)
        for i, j in np.argwhere(matrix):
            axes.text(
                j,
                i,
                str(matrix[i, j]),
                ha="center",
                va="center",
                fontsize=9,
                color="white" if shares[i, j] > 0.5 else INK,
            )
        axes.set_xticks(range(count), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(count), names)
        axes.set(xlabel="predicted", ylabel="true class")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def learning_curves(history: Sequence[dict[str, float]]) -> Figure:
    """Loss, accuracy, learning rate and images/s of each epoch, as metrics.csv has them."""
    epochs = [row["epoch"] for row in history]
    panels = (
        ("loss", ("train_loss", "val_loss")),
        ("accuracy", ("train_acc", "val_acc")),
        ("learning rate at its end", ("lr",)),
        ("images/s", ("images_per_second",)),
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        for axes, (title, names) in zip(figure.subplots(2, 2).flat, panels, strict=True):
            for name, colour in zip(names, (BLUE, ORANGE), strict=False):
                axes.plot(
                    epochs,
                    [row[name] for row in history],
                    "o-",
                    color=colour,
                    markersize=4,
                    label=name.partition("_")[0],
                )
            axes.set_title(title)
            axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
            axes.set_xticks(epochs if len(epochs) <= 10 else epochs[:: -(-len(epochs) // 10)])
            axes.grid(axis="y")
            if title in ("images/s", "learning rate at its end"):
                axes.set_ylim(bottom=0)
            if len(names) > 1:
                axes.legend()
        for axes in figure.axes[2:]:
            axes.set_xlabel("epoch")
    return figure


def reliability(logits: FloatArray, labels: Int64Array, temperature: float) -> Figure:
    """How often answers of a confidence are right: on the diagonal as often as they say; below, and how many answers there are."""
    right = logits.argmax(axis=1) == labels
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 5.0), layout="constrained")
        upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
        upper.plot((0, 1), (0, 1), "--", color=GREY, linewidth=1)
        for scale, colour, marker, label in (
            (1.0, ORANGE, "s", "as trained"),
            (temperature, BLUE, "o", "calibrated"),
        ):
            found = metrics.reliability(metrics.confidences(logits, scale), right)
            some = found["count"] > 0
            count = found["count"][
                some
            ]  # the larger the mark, the more photos, for those of few mean little
            upper.scatter(
                found["confidence"][some],
                found["accuracy"][some],
                s=15 + 150 * count / count.max(),
                c=colour,
                marker=marker,
                alpha=0.8,
                linewidths=0,
                label=label,
            )
        edges = np.linspace(0, 1, len(found["count"]) + 1)
        lower.bar(edges[:-1], found["count"], np.diff(edges), align="edge", color=BLUE, alpha=0.6)
        upper.set(ylim=(-0.02, 1.02), ylabel="share that is right", xlim=(0, 1))
        for mark in upper.legend(loc="upper left").legend_handles:
            mark.set_sizes([40])
        upper.grid()
        lower.set(xlabel="probability of the answer", ylabel="photos")
    return figure


def coverage(
    logits: FloatArray, labels: Int64Array, temperature: float, sure_from: float
) -> Figure:
    """What it gains to answer only where the network is sure: accuracy against the share of photos that is answered."""
    confidence, right = metrics.confidences(logits, temperature), logits.argmax(axis=1) == labels
    thresholds, shares, accuracies = metrics.coverage(confidence, right)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(shares, accuracies, color=BLUE)
        if (sure := thresholds >= sure_from).any():
            last = np.flatnonzero(sure)[-1]
            axes.plot(
                shares[last],
                accuracies[last],
                "o",
                color=ORANGE,
                label=f"sure: probability {sure_from:.2f} and up",
            )
            axes.legend(loc="lower left")
        axes.set(
            xlabel="share of photos answered", ylabel="share of those that is right", xlim=(0, 1.02)
        )
        axes.set_ylim(min(0.95, float(accuracies.min()) - 0.02), 1.005)
        axes.grid()
    return figure
