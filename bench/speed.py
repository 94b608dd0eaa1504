"""The parts of the bench that time the steps of training, in this process and its workers."""

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
from bench.common import FASHION5, ROOT, evaluate, median_seconds, spread, table, train
from hogwear.data import dataset
from hogwear.data import pixels as pixels_of
from hogwear.data.decoding import decode
from hogwear.networks import kernels, layers
from hogwear.networks.parameters import (
    create_momentum_buffers,
    share_parameters,
    trained_parameters,
    unflatten_like,
)
from hogwear.system import machine
from hogwear.system.workers import Workers
from hogwear.training import augment, hogwild
from hogwear.training.hogwild import Course

SIZE, CROP, BATCH = 160, 144, 32  # CROP: what training takes of SIZE
DTYPE = model.choose_dtype(ROOT / ".cache")


def phases() -> str:
    """What each phase of a training step reaches on one thread, beside the matrix product of the same run."""
    a, b = (torch.randn(2048, 2048).to(DTYPE) for _ in range(2))
    roof = 2 * 2048**3 / median_seconds(lambda: a @ b, 5) / 1e9
    net = model.build("efficientnet_lite0", 5, SIZE, DTYPE)
    net.load_pretrained()
    share_parameters(net)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8)
    pixels, labels = torch.from_numpy(images), torch.arange(BATCH) % 5
    with torch.no_grad():
        activations = net.trunk(pixels)
    parameters = trained_parameters(net)
    buffers = unflatten_like(create_momentum_buffers(net, 1, None)[0], parameters)

    def trunk() -> None:
        with torch.no_grad():
            net.trunk(pixels)

    def tail_forward() -> None:
        with torch.no_grad():
            net.head(net.tail(activations))

    def tail_step() -> None:
        loss = F.cross_entropy(net.head(net.tail(activations)), labels)
        net.zero_grad()
        loss.backward()

    def update() -> None:
        hogwild.adaptive_clip_grad(parameters)
        kernels.sgd_step(parameters, buffers, 1e-6, 0.9, hogwild.WEIGHT_DECAY)

    random = np.random.default_rng(0)
    paths = list(dataset.find_photos(FASHION5, FASHION5).train.paths)[:100]
    kinds: list[tuple[str, Callable[[], object], int, float]] = [
        ("decode (224 px JPEG)", lambda: [decode(path, SIZE) for path in paths], len(paths), 0),
        ("augment", lambda: augment.augment(images, CROP, random), BATCH, 0),
        ("trunk", trunk, BATCH, 160e6),  # FLOP an image
        ("tail, forward without gradients", tail_forward, BATCH, 231e6),
        ("tail, forward and backward", tail_step, BATCH, 3 * 231e6),
        ("clip and update", update, BATCH, 0),
    ]
    rows = []
    for name, work, count, flop in kinds:
        rate = count / median_seconds(work)
        of_gemm = (
            [f"{rate * flop / 1e9:.0f}", f"{rate * flop / 1e9 / roof:.0%}"] if flop else ["", ""]
        )
        rows.append([name, f"{rate:.0f}", *of_gemm])
    return "\n\n".join([
        f"GEMM 2048x2048x2048 in {DTYPE}: {roof:.0f} GF/s on one thread. {SIZE} px, batches of {BATCH}.",
        table(["phase", "images/s a thread", "GF/s", "share of GEMM"], rows),
        f"The trunk's layers, one after the other, on {model.TRUNK_BATCH} photos:",
        table(["layer", "us a photo", "GF/s", "share of GEMM", "GB/s in and out"], trunk_layers(net, pixels[: model.TRUNK_BATCH], roof)),
    ])  # fmt: skip


def trunk_layers(net: Any, pixels: Tensor, roof: float) -> list[list[str]]:
    """Each layer of the trunk as it runs in training, timed alone: its arithmetic and its memory traffic."""
    rows = []

    def run(
        name: str, x: Tensor, layer: Any, relu6: bool, residual: Tensor | None = None
    ) -> Tensor:
        y = layers.fused_conv(x, layer, relu6, residual)
        seconds = median_seconds(lambda: layers.fused_conv(x, layer, relu6, residual))
        flop = 2 * y.numel() * layer.weight[0].numel()
        traffic = sum(t.nbytes for t in (x, y, residual) if t is not None)
        rows.append([name, f"{seconds / len(x) * 1e6:.0f}", f"{flop / seconds / 1e9:.0f}", f"{flop / seconds / 1e9 / roof:.0%}",
                     f"{traffic / seconds / 1e9:.0f}"])  # fmt: skip
        return y

    with torch.inference_mode():
        x = run("stem 3x3", (pixels.to(net.dtype) - 127) / 128, net.stem, True)
        for i, block in enumerate(net.blocks[: model.TRUNK_BLOCKS]):
            y = run(f"{i} expand", x, block.expand, True) if block.expand is not None else x
            kernel, stride = block.depthwise.weight.shape[-1], block.depthwise.stride
            y = run(
                f"{i} depthwise {kernel}x{kernel}" + f", stride {stride}" * (stride > 1),
                y,
                block.depthwise,
                True,
            )
            x = run(f"{i} project", y, block.project, False, x if block.residual else None)
    return rows


class Training:
    """Steps on random photos at SIZE, to be timed: the same network, batches and data whichever way they are spread."""

    STEPS = 32

    def __init__(self, folder: Path) -> None:
        self.folder, file = folder, folder / "pixels.npy"
        np.save(
            file, np.random.default_rng(0).integers(0, 256, (512, SIZE, SIZE, 3), dtype=np.uint8)
        )
        self.course = Course(
            pixels_of.ArrayFile(file),
            CROP,
            np.arange(512),
            np.arange(512) % 5,
            BATCH,
            torch.tensor([1 << 40]),
            1e-6,
            torch.ones(1),
            0.9,
            0,
            0,
        )

    def hogwild(self, workers: int, threads: int = 1, alone: bool = False) -> float:
        """Images/s; `alone` gives each worker weights of its own, so that nothing is shared but the machine."""
        net = shared_network()
        momentum = create_momentum_buffers(net, workers, None)

        def prepare(rank: int) -> dict[str, Callable[[int], object]]:
            torch.set_num_threads(threads)
            return {
                "train": hogwild.trainer(
                    shared_network() if alone else net, momentum[rank], self.course
                )
            }

        with Workers(workers, prepare) as pool:
            list(pool.run("train", range(4 * workers)))  # warm
            started = time.perf_counter()
            done = sum(result.images for _, result in pool.run("train", range(self.STEPS)))
            return done / (time.perf_counter() - started)

    def ddp(self, workers: int) -> float:
        """Images/s of DistributedDataParallel over gloo; an item is a process's whole share of the steps."""
        net, rendezvous = shared_network(), tempfile.mktemp(dir=self.folder)

        def prepare(rank: int) -> dict[str, Callable[[int], object]]:
            import torch.distributed as dist

            dist.init_process_group(
                "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=workers
            )
            parallel, parameters = nn.parallel.DistributedDataParallel(net), trained_parameters(net)
            buffers = [torch.zeros_like(p) for p in parameters]

            def steps(item: int) -> float:
                for step in range(item * self.STEPS, item * self.STEPS + self.STEPS // workers):
                    pixels, labels = self.course.batch(step)
                    loss = F.cross_entropy(parallel(pixels), labels)
                    parallel.zero_grad()
                    loss.backward()
                    hogwild.adaptive_clip_grad(parameters)
                    kernels.sgd_step(parameters, buffers, 1e-6, 0.9, hogwild.WEIGHT_DECAY)
                return time.perf_counter()

            return {"steps": steps}

        with Workers(workers, prepare) as pool:
            list(pool.run("steps", range(workers)))  # warm
            started = time.perf_counter()
            list(pool.run("steps", range(workers)))
            return self.STEPS // workers * workers * BATCH / (time.perf_counter() - started)


def shared_network() -> Any:
    net = model.build("efficientnet_lite0", 5, SIZE, DTYPE)
    net.load_pretrained()
    share_parameters(net)
    return net


def hogwild_pays() -> str:
    """Training steps of P processes (P: the CPUs) against one worker, one process with P threads and DDP over gloo: the same
    network, batches and data, in turn, seven times. Workers with weights of their own train nothing together: what this machine allows."""
    processes = machine.cpus()
    with tempfile.TemporaryDirectory() as folder:
        training = Training(Path(folder))
        rounds = [
            (training.hogwild(processes), training.hogwild(1), training.hogwild(processes, alone=True),
             training.hogwild(1, threads=processes), training.ddp(processes))
            for _ in range(7)
        ]  # fmt: skip
    ours, one, alone, threaded, ddp = zip(*rounds, strict=True)
    rows = [
        [f"{processes} Hogwild workers", spread(list(ours), ".0f"), ""],
        [f"{processes} times one worker", spread([processes * x for x in one], ".0f"), spread([a / processes / b for a, b in zip(ours, one, strict=True)])],
        [f"{processes} workers with weights of their own", spread(list(alone), ".0f"), spread([a / b for a, b in zip(ours, alone, strict=True)])],
        [f"one process, {processes} threads", spread(list(threaded), ".0f"), spread([a / b for a, b in zip(ours, threaded, strict=True)])],
        [f"DDP over gloo, {processes} processes", spread(list(ddp), ".0f"), spread([a / b for a, b in zip(ours, ddp, strict=True)])],
    ]  # fmt: skip
    return table(["", "images/s", "Hogwild is so many times it"], rows)


def staleness() -> str:
    """The price of updates without locks: `train.py --workers P` on fashion5, three seeds. More workers than CPUs say nothing of
    speed, but their gradients are as stale as on a machine that has the CPUs."""
    rows = []
    for workers in (1, 2, 4, 8):
        runs = []
        for seed in range(3):
            with tempfile.TemporaryDirectory() as name:
                train(FASHION5, Path(name), "--workers", workers, "--seed", seed)
                runs.append(evaluate(FASHION5, Path(name)))
        accuracies = [run["test_acc"] for run in runs]
        rows.append(
            [
                str(workers),
                spread(accuracies, ".4f"),
                f"{statistics.mean(accuracies):.4f}",
                f"{statistics.mean(run['test_loss'] for run in runs):.4f}",
            ]
        )
    return table(["workers", "test accuracy", "mean", "mean loss"], rows)
