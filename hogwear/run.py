"""A training run: what the checkpoint keeps of it, and how it gets from its first batch to its last."""

import csv
import io
import time
from dataclasses import asdict, dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hogwear import checkpoint, dataset, hogwild, metrics, predict, progress
from hogwear.budget import Budget
from hogwear.choices import Choices
from hogwear.closed_form import Moments
from hogwear.errors import BadInput
from hogwear.hogwild import Course
from hogwear.machine import Stop
from hogwear.pixels import Pixels
from hogwear.workers import Workers

SAVING_SHARE = 0.02  # of the time may go into saving between epochs
STEADY_WORKERS = 4  # with more, or with smaller batches, the default rate has to fall: docs/decisions/defaults.md
HISTORY = "metrics.csv"


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
    """One run of `choices.epochs` epochs, maybe after others. `net` is a model.Network."""

    def __init__(self, net: Any, choices: Choices, class_names: tuple[str, ...]) -> None:
        self.net, self.choices, self.class_names = net, choices, class_names
        self.images_seen = 0  # in this run
        self.first_epoch = 0  # epochs of the runs before it
        self.finished = False
        self.history: list[dict[str, float]] = []  # a row an epoch, of all runs
        self.best: dict[str, Any] = {}  # epoch, val_acc, val_loss, image_size, weights
        self.tally = Tally()  # of the epoch under way
        self.momentum: Tensor | None = None  # (workers, trained parameters)
        self.length: int | None = None  # images in all, where a time budget set them

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint: in the middle of its run, or with a run more if that was finished."""
        self.history, self.best = state["history"], state["best"]
        if state["finished"]:
            self.net.load_state_dict(self.best["weights"])
            self.first_epoch = len(self.history)
        else:
            self.net.load_state_dict(state["weights"])
            self.images_seen, self.first_epoch = state["images_seen"], state["first_epoch"]
            self.momentum, self.tally = state["momentum"], Tally(**state["tally"])
            self.length = state.get("length")  # older checkpoints have none

    def state(self) -> dict[str, Any]:
        """What the checkpoint holds."""
        return {
            "arch": self.choices.arch,
            "class_names": list(self.class_names),
            "image_size": self.choices.image_size,
            "preprocessing": "RGB uint8, letterboxed on white to image_size; the network normalises",
            "choices": asdict(self.choices),
            "images_seen": self.images_seen,
            "first_epoch": self.first_epoch,
            "finished": self.finished,
            "history": self.history,
            "best": self.best,
            "tally": asdict(self.tally),
            "length": self.length,
            "weights": self.net.state_dict(),
            "momentum": None if self.finished else self.momentum,
        }

    def course(self, train: Pixels, workers: int) -> Course:
        steady = min(1.0, STEADY_WORKERS / workers, self.choices.batch_size / Choices.batch_size)
        return Course(
            images=train.file,
            rows=train.rows,
            labels=train.labels,
            batch_size=self.choices.batch_size,
            length=torch.tensor([self.length or self.choices.epochs * len(train)]).share_memory_(),
            lr=self.choices.lr or self.net.lr * steady,
            momentum=self.choices.momentum,
            seed=self.choices.seed,
            first_epoch=self.first_epoch,
        )

    def fit(
        self, train: Pixels, val: Pixels, workers: int, model_dir: Path, stop: Stop, budget: Budget | None = None
    ) -> None:
        """Train to the end of the run or until `stop`; save after every epoch, and from time to time between.

        With a `budget` the run ends when the time does.
        """
        if budget:
            self.length = budget.images
        course = self.course(train, workers)
        step = first_step = course.step_at(self.images_seen)
        if step >= course.steps:
            raise BadInput(
                f"the interrupted run has seen {self.images_seen} images, and with the photos there are now it would "
                f"end after {course.images_before(course.steps)}: use --fresh to start over"
            )
        first = step == 0 and not self.history
        moments = Moments(workers, self.net.head.in_features, train, len(self.class_names)) if first and self.net.pretrained else None
        hogwild.share(self.net)
        self.momentum = momentum = hogwild.share_momentum(self.net, workers, self.momentum)
        images = val.images

        def prepare(rank: int) -> dict[str, Any]:
            return {
                "moments": moments.job(self.net.features, rank) if moments else None,
                "train": hogwild.trainer(self.net, momentum[rank], course),
                "predict": predict.job(self.net, images, val.rows),
            }

        with Workers(workers, prepare) as pool, progress.TrainingBar(course.images_before(course.steps), self.images_seen) as bar:
            if moments:
                self.start_head(pool, moments, stop)
            saves, seconds = SaveClock(), 0.0  # spent on training
            while step < course.steps and not stop.asked:
                epoch_end = (step // course.steps_per_epoch + 1) * course.steps_per_epoch
                started = time.monotonic()
                steps = takewhile(lambda n, end=epoch_end: n < min(end, course.steps), count(step))  # type: ignore[misc]
                for _, result in pool.run("train", steps, lambda: stop.asked or saves.due()):
                    step += 1
                    self.tally.add(result)
                    bar.show(result.images, result.loss)
                    if budget:
                        self.stay_in_time(budget, course, range(first_step, step), seconds + time.monotonic() - started)
                        bar.end_at(int(course.length))
                self.tally.seconds += time.monotonic() - started
                seconds += time.monotonic() - started
                self.images_seen = course.images_before(step)
                self.finished = step >= course.steps
                if step == epoch_end or self.finished:
                    self.close_epoch(predict.gather(pool, len(val)), val, course.lr_at(step - 1))
                    bar.write(self.epoch_line())
                    write_history(self.history, model_dir / HISTORY)
                with saves:
                    checkpoint.save(model_dir, self.state())

    def stay_in_time(self, budget: Budget, course: Course, steps: range, seconds: float) -> None:
        """Move the end of the course to where the budget ends, at the speed of the `steps` taken so far."""
        images = course.images_before(steps.stop)
        more = budget.more(images - course.images_before(steps.start), seconds, len(course.rows))
        if more is not None:
            self.length = images + more
            course.length[0] = self.length

    def start_head(self, pool: Workers, moments: Moments, stop: Stop) -> None:
        """Give the classifier its closed form, so that the features are not trained against a random one."""
        for _ in pool.run("moments", moments.items, lambda: stop.asked):
            pass
        if stop.asked:
            return
        weight, bias = moments.classifier()
        self.net.head.weight.data.copy_(weight)
        self.net.head.bias.data.copy_(bias)

    def close_epoch(self, logits: predict.Logits, val: Pixels, lr: float) -> None:
        """Note a row of history, and keep the weights if they are the best on val yet (of equal ones, the later)."""
        row = {
            "epoch": len(self.history) + 1,
            "images": self.tally.images,
            "lr": lr,
            "train_loss": self.tally.loss / self.tally.images,
            "train_acc": self.tally.correct / self.tally.images,
            "val_loss": metrics.cross_entropy(logits, val.labels),
            "val_acc": metrics.accuracy(logits, val.labels),
            "images_per_second": self.tally.images / self.tally.seconds,
        }
        self.history.append(row)
        self.tally = Tally()
        if not self.best or row["val_acc"] >= self.best["val_acc"]:
            self.best = {name: row[name] for name in ("epoch", "val_acc", "val_loss")}
            self.best["image_size"] = self.choices.image_size
            self.best["weights"] = {name: p.clone() for name, p in self.net.state_dict().items()}

    def epoch_line(self) -> str:
        row = self.history[-1]
        best = " (best)" * (self.best["epoch"] == row["epoch"])
        return (
            f"epoch {row['epoch']}/{self.first_epoch + self.choices.epochs}: "
            f"train loss {row['train_loss']:.3f} accuracy {row['train_acc']:.3f}, "
            f"val loss {row['val_loss']:.4f} accuracy {row['val_acc']:.4f}{best}, "
            f"{row['images_per_second']:.0f} images/s"
        )


class SaveClock:
    """Tells when to save within an epoch: not before the last save's cost is 2 % of the time since."""

    def __init__(self) -> None:
        self.cost, self.saved = 0.05, time.monotonic()  # seconds; the first cost is a guess

    def due(self) -> bool:
        return time.monotonic() - self.saved > self.cost / SAVING_SHARE

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self.saved = time.monotonic()
        self.cost = self.saved - self.started


def write_history(history: list[dict[str, float]], file: Path) -> None:
    """metrics.csv: all epochs of all runs into this checkpoint, a row each."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    dataset.write_atomically(file, text.getvalue().encode())
