"""A training run: what the checkpoint keeps of it, and how it gets from its first batch to its last."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hogwear.cluster import membership
from hogwear.cluster.peers import SINGLE_MACHINE, SingleMachine
from hogwear.data import contents
from hogwear.data.pixels import Pixels
from hogwear.data.split_assignments import NO_ASSIGNMENTS, SplitVersion
from hogwear.evaluation import metrics, predict
from hogwear.networks import parameters
from hogwear.networks.network import Network
from hogwear.system.arrays import Float32Array, Int64Array, UInt8Array
from hogwear.system.artifacts import METRICS
from hogwear.system.errors import BadInput
from hogwear.system.files import write_atomically
from hogwear.system.signals import Stop
from hogwear.system.text import to_csv
from hogwear.system.workers import Workers
from hogwear.training import checkpoint, hogwild, schema
from hogwear.training.closed_form import Moments
from hogwear.training.hogwild import Course
from hogwear.training.hyperparameters import MAX_ROLLBACKS, UNBALANCED, Hyperparameters
from hogwear.training.photo_sets import PhotoSets
from hogwear.training.progress import TrainingBar
from hogwear.training.time_budget import Budget

SAVING_SHARE = 0.02  # of the time may go into saving
STEADY_WORKERS = 4  # with more, or with smaller batches, the default rate has to fall: docs/decisions/defaults.md
DIVERGED = 5.0  # times the loss of guessing: a mean loss above that is taken for training that has come apart
HUGE = 1e30  # in place of an infinite logit: the loss is then a number, if a large one
SURE = 0.99  # share of the answers that shall be right where a photo is not called unsure


@dataclass
class RunningMetrics:
    """Sums over the images of an epoch so far."""

    images: int = 0
    loss: float = 0.0
    correct: int = 0
    seconds: float = 0.0

    def add(self, result: hogwild.Result) -> None:
        self.images += result.images
        self.loss += result.loss * result.images
        self.correct += result.correct


@dataclass(frozen=True)
class Snapshot:
    """A copy of what has been learnt, made while no worker was at work: what is saved, and what can be gone back to."""

    images_seen: int
    tally: RunningMetrics
    weights: dict[str, Tensor]
    momentum: Tensor  # (workers, trained parameters)


class Trainer:
    """One run of `hyperparameters.epochs` epochs, maybe after others."""

    good: Snapshot  # the last one that was sound

    def __init__(
        self,
        net: Network,
        hyperparameters: Hyperparameters,
        class_names: tuple[str, ...],
        photos: PhotoSets,
        machines: int = 1,
    ) -> None:
        self.net, self.hyperparameters, self.class_names, self.photos, self.machines = (
            net,
            hyperparameters,
            class_names,
            photos,
            machines,
        )
        self.images_seen = 0  # in this run
        self.epoch_images = 1  # that this machine sees in an epoch
        self.first_epoch = 0  # epochs of the runs before it
        self.finished = False
        self.history: list[dict[str, float]] = []  # a row an epoch, of all runs
        self.best: dict[
            str, Any
        ] = {}  # epoch, val_acc, val_loss, image_size, temperature, confidence_threshold, weights
        self.tally = RunningMetrics()  # of the epoch under way
        self.session = RunningMetrics()  # of this process
        self.momentum: Tensor | None = None  # (workers, trained parameters)
        self.length: int | None = None  # images in all, where a time budget set them
        self.rollbacks = 0  # times that training diverged; each halves the learning rate
        self.epochs_done: float | None = (
            None  # where images do not tell, because another number of machines had a part each
        )
        self.others = SINGLE_MACHINE  # machines that train beside this one
        self.split = NO_ASSIGNMENTS.version()  # of model/split.json
        self.trained_on = torch.empty(
            0, dtype=torch.int64
        )  # contents.shorten_hashes of all photos, in this run and those before

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint: in the middle of its run, or with a run more if that was finished."""
        self.history, self.best = state["history"], state["best"]
        self.split, self.trained_on = state["split"], state["trained_on"]
        if state["finished"]:
            self.net.load_state_dict(self.best["weights"])
            self.first_epoch = len(self.history)
        else:
            self.net.load_state_dict(state["weights"])
            self.images_seen, self.first_epoch = state["images_seen"], state["first_epoch"]
            if self.machines > 1 or state["machines"] > 1:
                self.epochs_done = state["epochs_done"]
            self.momentum, self.tally = state["momentum"], RunningMetrics(**state["epoch_metrics"])
            self.length, self.rollbacks = state["total_images"], state["rollbacks"]

    def take(self, split: SplitVersion, hashes: UInt8Array) -> None:
        """Keep in mind by which split, and on photos of which contents, (n, HASH_SIZE), it trains from now on."""
        self.split = split
        self.trained_on = torch.from_numpy(
            np.union1d(self.trained_on.numpy(), contents.shorten_hashes(hashes[hashes.any(axis=1)]))
        )

    def state(self) -> dict[str, Any]:
        """What the checkpoint holds, as schema.py has it."""
        return {
            "class_names": list(self.class_names),
            "hyperparameters": asdict(self.hyperparameters),
            "photos": asdict(self.photos),  # which `best` was measured on, too
            "split": self.split,
            "trained_on": self.trained_on,
            "images_seen": self.images_seen * self.machines,
            "machines": self.machines,
            "job": membership.read_job_id(),
            "epochs_done": self.good.images_seen / self.epoch_images,
            "first_epoch": self.first_epoch,
            "finished": self.finished,
            "history": self.history,
            "best": self.best,
            "epoch_metrics": asdict(self.tally),  # of rank 0
            "total_images": self.length,
            "rollbacks": self.rollbacks,
            "weights": self.good.weights,
            "momentum": None if self.finished else self.good.momentum,
        }

    def measure_best(
        self, best: dict[str, Any], val: Pixels, workers: int, others: SingleMachine
    ) -> dict[str, Any]:
        """The `best` of a checkpoint with its figures on these photos, of its image size. The network is left with its weights."""
        self.net.load_state_dict(best["weights"])
        logits = predict.predict_logits(self.net, val.images, val.rows, workers, others.heartbeat)
        logits, labels = others.all_gather([logits, val.labels])
        return best | validated(logits, labels) | calibrated(logits, labels)

    def course(self, train: Pixels, workers: int) -> Course:
        steady = min(
            1.0,
            STEADY_WORKERS / workers,
            self.hyperparameters.batch_size / Hyperparameters.batch_size,
        )
        return Course(
            images=train.images,
            crop=self.net.crop_size(self.hyperparameters.image_size),
            rows=train.rows,
            labels=train.labels,
            batch_size=self.hyperparameters.batch_size,
            length=torch.tensor(
                [self.length or self.hyperparameters.epochs * len(train)]
            ).share_memory_(),
            lr=self.hyperparameters.lr
            or self.net.default_lr * steady * math.sqrt(self.machines),  # docs/decisions/cluster.md
            lr_scale=torch.tensor([0.5**self.rollbacks], dtype=torch.float64).share_memory_(),
            momentum=self.hyperparameters.momentum,
            seed=self.hyperparameters.seed,
            first_epoch=self.first_epoch,
            pretrained=self.net.pretrained,
            log_prior=log_prior(train.labels, len(self.class_names)),
        )

    def fit(
        self, train: Pixels, val: Pixels, workers: int, model_dir: Path, stop: Stop, budget: Budget | None = None,
        connect: Callable[[Network], SingleMachine] = lambda net: SINGLE_MACHINE,
    ) -> None:  # fmt: skip
        """Train to the end of the run or until `stop`; save then, and as often as costs SAVING_SHARE of the time.

        With a `budget` the run ends when the time does. `connect` joins the network to those of other machines, which
        train with other photos; rank 0 of them saves.
        """
        if budget:
            self.length = budget.images
        self.epoch_images = len(train)
        course = self.course(train, workers)
        step = (
            course.step_at(self.images_seen)
            if self.epochs_done is None
            else int(self.epochs_done * course.steps_per_epoch + 1e-6)
        )
        if step >= course.steps:
            raise BadInput(
                f"the interrupted run has seen {self.images_seen} images, and with the photos there are now it would "
                f"end after {course.images_before(course.steps)}: use --fresh to start over"
            )
        self.images_seen = course.images_before(step)
        first = step == 0 and not self.history
        moments = (
            Moments(workers, self.net.head.in_features, train, len(self.class_names))
            if first and self.net.pretrained
            else None
        )
        parameters.share_parameters(self.net)
        self.momentum = momentum = parameters.create_momentum_buffers(
            self.net, workers, self.momentum
        )
        images = val.images

        def prepare(rank: int) -> dict[str, Any]:
            return {
                "moments": moments.job(self.net.features, rank) if moments else None,
                "train": hogwild.trainer(self.net, momentum[rank], course),
                "predict": predict.prediction_job(self.net, images, val.rows),
            }

        with (
            connect(
                self.net
            ) as self.others,  # before the workers: it must not inherit our ends of their pipes
            Workers(workers, prepare) as pool,
            TrainingBar(course.images_before(course.steps), self.images_seen, self.others) as bar,
        ):
            if moments:
                self.start_head(pool, moments, stop)
            self.others.broadcast_parameters()
            self.keep(DivergenceDetector(len(self.class_names)))
            saves = SaveClock()
            while not self.finished and not stop.requested:
                loss = DivergenceDetector(len(self.class_names))
                try:
                    self.train(
                        pool, course, loss, lambda: stop.requested or saves.due(), bar, budget
                    )
                    step = course.step_at(self.images_seen)
                    closing = (
                        step % course.steps_per_epoch == 0 and self.tally.images > 0
                    ) or step >= course.steps
                    if closing and not loss.diverged:
                        self.settle()
                except Exception:  # no worker stays alive, memory ran out, another machine is gone: what they did until now is kept
                    if self.keep(loss):
                        self.save(model_dir)
                    raise
                if not self.keep(loss):
                    self.go_back(course, loss, model_dir)
                    bar.back_to(self.images_seen)
                    continue
                self.finished = step >= course.steps
                if closing:
                    self.close_epoch(
                        predict.collect_logits(pool, len(val), self.others.heartbeat),
                        val,
                        course.lr_at(step - 1),
                    )
                    try:
                        bar.write(self.epoch_line())
                    except OSError:  # of standard output: its reader is gone, its disk full
                        self.save(model_dir)
                        raise
                if self.finished or saves.due():
                    with saves:
                        self.save(model_dir)
            if not self.finished and self.session.images:
                self.save(model_dir)
            if self.finished:
                self.others.barrier()  # nobody leaves before it is saved

    def save(self, model_dir: Path) -> None:
        """By one machine of all."""
        if self.others.rank == 0:
            self.write(model_dir)

    def write(self, model_dir: Path) -> None:
        """The checkpoint and metrics.csv."""
        checkpoint.save(model_dir, self.state())
        write_history(self.history, model_dir / METRICS)

    def train(
        self,
        pool: Workers,
        course: Course,
        loss: "DivergenceDetector",
        pause: Callable[[], bool],
        bar: TrainingBar,
        budget: Budget | None,
    ) -> None:
        """To the end of the epoch under way, until `pause()`, or until the loss tells of trouble."""
        started = time.monotonic()
        step = course.step_at(self.images_seen)
        epoch_end = (step // course.steps_per_epoch + 1) * course.steps_per_epoch
        steps = takewhile(lambda n: n < min(epoch_end, course.steps), count(step))
        for _, result in pool.run("train", steps, lambda: loss.diverged or pause()):
            step += 1
            self.images_seen = course.images_before(step)
            for tally in self.tally, self.session:
                tally.add(result)
            loss.add(result.loss)
            self.others.sync_if_due(step / course.steps_per_epoch)
            bar.show(result.images, result.loss)
            if budget:
                self.stay_in_time(budget, course, time.monotonic() - started)
                bar.end_at(int(course.length))
        for tally in self.tally, self.session:
            tally.seconds += time.monotonic() - started

    def settle(self) -> None:
        """All machines take the average of their parameters."""
        started = time.monotonic()
        self.others.sync_parameters()
        for tally in self.tally, self.session:
            tally.seconds += time.monotonic() - started

    def stay_in_time(self, budget: Budget, course: Course, seconds: float) -> None:
        """Move the end of the course to where the budget ends, at the speed of this process, now so many seconds at it."""
        more = budget.more(self.session.images, self.session.seconds + seconds, len(course.rows))
        if more is not None:
            self.length = self.images_seen + more
            course.length[0] = self.length

    def keep(self, loss: "DivergenceDetector") -> bool:
        """Copy what has been learnt, as `good`; False, and the copy before stays, where it diverged or a weight or its momentum is no number."""
        assert self.momentum is not None
        weights = {name: p.clone() for name, p in self.net.state_dict().items()}
        sound = not loss.diverged and all(
            bool(p.isfinite().all()) for p in (*weights.values(), self.momentum)
        )
        if sound:
            self.good = Snapshot(
                self.images_seen, replace(self.tally), weights, self.momentum.clone()
            )
        return sound

    def go_back(self, course: Course, loss: "DivergenceDetector", model_dir: Path) -> None:
        """To the last `good` weights, with half the learning rate. BadInput when that has been done MAX_ROLLBACKS times."""
        lr, diverged_after = course.lr * float(course.lr_scale), self.images_seen
        self.images_seen, self.tally = self.good.images_seen, replace(self.good.tally)
        self.net.load_state_dict(self.good.weights)
        assert self.momentum is not None
        self.momentum.copy_(self.good.momentum)
        if self.rollbacks == MAX_ROLLBACKS:
            self.save(model_dir)
            raise BadInput(
                f"training diverged {MAX_ROLLBACKS + 1} times (loss {loss.mean:.1f}), at last with a learning rate of {lr:g}: start over "
                f"with a smaller one, --fresh --lr {lr / 10:g}; the checkpoint is from before, after {self.images_seen} images"
            )
        self.rollbacks += 1
        course.lr_scale[0] = 0.5**self.rollbacks
        print(f"Warning: training diverged (loss {loss.mean:.1f}) after {diverged_after} images: "
              f"back to {self.images_seen}, with half the learning rate, {lr / 2:g}", file=sys.stderr)  # fmt: skip

    def start_head(self, pool: Workers, moments: Moments, stop: Stop) -> None:
        """Give the classifier its closed form, so that the features are not trained against a random one."""
        for _ in pool.run("moments", moments.items, lambda: stop.requested):
            pass
        if stop.requested:
            return
        weight, bias = moments.classifier(self.others.all_reduce(moments.totals()))
        self.net.head.weight.data.copy_(weight)
        self.net.head.bias.data.copy_(bias)

    def close_epoch(self, logits: Float32Array, val: Pixels, lr: float) -> None:
        """Note a row of history, and keep the weights if they are the best on val yet (of equal ones, the later)."""
        sums = np.array([[self.tally.images, self.tally.loss, self.tally.correct]])
        logits, labels, sums = self.others.all_gather(
            [np.nan_to_num(logits, nan=0, posinf=HUGE, neginf=-HUGE), val.labels, sums]
        )
        images, loss, correct = sums.sum(axis=0).tolist()
        row = {
            "epoch": len(self.history) + 1,
            "images": int(images),
            "lr": lr,
            "train_loss": loss / images,
            "train_acc": correct / images,
            **validated(logits, labels),
            "images_per_second": images / self.tally.seconds,
        }
        self.history.append(row)
        self.tally = RunningMetrics()
        self.good = replace(self.good, tally=RunningMetrics())
        if not self.best or row["val_acc"] >= self.best["val_acc"]:
            self.best = {name: row[name] for name in ("epoch", "val_acc", "val_loss")}
            self.best["image_size"] = self.hyperparameters.image_size
            self.best |= calibrated(logits, labels)
            self.best["weights"] = self.good.weights

    def epoch_line(self) -> str:
        row = self.history[-1]
        best = " (best)" * (self.best["epoch"] == row["epoch"])
        return (
            f"epoch {row['epoch']}/{self.first_epoch + self.hyperparameters.epochs}: "
            f"train loss {row['train_loss']:.3f} accuracy {row['train_acc']:.3f}, "
            f"val loss {row['val_loss']:.4f} accuracy {row['val_acc']:.4f}{best}, "
            f"{row['images_per_second']:.0f} images/s"
        )


def log_prior(labels: Int64Array, classes: int) -> Tensor:
    """The logarithm of the classes' shares, (classes,), where they differ UNBALANCED-fold; else zeros.

    Added to the logits in the loss, the logits themselves take all classes to be equally frequent, so that rare ones
    are found as often (logit adjustment, arXiv 2007.07314), as the closed form they start from does.
    """
    counts = (
        torch.from_numpy(labels).bincount(minlength=classes).clamp(min=1)
    )  # other machines may have all photos of a class
    if counts.max() < UNBALANCED * counts.min():
        return hogwild.NO_PRIOR
    return (counts / counts.sum()).log()


def validated(logits: Float32Array, labels: Int64Array) -> dict[str, float]:
    return {
        "val_loss": metrics.cross_entropy(logits, labels),
        "val_acc": metrics.accuracy(logits, labels),
    }


def calibrated(logits: Float32Array, labels: Int64Array) -> dict[str, float]:
    """What makes the probabilities of these weights mean what they say: the temperature, and from where on 99 % are right."""
    temperature = metrics.fit_temperature(logits, labels)
    confidence, right = metrics.confidences(logits, temperature), logits.argmax(axis=1) == labels
    return {
        "temperature": temperature,
        "confidence_threshold": metrics.fit_threshold(SURE, confidence, right),
    }


class DivergenceDetector:
    """The mean loss of the last ten batches or so, and whether training has come apart."""

    def __init__(self, classes: int) -> None:
        self.mean, self.limit = 0.0, DIVERGED * math.log(classes)

    def add(self, loss: float) -> None:
        self.mean += 0.1 * (loss - self.mean)

    @property
    def diverged(self) -> bool:
        return not self.mean <= self.limit  # also where it is not a number


class SaveClock:
    """Tells when to save: not before the last save's cost is 2 % of the time since."""

    def __init__(self) -> None:
        self.cost, self.saved = 0.02, time.monotonic()  # seconds; the first cost is a guess

    def due(self) -> bool:
        return time.monotonic() - self.saved > self.cost / SAVING_SHARE

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self.saved = time.monotonic()
        self.cost = self.saved - self.started


def write_history(history: list[dict[str, float]], file: Path) -> None:
    """metrics.csv: all epochs of all runs into this checkpoint, a row each."""
    write_atomically(
        file,
        to_csv(
            [tuple(schema.ROW), *([row[name] for name in schema.ROW] for row in history)]
        ).encode(),
    )
