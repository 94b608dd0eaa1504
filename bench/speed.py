"""Benchmarks of training steps, in this process and its workers."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import model
from bench.common import (
    ROOT,
    evaluate,
    format_range,
    format_ratios,
    markdown_table,
    median_seconds,
    train,
)
from bench.photos import data_sets
from hogwear.data import dataset
from hogwear.data.array_file import ArrayFile
from hogwear.data.decoding import decode
from hogwear.data.pixels import Pixels
from hogwear.networks import kernels, layers
from hogwear.networks.network import Network
from hogwear.networks.parameters import (
    OptimizerState,
    share_parameters,
    trained_parameters,
    unflatten_like,
)
from hogwear.system import machine
from hogwear.system.workers import Workers
from hogwear.training import hogwild
from hogwear.training.batches import Batches, augment
from hogwear.training.schedule import LiveSettings, Schedule

SIZE, CROP, BATCH = 160, 144, 32  # photos of SIZE are cropped to CROP for training
GEMM_SIZE = 2048
TRUNK_FLOP, TAIL_FLOP = 160e6, 231e6  # per photo
LR, MOMENTUM = 1e-6, 0.9
DTYPE = model.choose_dtype(ROOT / ".cache")


def training_step() -> str:
    """Speed of each phase of a training step on one thread, compared with a matrix product."""
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE).to(DTYPE) for _ in range(2))
    peak = 2 * GEMM_SIZE**3 / median_seconds(lambda: a @ b, 5)
    net = shared_network()
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8)
    pixels, labels = torch.from_numpy(images), torch.arange(BATCH) % 5
    with torch.no_grad():
        activations = net.trunk(pixels)
    parameters = trained_parameters(net)
    buffers = unflatten_like(OptimizerState.create(net, 1).momentum[0], parameters)

    def trunk() -> None:
        with torch.no_grad():
            net.trunk(pixels)

    def tail_forward() -> None:
        with torch.no_grad():
            net.head(net.tail(activations))

    def tail_backward() -> None:
        loss = F.cross_entropy(net.training_tail(activations), labels)
        net.zero_grad()
        loss.backward()

    def update() -> None:
        hogwild.adaptive_clip_grad(parameters)
        kernels.sgd_step(parameters, buffers, LR, MOMENTUM, hogwild.WEIGHT_DECAY)

    photos = data_sets()[0]
    paths = list(dataset.find_photos(photos, photos).train.paths)[:100]
    phases: list[tuple[str, Callable[[], object], int, float]] = [
        ("decode (224 px JPEG)", lambda: [decode(path, SIZE) for path in paths], len(paths), 0),
        ("augment", lambda: augment(images, CROP, random), BATCH, 0),
        ("trunk", trunk, BATCH, TRUNK_FLOP),
        ("tail, forward without gradients", tail_forward, BATCH, TAIL_FLOP),
        ("tail, forward and backward", tail_backward, BATCH, 3 * TAIL_FLOP),
        ("clip and update", update, BATCH, 0),
    ]
    rows = []
    for name, work, count, flop in phases:
        rate = count / median_seconds(work)
        flops = [f"{rate * flop / 1e9:.0f}", f"{rate * flop / peak:.0%}"] if flop else ["", ""]
        rows.append([name, f"{rate:.0f}", *flops])
    trunk_pixels = pixels[: model.TRUNK_BATCH]
    gemm = f"GEMM {GEMM_SIZE}x{GEMM_SIZE}x{GEMM_SIZE} in {DTYPE}: {peak / 1e9:.0f} GFLOP/s"
    return "\n\n".join(
        [
            f"{gemm} on one thread. {SIZE} px, batches of {BATCH}.",
            markdown_table(["phase", "images/s per thread", "GFLOP/s", "share of GEMM"], rows),
            f"Layers of the trunk, each timed alone, on {model.TRUNK_BATCH} photos:",
            markdown_table(
                ["layer", "µs per photo", "GFLOP/s", "share of GEMM", "memory traffic, GB/s"],
                time_trunk_layers(net, trunk_pixels, peak),
            ),
        ]
    )


def time_trunk_layers(net: Any, pixels: Tensor, peak: float) -> list[list[str]]:
    """Rows for each layer of the trunk as training runs it; `peak` in FLOP/s."""
    rows = []

    def run(
        name: str, x: Tensor, layer: Any, relu6: bool, residual: Tensor | None = None
    ) -> Tensor:
        y = layers.fused_conv(x, layer, relu6, residual)
        seconds = median_seconds(lambda: layers.fused_conv(x, layer, relu6, residual))
        flops = 2 * y.numel() * layer.weight[0].numel() / seconds
        traffic = sum(tensor.nbytes for tensor in (x, y, residual) if tensor is not None) / seconds
        shares = [f"{flops / 1e9:.0f}", f"{flops / peak:.0%}", f"{traffic / 1e9:.0f}"]
        rows.append([name, f"{seconds / len(x) * 1e6:.0f}", *shares])
        return y

    with torch.inference_mode():
        x = run("stem 3x3", (pixels.to(net.dtype) - 127) / 128, net.stem, True)
        for i, block in enumerate(net.blocks[: model.TRUNK_BLOCKS]):
            y = run(f"{i} expand", x, block.expand, True) if block.expand is not None else x
            kernel, stride = block.depthwise.weight.shape[-1], block.depthwise.stride
            name = f"{i} depthwise {kernel}x{kernel}" + f", stride {stride}" * (stride > 1)
            y = run(name, y, block.depthwise, True)
            x = run(f"{i} project", y, block.project, False, x if block.residual else None)
    return rows


class Training:
    """Training steps on random photos, the same however they are distributed over processes."""

    STEPS = 32
    PHOTOS = 512

    def __init__(self, folder: Path) -> None:
        self.folder, file = folder, folder / "pixels.npy"
        shape = (self.PHOTOS, SIZE, SIZE, 3)
        np.save(file, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        nothing = np.empty((self.PHOTOS, 0), np.uint8)
        photos = Pixels(
            folder,
            images=ArrayFile(file),
            rows=np.arange(self.PHOTOS),
            labels=np.arange(self.PHOTOS) % 5,
            hashes=nothing,
            products=nothing,
            skipped={},
            all_signatures=nothing,
        )
        schedule = Schedule(self.PHOTOS, BATCH, LR, 0, 0, LiveSettings.create())
        self.batches = Batches(photos, CROP, CROP, schedule)

    def measure_hogwild(self, workers: int, threads: int = 1, shared: bool = True) -> float:
        """Images/s of all workers together; without `shared`, each has weights of its own."""
        net = shared_network()
        optimizer = OptimizerState.create(net, workers)

        def prepare(rank: int) -> dict[str, Callable[[int], object]]:
            torch.set_num_threads(threads)
            own = net if shared else shared_network()
            settings = self.batches, MOMENTUM, torch.zeros(1)
            return {"train": hogwild.create_train_step(own, optimizer.for_worker(rank), *settings)}

        with Workers(workers, prepare) as pool:
            list(pool.run("train", range(4 * workers)))  # warm up
            started = time.perf_counter()
            images = sum(result.images for _, result in pool.run("train", range(self.STEPS)))
            return images / (time.perf_counter() - started)

    def measure_ddp(self, workers: int) -> float:
        """Images/s of DistributedDataParallel over gloo."""
        net, rendezvous = shared_network(), tempfile.mktemp(dir=self.folder)
        steps = self.STEPS // workers

        def prepare(rank: int) -> dict[str, Callable[[int], object]]:
            import torch.distributed as dist

            address = f"file://{rendezvous}"
            dist.init_process_group("gloo", init_method=address, rank=rank, world_size=workers)
            step = make_ddp_step(net, self)

            def train(item: int) -> None:
                for number in range(item * steps, (item + 1) * steps):
                    step(number)

            return {"train": train}

        with Workers(workers, prepare) as pool:
            list(pool.run("train", range(workers)))  # warm up
            started = time.perf_counter()
            list(pool.run("train", range(workers)))
            return steps * workers * BATCH / (time.perf_counter() - started)


def make_ddp_step(net: Network, training: Training) -> Callable[[int], None]:
    """step(number): train on a batch with DistributedDataParallel, in an initialised group."""
    parallel, parameters = nn.parallel.DistributedDataParallel(net), trained_parameters(net)
    buffers = [torch.zeros_like(parameter) for parameter in parameters]

    def step(number: int) -> None:
        pixels, labels = training.batches.batch(number)
        loss = F.cross_entropy(parallel(pixels), labels)
        parallel.zero_grad()
        loss.backward()
        hogwild.adaptive_clip_grad(parameters)
        kernels.sgd_step(parameters, buffers, LR, MOMENTUM, hogwild.WEIGHT_DECAY)

    return step


def shared_network() -> Network:
    """EfficientNet-Lite0 with ImageNet weights, in shared memory."""
    net = model.build("efficientnet_lite0", 5, SIZE, DTYPE)
    net.load_pretrained()
    share_parameters(net)
    return net


def hogwild_speedup() -> str:
    """Training speed of Hogwild with one worker per CPU, compared with other ways to use the CPUs.

    These are one worker, one process with a thread per CPU, and DDP over gloo: the same network,
    batches and photos, in turn, seven times. Workers with weights of their own share nothing; they
    show what this machine allows.
    """
    cpus = machine.cpus()
    with tempfile.TemporaryDirectory() as folder:
        training = Training(Path(folder))
        rounds = [
            (
                training.measure_hogwild(cpus),
                cpus * training.measure_hogwild(1),
                training.measure_hogwild(cpus, shared=False),
                training.measure_hogwild(1, threads=cpus),
                training.measure_ddp(cpus),
            )
            for _ in range(7)
        ]
    ours, *others = (list(values) for values in zip(*rounds, strict=True))
    names = (
        f"{cpus} times one worker",
        f"{cpus} workers with weights of their own",
        f"one process, {cpus} threads",
        f"DDP over gloo, {cpus} processes",
    )
    rows = [[f"Hogwild, {cpus} workers", format_range(ours, ".0f"), ""]]
    rows += [
        [name, format_range(rates, ".0f"), format_ratios(ours, rates)]
        for name, rates in zip(names, others, strict=True)
    ]
    return markdown_table(["", "images/s", "speed-up of Hogwild"], rows)


def staleness() -> str:
    """Accuracy of `train.py --workers N` on fashion5 with default settings, three seeds.

    Gradients get staler with the number of workers, also where there are more workers than CPUs.
    """
    rows, photos = [], data_sets()[0]
    for workers in (1, 2, 4, 8):
        results = []
        for seed in range(3):
            with tempfile.TemporaryDirectory() as name:
                train(photos, Path(name), "--workers", workers, "--seed", seed)
                results.append(evaluate(photos, Path(name)))
        accuracies = [result["test_acc"] for result in results]
        means = statistics.mean(accuracies), statistics.mean(r["test_loss"] for r in results)
        rows.append(
            [str(workers), format_range(accuracies, ".4f"), *(f"{mean:.4f}" for mean in means)]
        )
    return markdown_table(["workers", "test accuracy", "mean accuracy", "mean loss"], rows)
