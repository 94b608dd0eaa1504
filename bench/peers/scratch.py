"""Peers that train from scratch."""

import copy
import gzip
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

from bench.peers.options import Clock, Options, measure, result
from bench.peers.shared import (
    BATCH,
    class_count,
    count_images,
    evaluate,
    fit,
    photos,
    predict,
    train_batches,
)

SNAPSHOT_STEPS = 200  # steps between two snapshots, of all processes together


def ultralytics(options: Options) -> dict[str, Any]:
    """YOLOv8n-cls with its default settings, from scratch, because its weights are a download."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "YOLO_OFFLINE": "true",
            "YOLO_CONFIG_DIR": folder,
            "YOLO_AUTOINSTALL": "false",
        }
        from ultralytics import YOLO
        from ultralytics import settings as ultralytics_settings

        ultralytics_settings.update({"sync": False})
        data = Path(folder, "photos")  # it writes caches beside train/, val/ and test/
        data.mkdir()
        for split in ("train", "val", "test"):
            (data / split).symlink_to((options.photos / split).absolute())
        clock, model = Clock(), YOLO("yolov8n-cls.yaml", task="classify")
        model.add_callback("on_train_epoch_start", clock.start)
        model.add_callback("on_train_epoch_end", clock.stop)
        common = {
            "data": data,
            "imgsz": options.size,
            "batch": BATCH,
            "workers": options.workers,
            "device": "cpu",
            "plots": False,
            "project": folder,
        }
        model.train(**common, epochs=options.epochs, seed=options.seed, pretrained=False, amp=False)
        rate = count_images(train_batches(options)) / clock.seconds
        seconds = options.seconds()
        accuracy = float(model.val(**common, split="test").top1)
        return result({"test_acc": accuracy}, rate, seconds)


def predecessor(options: Options) -> dict[str, Any]:
    """TinyVGG (poloclub.github.io/cnn-explainer), trained as by the program before Hogwear.

    As in mnist_hogwild, each process passes over all photos, whatever the number of CPUs.
    """
    layers: list[nn.Module] = []
    for channels in (3, 10):
        layers += [
            nn.Conv2d(channels, 10, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(10, 10, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    head = nn.Linear(10 * (options.size // 4) ** 2, class_count(options))
    net = nn.Sequential(*layers, nn.Flatten(), head)
    rate, _ = HogwildLoop(net, photos(options, "train"), BATCH, 0.0, options).train()
    return evaluate(net, options, rate)


def mnist_hogwild(options: Options) -> dict[str, Any]:
    """pytorch/examples' mnist_hogwild on Fashion-MNIST; --photos is the folder of its .gz files.

    "curve" lists (seconds, test accuracy) of snapshots. They are taken while the processes train,
    and measured afterwards, so that measuring does not slow training down.
    """
    mean, std = 0.1307, 0.3081  # as in the example
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "FashionMNIST", "raw")
        raw.mkdir(parents=True)
        for file in options.photos.glob("*-ubyte.gz"):
            (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        train = datasets.FashionMNIST(folder, True, transform)
        test = datasets.FashionMNIST(folder, False, transform)
    net = nn.Sequential(
        nn.Conv2d(1, 10, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(10, 20, 5),
        nn.Dropout2d(),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(320, 50),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(50, 10),
    )
    rate, snapshots = HogwildLoop(net, train, 64, 0.5, options).train()
    images = (test.data[:, None] / 255 - mean) / std
    batches = list(zip(images.split(1000), test.targets.split(1000), strict=True))
    measured = [(seconds, measure(*predict(snapshot, batches))) for seconds, snapshot in snapshots]
    curve = [(seconds, quality["test_acc"]) for seconds, quality in measured]
    seconds, quality = measured[-1]
    return result(quality, rate, seconds) | {"curve": curve}


class HogwildLoop:
    """Hogwild as in mnist_hogwild: every process makes `epochs` passes over the whole data set."""

    def __init__(
        self,
        net: nn.Module,
        dataset: Dataset[Any],
        batch_size: int,
        momentum: float,
        options: Options,
    ) -> None:
        self.net, self.dataset = net.share_memory(), dataset
        self.batch_size, self.momentum, self.options = batch_size, momentum, options
        self.steps = torch.zeros(options.workers).share_memory_()  # of each process
        self.rates = torch.zeros(options.workers).share_memory_()  # images/s of each process

    def train(self) -> tuple[float, list[tuple[float, nn.Module]]]:
        """Returns images/s of all processes, and snapshots: (seconds since the start, network)."""
        processes = spawn(self.run_process, nprocs=self.options.workers, join=False)
        snapshots: list[tuple[float, nn.Module]] = []
        while not processes.join(timeout=0.01):
            if self.steps.sum() >= SNAPSHOT_STEPS * (len(snapshots) + 1):
                snapshots.append((self.options.seconds(), copy.deepcopy(self.net)))
        return self.rates.sum().item(), [*snapshots, (self.options.seconds(), self.net)]

    def run_process(self, rank: int) -> None:
        torch.manual_seed(self.options.seed + rank)
        batches = DataLoader(self.dataset, self.batch_size, shuffle=True)
        optimizer = torch.optim.SGD(self.net.parameters(), 0.01, self.momentum)
        epochs = self.options.epochs
        self.rates[rank] = fit(
            self.net, batches, epochs, optimizer, lambda: self.steps[rank].add_(1)
        )
