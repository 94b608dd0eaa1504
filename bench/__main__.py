"""Measure, and write bench/RESULTS.md: `python -m bench [phases] [hogwild] [accuracy]`.

Ratios are of runs made in turn in one go, because machines are noisy; absolute figures are medians with their range.
"""

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import model
from hogwear import augment, hogwild, machine, sample
from hogwear.hogwild import Course
from hogwear.workers import Workers

ROOT = Path(__file__).parent.parent
FASHION5 = ROOT.parent / "shared" / "data" / "fashion5"
SIZE, BATCH = 160, 32


def median_seconds(work: Callable[[], object], repeats: int = 15) -> float:
    work(), work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def phases() -> str:
    """What each phase of a training step reaches on one thread, beside the matrix product of the same run."""
    dtype = getattr(torch, machine.fast_dtype())
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    roof = 2 * 2048**3 / median_seconds(lambda: a @ b, 5) / 1e9
    net = model.build("efficientnet_lite0", 5, SIZE)
    net.load_pretrained()
    hogwild.share(net)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8)
    pixels, labels = torch.from_numpy(images), torch.arange(BATCH) % 5
    with torch.no_grad():
        activations = net.trunk(pixels)
    parameters = hogwild.trained(net)
    buffers = hogwild.views(hogwild.share_momentum(net, 1, None)[0], parameters)

    def trunk() -> None:
        with torch.no_grad():
            net.trunk(pixels)

    def top_forward() -> None:
        with torch.no_grad():
            net.head(net.top(activations))

    def top_step() -> None:
        loss = F.cross_entropy(net.head(net.top(activations)), labels)
        net.zero_grad()
        loss.backward()

    def update() -> None:
        hogwild.clip_adaptively(parameters)
        hogwild.sgd(parameters, buffers, 1e-6, 0.9)

    random = np.random.default_rng(0)
    rows: list[tuple[str, Callable[[], object], float]] = [
        ("augment", lambda: augment.augment(images, random), 0),
        ("trunk", trunk, 160e6),  # FLOP an image
        ("top, forward without gradients", top_forward, 231e6),
        ("top, forward and backward", top_step, 3 * 231e6),
        ("update", update, 0),
    ]
    lines = [f"GEMM 2048x2048x2048 in {dtype}: {roof:.0f} GF/s on one thread. {SIZE} px, batches of {BATCH}.", ""]
    lines += ["| phase | images/s a thread | GF/s | share of GEMM |", "| --- | --- | --- | --- |"]
    for name, work, flop in rows:
        rate = BATCH / median_seconds(work)
        lines.append(f"| {name} | {rate:.0f} | {rate * flop / 1e9:.0f} | {rate * flop / 1e9 / roof:.0%} |")
    return "\n".join(lines).replace("| 0 | 0% |", "| | |")


def hogwild_pays() -> str:
    """Images/s of P workers over P times one worker's, and over one process with P threads; in turn, five times."""
    processes, steps = machine.cpus(), 40
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pixels.npy"
        np.save(file, np.random.default_rng(0).integers(0, 256, (512, SIZE, SIZE, 3), dtype=np.uint8))
        course = Course(file, np.arange(512), np.arange(512) % 5, BATCH, steps, 1e-6, 0.9, 0, 0)

        def rate(workers: int, threads: int) -> float:
            net = model.build("efficientnet_lite0", 5, SIZE)
            net.load_pretrained()
            hogwild.share(net)
            momentum = hogwild.share_momentum(net, workers, None)

            def prepare(rank: int) -> dict[str, Callable[[int], object]]:
                torch.set_num_threads(threads)
                return {"train": hogwild.trainer(net, momentum[rank], course)}

            with Workers(workers, prepare) as pool:
                list(pool.run("train", range(4 * workers)))  # warm
                started = time.perf_counter()
                done = sum(result.images for _, result in pool.run("train", range(steps)))
                return done / (time.perf_counter() - started)

        rounds = [(rate(processes, 1), rate(1, 1), rate(1, processes)) for _ in range(5)]
    scaling = [many / (processes * one) for many, one, _ in rounds]
    threads = [many / threaded for many, _, threaded in rounds]
    return (
        f"{processes} workers: {spread([m for m, *_ in rounds], '.0f')} images/s at {SIZE} px, training steps only.\n\n"
        f"- over {processes} times one worker: {spread(scaling)}\n- over one process with {processes} threads: {spread(threads)}"
    )


def accuracy() -> str:
    """`train.py` and `eval.py` with their defaults, from process start to exit, nothing cached, five seeds."""
    photos = FASHION5 if FASHION5.is_dir() else None
    walls, scores = [], []
    for seed in range(5):
        with tempfile.TemporaryDirectory() as name:
            data = photos or sample.ensure(Path(name) / "sample")
            folders = ["--data-dir", str(data), "--model-dir", f"{name}/model", "--cache-dir", f"{name}/cache"]
            started = time.perf_counter()
            subprocess.run([sys.executable, ROOT / "train.py", "--seed", str(seed), *folders], check=True, stdout=subprocess.PIPE)
            walls.append(time.perf_counter() - started)
            subprocess.run([sys.executable, ROOT / "eval.py", *folders], check=True, stdout=subprocess.PIPE)
            scores.append(json.loads(Path(f"{name}/model/eval_results.json").read_text())["test_acc"])
    where = "fashion5" if photos else "the built-in sample"
    return f"{where}, seeds 0-4: {spread(walls, '.1f')} s from start to exit, test accuracy {spread(scores, '.4f')}, mean {statistics.mean(scores):.4f}"


def spread(values: list[float], form: str = ".2f") -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


PARTS = {"phases": phases, "hogwild": hogwild_pays, "accuracy": accuracy}


def main(names: list[str]) -> None:
    if unknown := set(names) - set(PARTS):
        sys.exit(f"bench: {', '.join(sorted(unknown))}: not one of {', '.join(PARTS)}")
    torch.set_num_threads(1)
    machine.keep_freed_memory()
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?")
    head = f"{time.strftime('%Y-%m-%d')}, {cpu}, {machine.cpus()} CPUs, Python {platform.python_version()}, PyTorch {torch.__version__}"
    sections = ["# Results", f"`make bench`: medians, with minimum and maximum. {head}."]
    for name in names or PARTS:
        sections += [f"## {name}", (PARTS[name].__doc__ or "").strip(), PARTS[name]()]
        print("\n\n".join(sections[-3:]), "\n", flush=True)
    if not names:
        (ROOT / "bench" / "RESULTS.md").write_text("\n\n".join(sections) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
