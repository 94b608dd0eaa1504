"""Training on several machines, simulated on one: speed and accuracy of a cluster.

    python -m bench cluster cluster_accuracy      # as root; the machines are network namespaces

Run by torchrun, this module is a process of DDP, to compare with.
"""

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
from bench.common import (
    ROOT,
    evaluate,
    folder_flags,
    format_range,
    format_ratios,
    markdown_table,
    read_hogwild_speed,
)
from bench.growth import link_photos
from bench.network import Network
from bench.photos import data_sets
from hogwear.system import machine

LINKS = ((100, 0.0), (1000, 0.0), (1000, 0.010))  # Mbit/s, delay in one direction in seconds
ROUNDS, SEEDS = 3, range(3)
PHOTOS = 6000
DDP_WARM_UP, DDP_STEPS = 4, 16
PORT = 29400


def cluster() -> str:
    """Speed of two simulated machines of one CPU each, which are network namespaces on one host.

    It is compared with one machine, and with DDP over gloo, which averages gradients in every step,
    on the same network with batches of the same size. An epoch has 5,100 photos (hard links to
    those of fashion5); its time includes the last average. Three rounds in turn.
    """
    rows = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        link_photos(work / "data", PHOTOS)
        for mbits, delay in LINKS:
            one, two, ddp = [], [], []
            for _ in range(ROUNDS):
                one.append(measure_training(work, 1, mbits, delay)[0])
                rate, averages = measure_training(work, 2, mbits, delay)
                two.append(rate)
                ddp.append(measure_ddp(mbits, delay))
                print(mbits, delay, one[-1], two[-1], ddp[-1], flush=True)
            rows.append(
                [
                    f"{mbits} Mbit/s, {delay * 1000:.0f} ms",
                    format_range(one, ".0f"),
                    format_range(two, ".0f"),
                    format_ratios(two, one),
                    format_range(ddp, ".0f"),
                    format_ratios(two, ddp, ".1f"),
                    averages,
                ]
            )
    header = ["link", "1 machine, images/s", "2 machines", "speed-up over 1 machine"]
    header += ["DDP on 2 machines", "speed-up over DDP", "averages, as train reports them"]
    return markdown_table(header, rows)


def cluster_accuracy() -> str:
    """Accuracy of one, two and four simulated machines of one worker each, with default settings.

    By default, training lasts until each machine has seen some 4,000 photos: one epoch of
    clothing10 for one machine, three for two, five for four; two, four and eight of fashion5.
    Accuracy on clothing10 is that on its validation photos.
    """
    rows = []
    for photos in data_sets():
        accuracies: dict[int, list[float]] = {count: [] for count in (1, 2, 4)}
        for seed in SEEDS:
            for count, values in accuracies.items():
                with tempfile.TemporaryDirectory() as name, network.machines(count) as net:
                    model, _ = train_on_all(net, photos, Path(name), "--seed", seed)
                    model.rename(Path(name) / "model")
                    values.append(evaluate(photos, Path(name))["test_acc"])
                    print(photos.name, seed, count, values[-1], flush=True)
        for count, values in accuracies.items():
            mean = sum(values) / len(values)
            rows.append([photos.name, str(count), format_range(values, ".4f"), f"{mean:.4f}"])
    return markdown_table(["photos", "machines", "accuracy", "mean"], rows)


def measure_training(work: Path, count: int, mbits: float, delay: float) -> tuple[float, str]:
    """Train one epoch: images/s, and what train.py reports about its averages."""
    with (
        network.machines(count, mbits, delay) as net,
        tempfile.TemporaryDirectory(dir=work) as name,
    ):
        flags = ("--cache-dir", work / "cache", "--epochs", 1)
        model, output = train_on_all(net, work / "data", Path(name), *flags)
    averages = re.search(r"Averaging: (.*)", output)
    return read_hogwild_speed(model), averages[1] if averages else ""


def train_on_all(net: Network, photos: Path, work: Path, *flags: object) -> tuple[Path, str]:
    """Train on all machines: the model folder of rank 0, and the output of all."""

    def command(number: int) -> list[object]:
        own = ["--model-dir", models[number], "--workers", 1]
        return [ROOT / "train.py", *folder_flags(photos, work), *own, *flags]

    models = [work / str(number) for number in range(len(net.names))]
    output = torchrun(net, command)
    [model] = [folder for folder in models if (folder / "checkpoint.pt").exists()]
    return model, output


def measure_ddp(mbits: float, delay: float) -> float:
    """Images/s of DistributedDataParallel on two machines."""
    with network.machines(2, mbits, delay) as net:
        output = torchrun(net, lambda number: ["-m", "bench.cluster"])
    return float(re.findall(r"^ddp ([\d.]+)$", output, re.MULTILINE)[0])


def torchrun(net: Network, command: Callable[[int], list[object]]) -> str:
    """Run command(number) under torchrun on each machine: what they print.

    Machines share the CPUs in turn, so that the first ones have a CPU each.
    """
    started = []
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "line0"}
    for number in range(len(net.names)):
        flags = [
            f"--nnodes={len(net.names)}",
            "--nproc-per-node=1",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={network.address(0)}:{PORT}",
            f"--local-addr={network.address(number)}",
            f"--rdzv-conf=is_host={str(number == 0).lower()}",
        ]
        python = [sys.executable, "-m", "torch.distributed.run", *flags, *command(number)]
        cpu = number % machine.cpus()
        process = subprocess.Popen(
            net.command_on(number, "taskset", "--cpu-list", cpu, *python),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
    outputs = [process.communicate()[0] for process in started]
    assert not any(process.returncode for process in started), outputs
    return "".join(outputs)


def run_ddp_process() -> None:
    """Train with DDP, as one of the processes of torchrun; rank 0 prints the images/s of all."""
    import torch.distributed as dist

    from bench.speed import BATCH, Training, make_ddp_step, shared_network

    torch.set_num_threads(1)
    machine.keep_freed_memory()
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    with tempfile.TemporaryDirectory() as folder:
        step = make_ddp_step(shared_network(), Training(Path(folder)))
        for number in range(DDP_WARM_UP):
            step(number * world_size + rank)
        started = time.perf_counter()
        for number in range(DDP_WARM_UP, DDP_WARM_UP + DDP_STEPS):
            step(number * world_size + rank)
        seconds = time.perf_counter() - started
    if rank == 0:
        print(f"ddp {DDP_STEPS * BATCH * world_size / seconds:.1f}", flush=True)
    dist.barrier()


if __name__ == "__main__":
    run_ddp_process()
