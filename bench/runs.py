"""Benchmarks of whole processes, from start to exit."""

import gzip
import itertools
import json
import re
import statistics
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from bench.common import (
    Attempts,
    evaluate,
    folder_flags,
    format_range,
    format_ratios,
    markdown_table,
    read_history,
    time_python,
    train,
    workspace,
)
from bench.photos import data_sets, for_peers, results_folder

SEEDS = range(3)
PEERS = (  # (peer, epochs)
    ("loop", 1),
    ("fastai", 1),
    ("ddp", 1),
    ("lightning", 1),
    ("timm", 1),
    ("frozen_features", 0),
    ("fast_frozen_features", 0),
    ("ultralytics", 3),
    ("loop", 2),  # where it is most accurate
)
TIME_BUDGETS = ((20, 40), (40, 150))  # seconds, for the first and the second data set


class Run(NamedTuple):
    """A run of train.py with nothing cached, and of eval.py after it."""

    train_seconds: float
    eval_seconds: float
    results: dict[str, Any]  # eval_results.json

    @property
    def seconds(self) -> float:
        return self.train_seconds + self.eval_seconds

    @property
    def accuracy(self) -> float:
        return float(self.results["test_acc"])


def run_hogwear(photos: Path, seed: int, *flags: object) -> Run:
    with workspace() as work:
        train_seconds = train(photos, work, "--seed", seed, *flags)
        started = time.perf_counter()
        results = evaluate(photos, work)
        return Run(train_seconds, time.perf_counter() - started, results)


def run_peer(name: str, photos: Path, *flags: object) -> tuple[float, dict[str, Any]]:
    """Seconds that a peer takes, and what it prints (bench/peers)."""
    seconds, output = time_python("-m", "bench.peers", name, "--photos", photos, *flags)
    results: dict[str, Any] = json.loads(output.splitlines()[-1])
    return seconds, results


def peers() -> str:
    """Hogwear and other ways to train on fashion5 at 160 px, from the same ImageNet weights.

    Only Ultralytics trains from scratch, because its weights would be a download. Seconds are from
    process start to exit, with nothing cached, and include measuring accuracy on the test split
    (Hogwear: train.py, then eval.py). Time ratios are to a run of Hogwear just before.
    frozen_features is one pass of the network without training it, then scikit-learn's
    LogisticRegression on its features, with C chosen on the validation split;
    fast_frozen_features is the same with Hogwear's decoding and forward pass.
    """
    photos, attempts = data_sets()[0], Attempts()
    seconds: dict[str, list[float]] = {}
    reference: dict[str, list[float]] = {}  # of the run of Hogwear before each
    accuracies: dict[str, list[float]] = {}
    # Ctrl-C after an hour, say, ends it; what has been measured is reported
    with workspace() as work, suppress(KeyboardInterrupt):
        folder = for_peers(photos, work)
        for seed, (peer, epochs) in itertools.product(SEEDS, PEERS):
            theirs = f"{peer}, {epochs} epoch{'s' * (epochs > 1)}" if epochs else peer
            before = f"Hogwear before {theirs}, seed {seed}"
            ours = attempts.run(before, partial(run_hogwear, photos, seed))
            run = partial(run_peer, peer, folder, "--epochs", epochs, "--seed", seed)
            if ours is None or (measured := attempts.run(theirs, run)) is None:
                continue
            wall, results = measured
            for name, time_taken, accuracy in (
                ("Hogwear", ours.seconds, ours.accuracy),
                (theirs, wall, results["test_acc"]),
            ):
                seconds.setdefault(name, []).append(time_taken)
                reference.setdefault(name, []).append(ours.seconds)
                accuracies.setdefault(name, []).append(accuracy)
            print(f"{theirs}, seed {seed}: {wall:.1f} s, ours {ours.seconds:.1f} s", flush=True)
    rows = [
        [
            name,
            str(len(times)),
            format_range(times, ".1f"),
            format_ratios(times, reference[name], ".1f"),
            format_range(accuracies[name], ".4f"),
        ]
        for name, times in seconds.items()
    ]
    header = ["", "runs", "seconds", "time ratio", "test accuracy"]
    return markdown_table(header, rows) + attempts.report()


def time_budget() -> str:
    """`train.py --time-budget`, from process start to exit with nothing cached."""
    rows = []
    for photos, budgets in zip(data_sets(), TIME_BUDGETS, strict=False):
        for budget in budgets:
            with workspace() as work:
                flags = (*folder_flags(photos, work), "--time-budget", budget)
                seconds, output = time_python("train.py", *flags)
                size = re.search(r"at (\d+) px", output)
                epochs = float(read_history(work / "model")[-1]["epoch"])
                score = evaluate(photos, work)["test_acc"]
            trained = f"{size[1] if size else '?'} px, {epochs:.3g} epochs"
            times = [str(budget), f"{seconds:.1f}", f"{seconds / budget - 1:+.0%}"]
            rows.append([photos.name, *times, trained, f"{score:.4f}"])
    header = ["photos", "budget, s", "taken, s", "error", "trained", "accuracy"]
    return markdown_table(header, rows)


def predecessor() -> str:
    """TinyVGG from scratch at 128 px: `train.py --arch tinyvgg` and the program before Hogwear.

    That one runs 5 processes, each of which passes over all photos five times (one seed); Hogwear
    runs two workers (three seeds). Seconds are from process start to exit and include measuring
    accuracy on the test split, or on validation (clothing10).
    """
    rows, summary = [], []
    for photos in data_sets():
        with workspace() as work:
            settings = ("--size", 128, "--epochs", 5)
            theirs, results = run_peer("predecessor", for_peers(photos, work), *settings)
        target, reached = results["test_acc"], "in no run"
        rows.append([photos.name, "predecessor", f"{theirs:.0f}", "", f"{target:.4f}", ""])
        for flags in (("--epochs", 3), ("--epochs", 5), ()):
            small = ("--arch", "tinyvgg", "--image-size", 128, "--workers", 2)
            runs = [run_hogwear(photos, seed, *small, *flags) for seed in SEEDS]
            times = [run.seconds for run in runs]
            accuracies = [run.accuracy for run in runs]
            median, mean = statistics.median(times), statistics.mean(accuracies)
            name = " ".join(map(str, flags)) or "default epochs"
            scores = [format_range(accuracies, ".4f"), f"{mean:.4f}"]
            speed_up = f"{theirs / median:.1f}"
            row = [photos.name, f"Hogwear, {name}", format_range(times, ".0f"), speed_up, *scores]
            rows.append(row)
            if mean >= target and reached == "in no run":
                reached = f"after {median:.0f} s ({name}), {speed_up} times as fast"
        summary.append(f"{photos.name}: Hogwear is as accurate as its predecessor {reached}.")
    header = ["photos", "", "seconds", "speed-up", "accuracy", "mean"]
    return markdown_table(header, rows) + "\n\n" + "\n".join(summary)


def start_up() -> str:
    """Time from process start on fashion5, with photos in the cache unless a row says otherwise."""
    importing = [time_python("-c", "import torch, os; os._exit(0)")[0] for _ in range(5)]
    first: dict[str, list[float]] = {}
    photos = data_sets()[0]
    with workspace() as work:
        flags = folder_flags(photos, work)
        train(photos, work, "--epochs", 1)
        cold, *warm = (evaluate(photos, work)["images_per_second"] for _ in range(6))
        evaluated = evaluate(photos, work)["num_examples"]
        evaluating = [time_python("eval.py", *flags)[0] for _ in range(5)]
        infer = (*flags, "--responses-dir", work / "responses", "--seed")
        predicting = [time_python("infer.py", *infer, seed) for seed in range(5)]
        for _ in range(5):
            started = time.time()
            probe = ("-m", "bench.probe", "print_first_results")
            _, output = time_python(*probe, *flags, "--epochs", 1, "--fresh")
            for job, moment in re.findall(r"first (\w+) ([\d.]+)", output):
                first.setdefault(job, []).append(float(moment) - started)
    latencies = [re.search(r"([\d.]+) ms on one CPU", output) for _, output in predicting]
    latency = format_range([float(found[1]) for found in latencies if found], ".1f")
    predicting_seconds = format_range([seconds for seconds, _ in predicting])
    rows = [
        ["import torch", f"{format_range(importing)} s"],
        ["train.py until the first result of the network", f"{format_range(first['trunk'])} s"],
        ["train.py until the first training step", f"{format_range(first['train'])} s"],
        ["infer.py, five photos", f"{predicting_seconds} s"],
        ["prediction of one decoded photo on one thread", f"{latency} ms"],
        [f"eval.py, {evaluated} photos", f"{format_range(evaluating)} s"],
        ["eval.py, decoding and predicting", f"{cold:.0f} images/s"],
        ["eval.py, predicting", f"{format_range(warm, '.0f')} images/s"],
    ]
    return markdown_table(["", "median (range)"], rows)


# From Debian's package dataset-fashion-mnist.
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def fashion_mnist() -> str:
    """Accuracy over time on Fashion-MNIST: `train.py --image-size 64` and mnist_hogwild.

    Each point of Hogwear is a run with nothing cached. mnist_hogwild is pytorch/examples' program,
    rewritten; it is measured while it trains. The photos are of Debian's dataset-fashion-mnist.
    """
    with workspace() as work:
        write_fashion_mnist(work / "photos")
        points = []
        for flags in (("--time-budget", 60), ("--epochs", 1), ("--epochs", 2)):
            run = work / "-".join(map(str, flags))
            seconds = train(work / "photos", run, "--image-size", 64, *flags)
            points.append((seconds, evaluate(work / "photos", run)["test_acc"]))
        curve = run_peer("mnist_hogwild", FASHION_MNIST, "--epochs", 4)[1]["curve"]
    picture = "fashion_mnist.png"
    draw_curves({"Hogwear, one run each": points, "mnist_hogwild": curve}, picture)
    rows = [["Hogwear", f"{seconds:.0f}", f"{score:.4f}"] for seconds, score in points]
    seconds, best = max(curve, key=lambda point: point[1])
    rows.append(["mnist_hogwild, at its best", f"{seconds:.0f}", f"{best:.4f}"])
    table = markdown_table(["", "seconds", "test accuracy"], rows)
    return f"{table}\n\n![accuracy over time]({picture})"


def write_fashion_mnist(folder: Path) -> None:
    """Write Fashion-MNIST as folders of PNG files; every twelfth training photo goes to val."""

    def read(file: str, offset: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.frombuffer(
            gzip.decompress((FASHION_MNIST / file).read_bytes())[offset:], np.uint8
        )

    for prefix, part in (("train", "train"), ("t10k", "test")):
        images = read(f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        labels = read(f"{prefix}-labels-idx1-ubyte.gz", 8)
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            split = "val" if part == "train" and i % 12 == 0 else part
            target = folder / split / str(label)
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(target / f"{i}.png", compress_level=1)


def draw_curves(curves: dict[str, list[tuple[float, float]]], name: str) -> None:
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for (label, points), colour in zip(curves.items(), ("#0072B2", "#D55E00"), strict=True):
        axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=3, label=label)
    axes.set(xlabel="seconds since the process started", ylabel="test accuracy", ylim=(0.7, 1.0))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(results_folder() / name, metadata={"Software": None})
