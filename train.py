"""Train a classifier on the photos in data/, with Hogwild on all CPUs, into model/checkpoint.pt.

    python train.py                        # from ImageNet weights; goes on where an interrupted run stopped
    python train.py --epochs 5 --image-size 160
    python train.py --fresh                # starts over; the old checkpoint is kept beside the new one
"""

import csv
import dataclasses
import functools
import io
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import model
from hogwear import checkpoint, dataset, hogwild, machine, metrics, progress, settings
from hogwear.dataset import Photos
from hogwear.errors import BadInput
from hogwear.hogwild import Course, Workers
from hogwear.machine import Stop
from hogwear.pixels import Pixels
from hogwear.settings import flag

SAVING_SHARE = 0.02  # of the time may go into saving between epochs


@dataclass(frozen=True)
class Settings:
    """Train a classifier on the photos in data/ with Hogwild on all CPUs; write model/checkpoint.pt.

    An interrupted run goes on where it stopped; a finished one is trained --epochs more.
    """

    data_dir: Path = settings.data_dir()
    model_dir: Path = settings.model_dir()
    cache_dir: Path = settings.cache_dir()
    arch: str | None = flag("the network", None, choices=tuple(model.ARCHITECTURES), default_help="efficientnet_lite0")
    image_size: int | None = flag("side of the photos in pixels", None, kind=int, at_least=32, below=1025, default_help="128")
    epochs: int | None = flag("passes over the photos, by all workers together", None, kind=int, at_least=1, default_help="2")
    workers: int | None = flag("processes that train, one thread each", None, kind=int, at_least=1, default_help="the CPUs there are")
    batch_size: int | None = flag("photos a step", None, kind=int, at_least=1, below=4097, default_help="32")
    lr: float | None = flag("peak learning rate", None, kind=float, at_least=1e-7, below=10, default_help="the network's own")
    momentum: float | None = flag("of SGD", None, kind=float, at_least=0, below=1, default_help="0.9")
    seed: int | None = flag("of the shuffles, changes to photos and first weights", None, kind=int, at_least=0, default_help="0")
    fresh: bool = flag("start over instead of going on", False, kind=bool)


@dataclass(frozen=True)
class Choices:
    """The settings that a run keeps to until it is finished."""

    arch: str = "efficientnet_lite0"
    image_size: int = 128
    epochs: int = 2
    batch_size: int = 32
    lr: float | None = None
    momentum: float = 0.9
    seed: int = 0


@dataclass
class Tally:
    """Sums over the images of an epoch so far."""

    images: int = 0
    loss: float = 0.0
    correct: int = 0
    seconds: float = 0.0

    def add(self, result: hogwild.Result) -> None:
        self.images += result.images
        self.loss += result.loss * result.images
        self.correct += result.correct


class Run:
    """A training run: its network in shared memory, and everything that the checkpoint keeps of it."""

    def __init__(self, choices: Choices, class_names: tuple[str, ...]) -> None:
        torch.manual_seed(choices.seed)
        self.choices, self.class_names = choices, class_names
        self.net = model.build(choices.arch, len(class_names), choices.image_size)
        self.images_seen = 0  # in this run
        self.first_epoch = 0  # epochs of finished runs before it
        self.history: list[dict[str, float]] = []  # a row an epoch, of all runs
        self.best: dict[str, Any] = {}  # epoch, val_acc, val_loss, weights
        self.tally = Tally()  # of the epoch under way
        self.momentum: Tensor | None = None  # (workers, trained parameters)
        self.finished = False

    @classmethod
    def start(cls, given: dict[str, Any], class_names: tuple[str, ...]) -> "Run":
        run = cls(Choices(**given), class_names)
        run.net.load_pretrained()
        return run

    @classmethod
    def resume(cls, state: dict[str, Any], given: dict[str, Any], class_names: tuple[str, ...]) -> "Run":
        """The run of a checkpoint. BadInput if classes, architecture or an interrupted run's settings are others."""
        saved = Choices(**state["choices"])
        if class_names != tuple(state["class_names"]):
            raise BadInput(
                f"the checkpoint knows the classes {', '.join(state['class_names'])}; the photos are of "
                f"{', '.join(class_names)}: use another --model-dir, or --fresh to start over"
            )
        kept = ("arch",) if state["finished"] else tuple(given)
        for name in kept:
            if given.get(name, getattr(saved, name)) != getattr(saved, name):
                what = "checkpoint" if state["finished"] else "interrupted run"
                raise BadInput(
                    f"--{name.replace('_', '-')} is {given[name]}, but the {what} has {getattr(saved, name)}: "
                    f"leave it out to go on, or use --fresh to start over"
                )
        if not state["finished"]:
            run = cls(saved, class_names)
            run.net.load_state_dict(state["weights"])
            run.images_seen, run.first_epoch = state["images_seen"], state["first_epoch"]
            run.momentum, run.tally = state["momentum"], Tally(**state["tally"])
        else:
            run = cls(Choices(**{"arch": saved.arch, "image_size": saved.image_size, **given}), class_names)
            run.net.load_state_dict(state["best"]["weights"])
            run.first_epoch = len(state["history"])
        run.history, run.best = state["history"], state["best"]
        return run

    def state(self) -> dict[str, Any]:
        """What the checkpoint holds."""
        return {
            "arch": self.choices.arch,
            "class_names": list(self.class_names),
            "image_size": self.choices.image_size,
            "preprocessing": "RGB, letterboxed on white, uint8; the network normalises",
            "choices": dataclasses.asdict(self.choices),
            "images_seen": self.images_seen,
            "first_epoch": self.first_epoch,
            "finished": self.finished,
            "tally": dataclasses.asdict(self.tally),
            "history": self.history,
            "best": self.best,
            "weights": self.net.state_dict(),
            "momentum": None if self.finished else self.momentum,
        }


def main(settings: Settings) -> None:
    machine.keep_freed_memory()
    torch.set_num_threads(1)
    require_writable(settings.model_dir)
    photos = dataset.find(settings.data_dir, settings.cache_dir)
    run = open_run(settings, photos.class_names)
    workers = settings.workers or machine.cpus()
    print_plan(run, workers, photos)
    train, val = (
        progress.decoded(split, run.choices.image_size, settings.cache_dir) for split in (photos.train, photos.val)
    )
    course = make_course(run, train)
    with Stop() as stop:
        fit(run, course, workers, val, settings.model_dir, stop)
    file = settings.model_dir / checkpoint.FILE_NAME
    if not run.finished:
        print(f"Stopped after {run.images_seen} images, saved in {file}; run train again to go on.")
        sys.exit(128 + stop.signal)
    print(f"Done: {file}, validation accuracy {run.best['val_acc']:.4f} (epoch {run.best['epoch']}). Next: eval, infer.")


def require_writable(folder: Path) -> None:
    """BadInput now rather than after an epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise BadInput(f"{folder}: not writable by uid {os.getuid()}; change its owner or choose another --model-dir")


def open_run(settings: Settings, class_names: tuple[str, ...]) -> Run:
    """The run to go on with, or a new one; says which."""
    given = {f.name: v for f in dataclasses.fields(Choices) if (v := getattr(settings, f.name)) is not None}
    file = settings.model_dir / checkpoint.FILE_NAME
    if not file.exists():
        print(f"New run: there is no {file} yet.")
        return Run.start(given, class_names)
    if settings.fresh:
        kept = file.with_name(time.strftime(f"{file.stem}-%Y%m%d-%H%M%S{file.suffix}"))
        file.rename(kept)
        print(f"New run: --fresh; the old checkpoint is now {kept}.")
        return Run.start(given, class_names)
    run = Run.resume(checkpoint.load(settings.model_dir), given, class_names)
    if run.images_seen:
        print(f"Resuming the interrupted run in {file} after {run.images_seen} images.")
    else:
        print(f"Going on from the finished run in {file} (validation accuracy {run.best['val_acc']:.4f}): {run.choices.epochs} epochs more.")
    return run


def print_plan(run: Run, workers: int, photos: Photos) -> None:
    choices, cpus = run.choices, machine.cpus()
    source = "the built-in sample (data/ is empty)" if photos.is_sample else str(photos.folder)
    print(f"Photos: {source}: {len(photos.train)} to train on, {len(photos.val)} to validate with; {', '.join(photos.class_names)}")
    print(
        f"Plan: {choices.arch} at {choices.image_size} px, {choices.epochs} epochs, batches of {choices.batch_size}; "
        f"{workers} workers of one thread on {cpus} CPUs; arithmetic in {machine.fast_dtype()}"
    )
    if workers > cpus:
        print(f"Warning: {workers} workers share {cpus} CPUs, which is slower than {cpus} workers", file=sys.stderr)


def make_course(run: Run, train: Pixels) -> Course:
    choices = run.choices
    return Course(
        images=train.file, rows=train.rows, labels=train.labels,
        batch_size=choices.batch_size, epochs=choices.epochs,
        lr=choices.lr or run.net.lr, head_lr_scale=run.net.head_lr_scale, momentum=choices.momentum,
        seed=choices.seed, first_epoch=run.first_epoch,
    )  # fmt: skip


def fit(run: Run, course: Course, workers: int, val: Pixels, model_dir: Path, stop: Stop) -> None:
    """Train to the end of the course or until `stop`; save after every epoch, and from time to time between."""
    flat = hogwild.share(run.net)
    run.momentum = hogwild.share_momentum(run.net, workers, run.momentum)
    make_net = functools.partial(model.build, run.choices.arch, len(run.class_names), run.choices.image_size)
    saves = SaveClock()
    step = course.step_at(run.images_seen)
    with Workers(make_net, flat, run.momentum, course) as pool, progress.TrainingBar(course, step) as bar:
        while step < course.steps and not stop.asked:
            epoch_end = (step // course.steps_per_epoch + 1) * course.steps_per_epoch
            started = time.monotonic()
            for result in pool.train(range(step, epoch_end), pause=lambda: stop.asked or saves.due()):
                step += 1
                run.tally.add(result)
                bar.show(result)
            run.tally.seconds += time.monotonic() - started
            run.images_seen = course.images_before(step)
            if step == epoch_end:
                validate(run, val, workers, course.lr_at(step - 1))
                bar.write(epoch_line(run, course))
                write_history(run.history, model_dir / "metrics.csv")
            run.finished = step == course.steps
            with saves:
                checkpoint.save(model_dir, run.state())


class SaveClock:
    """Tells when to save within an epoch: not before the last save's cost is 2 % of the time since."""

    def __init__(self) -> None:
        self.cost, self.saved = 0.1, time.monotonic()  # seconds; the first cost is a guess

    def due(self) -> bool:
        return time.monotonic() - self.saved > self.cost / SAVING_SHARE

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self.saved = time.monotonic()
        self.cost = self.saved - self.started


def validate(run: Run, val: Pixels, threads: int, lr: float) -> None:
    """Close the epoch: measure the weights on val, note a row of history, and keep the weights if they are the best yet."""
    logits = model.predict(run.net, val.images, val.rows, threads).numpy()
    row = {
        "epoch": len(run.history) + 1,
        "images": run.tally.images,
        "lr": lr,
        "train_loss": run.tally.loss / run.tally.images,
        "train_acc": run.tally.correct / run.tally.images,
        "val_loss": metrics.cross_entropy(logits, val.labels),
        "val_acc": metrics.accuracy(logits, val.labels),
        "images_per_second": run.tally.images / run.tally.seconds,
    }
    run.history.append(row)
    run.tally = Tally()
    if not run.best or (row["val_acc"], -row["val_loss"]) > (run.best["val_acc"], -run.best["val_loss"]):
        run.best = {name: row[name] for name in ("epoch", "val_acc", "val_loss")}
        run.best["weights"] = {name: p.clone() for name, p in run.net.state_dict().items()}


def epoch_line(run: Run, course: Course) -> str:
    row = run.history[-1]
    return (
        f"epoch {row['epoch']:g}/{run.first_epoch + course.epochs}: train loss {row['train_loss']:.3f} accuracy {row['train_acc']:.3f}, "
        f"val loss {row['val_loss']:.4f} accuracy {row['val_acc']:.4f}{' (best)' * (run.best['epoch'] == row['epoch'])}, "
        f"{row['images_per_second']:.0f} images/s"
    )


def write_history(history: list[dict[str, float]], file: Path) -> None:
    """metrics.csv: all epochs of all runs into this checkpoint, a row each."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=history[0])
    writer.writeheader()
    writer.writerows(history)
    dataset.write_atomically(file, text.getvalue().encode())


if __name__ == "__main__":
    settings.run(main, Settings)
