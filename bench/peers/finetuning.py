"""Peers that fine-tune the whole network."""

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader, DistributedSampler

from bench.peers.options import Clock, Options
from bench.peers.shared import (
    BATCH,
    CROP,
    LR,
    MEAN,
    STD,
    class_count,
    count_images,
    evaluate,
    fit,
    network,
    one_cycle,
    photos,
    train_batches,
    weights_file,
)


def loop(options: Options) -> dict[str, Any]:
    """The plain loop of torchvision's references/classification.

    With AdamW instead of SGD, because it needs fewer epochs.
    """
    net, batches = network(options), train_batches(options)
    optimizer, schedule = one_cycle(net, options.epochs * len(batches))
    rate = fit(net, batches, options.epochs, optimizer, schedule.step)
    return evaluate(net, options, rate)


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
        Path(folder, "result").write_text(json.dumps(evaluate(net.module, options, rate)))


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
    return evaluate(learner.model, options, rate)


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
    return evaluate(classifier.net, options, rate)


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
    return evaluate(net, options, rate)
