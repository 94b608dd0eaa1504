"""Accuracy over training time: Hogwear's curve and the points of its peers, on three data sets."""

import itertools
import math
import statistics
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from bench.common import Attempts, format_range, markdown_table, workspace
from bench.photos import data_sets, finer_classes, for_peers, results_folder
from bench.runs import run_hogwear, run_peer
from hogwear.evaluation.charts import STYLE
from hogwear.evaluation.palette import BLUE, SOFT

SEEDS = range(3)
OURS = "Hogwear"
STAGE_1 = "--epochs 0"  # the classifier in closed form, without Hogwild
DEFAULTS = "defaults"
SETTINGS: dict[str, tuple[object, ...]] = {  # of train.py
    STAGE_1: ("--epochs", 0),
    DEFAULTS: (),
    **{f"--time-budget {time}": ("--time-budget", time) for time in (10, 20, 40, 75, 150)},
}
PEERS: tuple[tuple[str, str, tuple[object, ...]], ...] = (  # (name, settings, flags)
    ("frozen_features", "160 px", ()),
    ("frozen_features", "224 px", ("--size", 224)),
    ("fast_frozen_features", "160 px", ()),
    ("fast_frozen_features", "224 px", ("--size", 224)),
    ("timm", "1 epoch", ()),
    ("loop", "1 epoch", ()),
    ("loop", "2 epochs", ("--epochs", 2)),
    ("loop", "3 epochs", ("--epochs", 3)),
)
LABELS = {  # in the picture: text, colour (Okabe and Ito's), marker
    OURS: ("Hogwear", BLUE, "o"),
    "frozen_features": ("frozen features + LogisticRegression", "#d55e00", "s"),
    "fast_frozen_features": ("the same, with Hogwear's forward pass", "#cc79a7", "D"),
    "timm": ("timm", "#009e73", "^"),
    "loop": ("plain PyTorch loop", "#e69f00", "v"),
}
PICTURE = "pareto.png"
MOST_SHOWN = 0.16  # accuracy below the best that a panel shows; what is lower is at its edge


class Result(NamedTuple):
    seconds: float  # of training, from process start
    accuracy: float
    loss: float
    photos: int  # that were tested


Results = dict[tuple[str, str], list[Result]]  # {(name, settings): one of each seed}


def pareto() -> str:
    """Accuracy over the time of training, from process start with nothing cached.

    For Hogwear, time is until train.py exits; for peers, until their classifier is trained. Hogwear
    is measured with `--epochs 0` (stage 1 alone), with its defaults and with `--time-budget`; peers
    run at 160 px, where nothing else is said. On fashion5 and on kaggle_sample, whose classes are
    the types of article with at least ten photos, accuracy is that on the test split. On
    clothing10, it is that on the validation photos, on which frozen_features chooses C, and Hogwear
    the best weights. Of several runs, the seed differs, not the split.
    Log loss of Hogwear is that of its calibrated probabilities.
    """
    measured: dict[str, Results] = {}
    attempts = Attempts()
    with workspace() as work, suppress(KeyboardInterrupt):  # what has been measured is reported
        sets = [*data_sets(), *finer_classes(work)]
        measured = {photos.name: {} for photos in sets}
        for seed, photos in itertools.product(SEEDS, sets):
            measure(photos, seed, measured[photos.name], attempts)
    draw(measured, results_folder() / PICTURE)
    tables = markdown_table(
        ["photos", "", "settings", "runs", "seconds", "accuracy", "mean log loss"],
        [row for name, results in measured.items() for row in make_rows(name, results)],
    )
    errors = ", ".join(describe_error(name, results) for name, results in measured.items())
    chance = f"One standard error of an accuracy, because test photos are few: {errors}."
    return f"![accuracy over time]({PICTURE})\n\n{tables}\n\n{chance}{attempts.report()}"


def measure(photos: Path, seed: int, results: Results, attempts: Attempts) -> None:
    """Run Hogwear with all settings, and all peers, once."""

    def run_ours(flags: tuple[object, ...]) -> Result:
        run = run_hogwear(photos, seed, *flags)
        loss = run.results["calibration"]["loss_after"]
        return Result(run.train_seconds, run.accuracy, loss, run.results["num_examples"])

    def run_theirs(peer: str, flags: tuple[object, ...]) -> Result:
        with workspace() as work:
            folder = for_peers(photos, work)
            _, found = run_peer(peer, folder, "--epochs", 1, "--seed", seed, *flags)
        return Result(found["train_seconds"], found["test_acc"], found["test_loss"], 0)

    def add(name: str, settings: str, flags: tuple[object, ...]) -> None:
        what = f"{name}, {settings}, on {photos.name}"
        run = run_ours if name == OURS else lambda flags: run_theirs(name, flags)
        if result := attempts.run(what, lambda: run(flags)):
            results.setdefault((name, settings), []).append(result)
            print(f"{what}, seed {seed}: {result}", flush=True)

    for settings, flags in SETTINGS.items():
        add(OURS, settings, flags)
    for name, settings, flags in PEERS:
        add(name, settings, flags)


def make_rows(photos: str, results: Results) -> list[list[str]]:
    return [
        [
            photos,
            name,
            settings,
            str(len(runs)),
            format_range([run.seconds for run in runs], ".1f"),
            format_range([run.accuracy for run in runs], ".4f"),
            f"{statistics.mean(run.loss for run in runs):.4f}",
        ]
        for (name, settings), runs in results.items()
    ]


def describe_error(photos: str, results: Results) -> str:
    """The standard error of our median accuracy, which the number of photos gives."""
    runs = [run for (name, _), all_runs in results.items() if name == OURS for run in all_runs]
    if not runs:
        return f"{photos} unknown"
    accuracy = statistics.median(run.accuracy for run in runs)
    error = math.sqrt(accuracy * (1 - accuracy) / runs[0].photos)
    return f"{photos} {error:.4f} ({runs[0].photos} photos)"


@matplotlib.rc_context(STYLE)
def draw(measured: dict[str, Results], file: Path) -> None:
    """A panel per data set; medians of all seeds, with bars from the lowest to the highest."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels = figure.subplots(1, len(measured), squeeze=False)[0]
    for axes, (photos, results) in zip(panels, measured.items(), strict=True):
        draw_panel(axes, results)
        axes.set_title(photos, fontweight="bold")
        axes.set_xlabel("training time, seconds")
    panels[0].set_ylabel("accuracy")
    handles = {h.get_label(): h for axes in panels for h in axes.get_legend_handles_labels()[0]}
    order = [label for label, *_ in LABELS.values() if label in handles]
    shown = [handles[label] for label in order]
    figure.legend(shown, order, loc="outside lower center", ncols=3, columnspacing=3)
    figure.savefig(file, facecolor="white", metadata={"Software": None})


def draw_panel(axes: Axes, results: Results) -> None:
    medians = {
        key: (
            statistics.median(run.seconds for run in runs),
            statistics.median(run.accuracy for run in runs),
        )
        for key, runs in results.items()
    }
    scores = [accuracy for _, accuracy in medians.values()] or [1.0]
    floor = max(min(scores), max(scores) - MOST_SHOWN)
    margin = 0.08 * (max(scores) - floor) or 0.01
    axes.set_ylim(floor - 3 * margin, max(scores) + 2 * margin)
    below = 0  # points so far that are less accurate than what is shown
    for name, (label, colour, marker) in LABELS.items():
        points = sorted((*medians[key], key) for key in medians if key[0] == name)
        if not points:
            continue
        is_ours = name == OURS
        xs = [x for x, _, _ in points]
        ys = [max(y, floor) for _, y, _ in points]
        axes.plot(
            xs,
            ys,
            marker=marker,
            markersize=6,
            linewidth=2 if is_ours else 1,
            linestyle="-" if is_ours else ":",
            color=colour,
            label=label,
            zorder=3 if is_ours else 2,
        )
        for x, y, key in points:
            runs = [run.accuracy for run in results[key]]
            if y < floor:
                below += 1  # neighbours would overlap on one line
                note(axes, f"↓ {y:.2f}", x, floor, (0, -17 - 11 * (below % 2)))
            else:
                axes.vlines(x, max(min(runs), floor), max(runs), color=colour, alpha=0.4, zorder=1)
    for settings, text, offset in ((STAGE_1, "stage 1", 10), (DEFAULTS, "defaults", -20)):
        if point := medians.get((OURS, settings)):
            axes.scatter(*point, 110, facecolors="none", edgecolors=BLUE, linewidths=1.5, zorder=4)
            note(axes, text, *point, (0, offset))
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid()


def note(axes: Axes, text: str, x: float, y: float, offset: tuple[float, float]) -> None:
    axes.annotate(
        text, (x, y), offset, textcoords="offset points", ha="center", color=SOFT, fontsize=9
    )
