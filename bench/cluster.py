"""Machines of one CPU each, simulated on one host: images/s of the cluster beside one machine and beside DDP, and its accuracy.

python -m bench cluster cluster_accuracy      # as root; the machines are network namespaces
"""

import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench import network
from bench.common import CLOTHING10, FASHION5, ROOT, evaluate, folders, spread, table
from bench.growth import link
from bench.network import Network
from hogwear.networks.parameters import trained_parameters
from hogwear.system import machine

LINES = ((100, 0.0), (1000, 0.0), (1000, 0.010))  # Mbit/s, seconds one way
ROUNDS, SEEDS = 3, range(3)
PHOTOS = 6000
DDP_STEPS = 20
PORT = 29400


def cluster() -> str:
    """Two simulated machines of one CPU each (network namespaces; a process is the line between them): images/s of both together in an epoch of
    5,100 photos, its last average included, against one machine alone, and DDP over gloo, which all-reduces every step, on the same network and
    photos of the same kind, in batches of the same size. In turn, three rounds. The photos are hard links to fashion5's."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        link(work / "data", PHOTOS)
        for mbits, delay in LINES:
            figures = []
            for _ in range(ROUNDS):
                one, two = (speed(work, count, mbits, delay) for count in (1, 2))
                figures.append((one[0], two[0], ddp(mbits, delay), two[1]))
                print(mbits, delay, figures[-1], flush=True)
            ones, twos, ddps, said = (list(values) for values in zip(*figures, strict=True))
            rows.append([
                f"{mbits} Mbit/s, {delay * 1000:.0f} ms", spread(ones, ".0f"), spread(twos, ".0f"), spread([b / a for a, b in zip(ones, twos, strict=True)]),
                spread(ddps, ".0f"), spread([b / a for a, b in zip(ddps, twos, strict=True)], ".1f"), said[-1],
            ])  # fmt: skip
    return table(
        [
            "line",
            "one machine",
            "two",
            "times one",
            "DDP on two",
            "ours over DDP",
            "said of the averages",
        ],
        rows,
    )


def cluster_accuracy(sync_every: int | None = None) -> str:
    """One, two and four simulated machines of one worker each, the defaults else, by which each machine sees some 4,000 photos (one pass of
    clothing10 by one machine, three by two, five by four; fashion5 two, four, eight); the figures of clothing10 are of its validation photos."""
    rows = []
    for photos in (FASHION5, CLOTHING10):
        scores: dict[int, list[float]] = {count: [] for count in (1, 2, 4)}
        for seed in SEEDS:
            for count, found in scores.items():
                with tempfile.TemporaryDirectory() as name, network.machines(count) as net:
                    model = train(
                        net,
                        photos,
                        Path(name),
                        "--seed",
                        seed,
                        *(["--sync-every", sync_every] if sync_every else []),
                    )[0]
                    model.rename(Path(name) / "model")
                    found.append(evaluate(photos, Path(name))["test_acc"])
                    print(photos.name, seed, count, found[-1], flush=True)
        rows += [
            [photos.name, str(count), spread(found, ".4f"), f"{sum(found) / len(found):.4f}"]
            for count, found in scores.items()
        ]
    return table(["photos", "machines", "accuracy", "mean"], rows)


def speed(work: Path, count: int, mbits: float, delay: float) -> tuple[float, str]:
    """Images/s in an epoch, and what train says of its averages."""
    with (
        network.machines(count, mbits, delay) as net,
        tempfile.TemporaryDirectory(dir=work) as name,
    ):
        model, out = train(
            net, work / "data", Path(name), "--cache-dir", work / "cache", "--epochs", 1
        )
        [epoch] = csv.DictReader((model / "metrics.csv").open())
    said = re.search(r"Averaging: (.*)", out)
    return float(epoch["images_per_second"]), said[1] if said else ""


def train(net: Network, photos: Path, work: Path, *flags: object) -> tuple[Path, str]:
    """All machines train: the model folder of rank 0, and what they print."""
    models = [work / str(number) for number in range(len(net.names))]
    out = launch(
        net,
        lambda number: [
            ROOT / "train.py",
            *folders(photos, work),
            "--model-dir",
            models[number],
            "--workers",
            1,
            *flags,
        ],
    )
    [model] = [folder for folder in models if (folder / "checkpoint.pt").exists()]
    return model, out


def ddp(mbits: float, delay: float) -> float:
    """Images/s."""
    with network.machines(2, mbits, delay) as net:
        out = launch(net, lambda number: ["-m", "bench.cluster"])
    return float(re.findall(r"^ddp ([\d.]+)$", out, re.MULTILINE)[0])


def launch(net: Network, arguments: Callable[[int], list[object]]) -> str:
    """What torchrun prints on the machines; the first two have a CPU each, others share them."""
    started = []
    for number in range(len(net.names)):
        torchrun = [
            f"--nnodes={len(net.names)}", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={network.address(0)}:{PORT}",
            f"--local-addr={network.address(number)}", f"--rdzv-conf=is_host={str(number == 0).lower()}",
        ]  # fmt: skip
        python = [sys.executable, "-m", "torch.distributed.run", *torchrun]
        command = net.inside(
            number, "taskset", "--cpu-list", number % machine.cpus(), *python, *arguments(number)
        )
        started.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"GLOO_SOCKET_IFNAME": "line0"},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    outs = [process.communicate()[0] for process in started]
    assert not any(process.returncode for process in started), outs
    return "".join(outs)


def main() -> None:
    """One of torchrun's processes: DDP."""
    import torch.distributed as dist
    import torch.nn.functional as F
    from torch import nn

    from bench.speed import BATCH, Training, shared_network
    from hogwear.networks import kernels
    from hogwear.training import hogwild

    torch.set_num_threads(1)
    machine.keep_freed_memory()
    dist.init_process_group("gloo")
    net = shared_network()
    parallel, parameters = nn.parallel.DistributedDataParallel(net), trained_parameters(net)
    buffers = [torch.zeros_like(p) for p in parameters]
    with tempfile.TemporaryDirectory() as folder:
        course = Training(Path(folder)).course
        for step in range(DDP_STEPS):
            if step == 4:
                started = time.perf_counter()
            pixels, labels = course.batch(step * dist.get_world_size() + dist.get_rank())
            loss = F.cross_entropy(parallel(pixels), labels)
            parallel.zero_grad()
            loss.backward()
            hogwild.adaptive_clip_grad(parameters)
            kernels.sgd_step(parameters, buffers, 1e-6, 0.9, hogwild.WEIGHT_DECAY)
    if dist.get_rank() == 0:
        print(
            f"ddp {(DDP_STEPS - 4) * BATCH * dist.get_world_size() / (time.perf_counter() - started):.1f}",
            flush=True,
        )
    dist.barrier()


if __name__ == "__main__":
    main()
