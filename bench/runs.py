"""The parts of the bench that time whole processes, from start to exit."""

import gzip
import itertools
import json
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from bench.common import CLOTHING10, FASHION5, ROOT, evaluate, folders, spread, table, timed, train

SEEDS = range(3)
# Peer, its epochs. The user's loop also at two, where it is at its best.
PEERS = (
    ("loop", 1),
    ("fastai", 1),
    ("ddp", 1),
    ("lightning", 1),
    ("timm", 1),
    ("frozen_features", 1),
    ("ultralytics", 3),
    ("loop", 2),
)
FASTER = ("--image-size", 128, "--epochs", 1)


@contextmanager
def workspace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def ours(photos: Path, seed: int, *flags: object) -> tuple[float, float, dict[str, Any]]:
    """Seconds that train.py takes with nothing cached, those of eval.py after it, and what that says."""
    with workspace() as work:
        wall, started = train(photos, work, "--seed", seed, *flags), time.perf_counter()
        results = evaluate(photos, work)
        return wall, time.perf_counter() - started, results


def accuracy() -> str:
    """`train.py` from process start to exit with nothing cached, then `eval.py`; the figures of clothing10 are of its validation photos."""
    rows = []
    for photos, seeds, flags in ((FASHION5, range(5), ()), (FASHION5, range(5), FASTER),
                                 (CLOTHING10, SEEDS, ()),
                                 (CLOTHING10, SEEDS, ("--time-budget", 75))):  # fmt: skip
        runs = [ours(photos, seed, *flags) for seed in seeds]
        scores = [results["test_acc"] for *_, results in runs]
        rows.append([photos.name, " ".join(map(str, flags)) or "defaults", str(len(runs)), spread([wall for wall, *_ in runs], ".1f"),
                     spread(scores, ".4f"), f"{statistics.mean(scores):.4f}"])  # fmt: skip
    return table(["photos", "settings", "seeds", "seconds", "accuracy", "mean"], rows)


def peers() -> str:
    """Libraries on fashion5 from the same weights (Ultralytics from scratch: its weights are a download), 160 px, each run a
    process from start to exit, measuring test included (ours: train.py, then eval.py). Ratio: its seconds over those of our
    defaults, run just before it. frozen_features: scikit-learn's LogisticRegression on the features of one pass of the
    network, which is not trained; C is chosen on val."""
    runs: dict[str, list[tuple[float, float, float]]] = {
        "Hogwear": []
    }  # (seconds, ratio, accuracy)
    with suppress(KeyboardInterrupt):  # an hour: Ctrl-C ends it with what has been measured
        for seed, (name, epochs) in itertools.product(SEEDS, PEERS):
            training, testing, results = ours(FASHION5, seed)
            reference = training + testing
            wall, out = timed(
                "-m", "bench.peers", name, "--photos", FASHION5, "--epochs", epochs, "--seed", seed
            )
            score = json.loads(out.splitlines()[-1])["test_acc"]
            runs["Hogwear"].append((reference, 1.0, results["test_acc"]))
            runs.setdefault(f"{name}, epochs: {epochs}", []).append((wall, wall / reference, score))
            print(
                f"{name} {epochs} {seed}: {wall:.1f} s, ours {reference:.1f} s, {score:.4f}",
                flush=True,
            )
    rows = []
    for name, figures in runs.items():
        walls, ratios, scores = (list(values) for values in zip(*figures, strict=True))
        rows.append(
            [
                name,
                str(len(walls)),
                spread(walls, ".1f"),
                spread(ratios, ".1f"),
                spread(scores, ".4f"),
            ]
        )
    return table(["", "runs", "seconds", "times ours", "test accuracy"], rows)


def ancestor() -> str:
    """TinyVGG from scratch at 128 px: the ancestor's own loop (5 processes, each of which passes over the whole set five times; one seed) beside
    `train.py --arch tinyvgg --workers 2` (three seeds), each run from process start to exit, measuring test included; clothing10 is measured on validation."""
    rows, sentences = [], []
    for photos in (FASHION5, CLOTHING10):
        with workspace() as work:
            (work / "train").symlink_to(photos / "train")
            (work / "test").symlink_to(
                photos / ("test" if (photos / "test").is_dir() else "validation")
            )
            theirs, out = timed(
                "-m", "bench.peers", "ancestor", "--photos", work, "--size", 128, "--epochs", 5
            )
        accuracy, reached = json.loads(out.splitlines()[-1])["test_acc"], ""
        rows.append([photos.name, "the ancestor", f"{theirs:.0f}", "", f"{accuracy:.4f}", ""])
        for flags in (("--epochs", 3), ("--epochs", 5), ()):
            runs = [
                ours(photos, seed, "--arch", "tinyvgg", "--image-size", 128, "--workers", 2, *flags)
                for seed in SEEDS
            ]
            walls, scores = (
                [training + testing for training, testing, _ in runs],
                [results["test_acc"] for *_, results in runs],
            )
            mean, ratio = statistics.mean(scores), theirs / statistics.median(walls)
            name = " ".join(map(str, flags)) or "the default number of epochs"
            rows.append(
                [
                    photos.name,
                    f"Hogwear, {name}",
                    spread(walls, ".0f"),
                    f"{ratio:.1f}",
                    spread(scores, ".4f"),
                    f"{mean:.4f}",
                ]
            )
            if mean >= accuracy and not reached:
                reached = f"{statistics.median(walls):.0f} s ({name}), {ratio:.1f} times as fast"
        sentences.append(
            f"{photos.name}: as accurate as the ancestor after {reached or 'no run here'}."
        )
    return (
        table(["photos", "", "seconds", "times as fast", "accuracy", "mean"], rows)
        + "\n\n"
        + "\n".join(sentences)
    )


def budget() -> str:
    """`train.py --time-budget`, from process start to exit with nothing cached."""
    rows = []
    for photos, seconds in ((FASHION5, 10), (FASHION5, 30), (CLOTHING10, 30), (CLOTHING10, 150)):
        with workspace() as work:
            wall, out = timed("train.py", *folders(photos, work), "--time-budget", seconds)
            plan = re.search(r"at (\d+) px.*?(\d+) epochs", out)
            score = evaluate(photos, work)["test_acc"]
        rows.append([photos.name, str(seconds), f"{wall:.1f}", f"{wall / seconds - 1:+.0%}",
                     f"{plan[1]} px, {plan[2]} epochs" if plan else "", f"{score:.4f}"])  # fmt: skip
    return table(["photos", "budget, s", "took", "off by", "plan", "accuracy"], rows)


# train.py, which tells when the first batch was answered: the closed form's first photos, then training's first step.
WATCHED = """
import runpy, sys, time
from hogwear.system import workers
plain, seen = workers.Workers.run, set()
def watched(self, job, *arguments, **options):
    for answer in plain(self, job, *arguments, **options):
        if job not in seen:
            seen.add(job)
            print("first", job, time.time(), flush=True)
        yield answer
workers.Workers.run = watched
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start() -> str:
    """From process start, on fashion5; decoded before, but for the line that says otherwise."""
    torch = [timed("-c", "import torch, os; os._exit(0)")[0] for _ in range(5)]
    firsts: dict[str, list[float]] = {}
    with workspace() as work:
        train(FASHION5, work, "--epochs", 1)
        cold, *warm = (evaluate(FASHION5, work)["images_per_second"] for _ in range(6))
        walls = [timed("eval.py", *folders(FASHION5, work))[0] for _ in range(5)]
        infer = [
            timed(
                "infer.py",
                *folders(FASHION5, work),
                "--responses-dir",
                work / "responses",
                "--seed",
                n,
            )
            for n in range(5)
        ]
        for _ in range(5):
            started = time.time()
            _, out = timed(
                "-c", WATCHED, "train.py", *folders(FASHION5, work), "--epochs", 1, "--fresh"
            )
            for job, moment in re.findall(r"first (\w+) ([\d.]+)", out):
                firsts.setdefault(job, []).append(float(moment) - started)
    latency = [
        float(found[1]) for _, out in infer if (found := re.search(r"([\d.]+) ms on one CPU", out))
    ]
    return table(
        ["", "median (range)"],
        [
            ["import torch", spread(torch) + " s"],
            ["train.py to the first batch through the network", spread(firsts["moments"]) + " s"],
            [
                "train.py to the first step, the classifier's closed form being done",
                spread(firsts["train"]) + " s",
            ],
            ["infer.py, five photos", spread([wall for wall, _ in infer]) + " s"],
            ["one decoded photo, one thread", spread(latency, ".1f") + " ms"],
            ["eval.py, 630 photos", spread(walls) + " s"],
            ["eval.py while it decodes and predicts", f"{cold:.0f} images/s"],
            ["eval.py, decoded before", spread(warm, ".0f") + " images/s"],
        ],
    )


FASHION_MNIST = Path(
    "/usr/share/datasets/fashion-mnist"
)  # of Debian's package dataset-fashion-mnist


def fashion_mnist() -> str:
    """Fashion-MNIST (Debian's dataset-fashion-mnist), accuracy over time: `train.py --image-size 64`, each point a whole run with
    nothing cached, beside pytorch/examples' mnist_hogwild in our own words, tested while it trains."""
    with workspace() as work:
        as_png(work / "photos")
        points = []
        for flags in (("--time-budget", 60), ("--epochs", 1), ("--epochs", 2)):
            run = work / "-".join(map(str, flags))
            wall = train(work / "photos", run, "--image-size", 64, *flags)
            points.append((wall, evaluate(work / "photos", run)["test_acc"]))
        _, out = timed(
            "-m", "bench.peers", "mnist_hogwild", "--photos", FASHION_MNIST, "--epochs", 4
        )
        curve = json.loads(out.splitlines()[-1])["curve"]
    draw_curves(
        {"Hogwear, a run a point": points, "mnist_hogwild": curve},
        ROOT / "bench" / "fashion_mnist.png",
    )
    rows = [["Hogwear", f"{seconds:.0f}", f"{score:.4f}"] for seconds, score in points]
    best = max(score for _, score in curve)
    rows += [
        [
            "mnist_hogwild, at its best",
            f"{next(seconds for seconds, score in curve if score == best):.0f}",
            f"{best:.4f}",
        ]
    ]
    return (
        table(["", "seconds", "test accuracy"], rows)
        + "\n\n![accuracy over time](fashion_mnist.png)"
    )


def as_png(folder: Path) -> None:
    """The data set as folders of PNG files, every twelfth training photo in val."""
    for name, part in (("train", "train"), ("t10k", "test")):
        images = np.frombuffer(
            gzip.decompress((FASHION_MNIST / f"{name}-images-idx3-ubyte.gz").read_bytes()),
            np.uint8,
            offset=16,
        )
        labels = np.frombuffer(
            gzip.decompress((FASHION_MNIST / f"{name}-labels-idx1-ubyte.gz").read_bytes()),
            np.uint8,
            offset=8,
        )
        for i, (image, label) in enumerate(
            zip(images.reshape(-1, 28, 28), labels.tolist(), strict=True)
        ):
            target = folder / ("val" if part == "train" and i % 12 == 0 else part) / str(label)
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(target / f"{i}.png", compress_level=1)


def draw_curves(curves: dict[str, list[tuple[float, float]]], file: Path) -> None:
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for (name, points), colour in zip(curves.items(), ("#0072B2", "#D55E00"), strict=True):
        axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=3, label=name)
    axes.set(xlabel="seconds since the process started", ylabel="test accuracy", ylim=(0.7, 1.0))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(file, metadata={"Software": None})
