"""The trainer: the closed form first, then Hogwild in stretches until the run is finished.

No worker is training between two stretches. There the trainer takes a snapshot or rolls back,
validates at the end of an epoch, and saves when it is time.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count, takewhile

import numpy as np

from hogwear.cluster.peers import SINGLE_MACHINE, PeerLost, SingleMachine
from hogwear.data.pixels import Pixels
from hogwear.evaluation import metrics, predict
from hogwear.networks import parameters
from hogwear.networks.network import Network
from hogwear.system.errors import BadInput
from hogwear.system.signals import Stop
from hogwear.system.text import warn
from hogwear.system.workers import Jobs, Workers
from hogwear.training import hogwild
from hogwear.training.batches import Batches
from hogwear.training.checkpoint import SaveTimer
from hogwear.training.closed_form import Moments, fit_head
from hogwear.training.history import Best, EpochRow, RunningMetrics
from hogwear.training.hyperparameters import MAX_ROLLBACKS
from hogwear.training.model_folder import ModelFolder
from hogwear.training.progress import TrainingBar
from hogwear.training.recovery import DivergenceDetector, Snapshot, TrainingDiverged
from hogwear.training.run_state import RunState
from hogwear.training.schedule import LiveSettings, Schedule, choose_peak_lr
from hogwear.training.time_budget import Budget

HUGE = 1e30  # replaces an infinite logit, so that the validation loss is a number


@dataclass(frozen=True)
class TrainingData:
    """The decoded photos of a run; in a cluster, this machine's shard of them."""

    train: Pixels
    val: Pixels


class Trainer:
    """Trains a network until its run is finished. `state` is what the run remembers."""

    schedule: Schedule
    save_timer: SaveTimer
    cluster: SingleMachine = SINGLE_MACHINE
    budget: Budget | None = None

    def __init__(
        self, net: Network, state: RunState, data: TrainingData, workers: int, folder: ModelFolder
    ) -> None:
        """Loads weights into the network, in shared memory. BadInput where there is too little."""
        self.net = net
        self.state = state
        self.data = data
        self.workers = workers
        self.folder = folder
        self.num_classes = len(state.class_names)
        saved = state.snapshot
        if saved:
            net.load_state_dict(saved.weights)
        elif state.history.best:
            net.load_state_dict(state.history.best.weights)
        else:
            net.load_pretrained()
        parameters.share_parameters(net)
        momentum = saved.momentum if saved else None
        self.momentum = parameters.create_momentum_buffers(net, workers, momentum)
        self.step = 0  # the next one of the run
        self.epoch_metrics = replace(saved.metrics) if saved else RunningMetrics()
        self.session_metrics = RunningMetrics()  # of this process
        self.detector = DivergenceDetector(self.num_classes)

    @property
    def images_seen(self) -> int:
        """By this machine, in this run."""
        return self.schedule.images_before(self.step)

    def fit(
        self, stop: Stop, cluster: SingleMachine = SINGLE_MACHINE, budget: Budget | None = None
    ) -> None:
        """Train until the run is finished or a stop is requested. Saves then, and in between.

        With a `budget`, the run ends when its time does. The machines of a cluster train on
        different photos, and rank 0 saves. Whatever is raised, what was learned before is saved.
        """
        self.cluster = cluster
        self.budget = budget
        try:
            self.run_stages(stop)
        except Exception as error:
            # Workers keep dying, memory ran out, stdout is closed, a machine is lost, ...
            if self.session_metrics.images:
                self.take_snapshot()
                self.save(on_every_machine=isinstance(error, PeerLost))
            raise

    def run_stages(self, stop: Stop) -> None:
        state, cluster = self.state, self.cluster
        self.schedule = create_schedule(self)
        self.step = state.first_step(self.schedule, cluster.machines)
        moments = create_moments(self)
        total_images = self.schedule.images_before(self.schedule.total_steps)
        with (
            Workers(self.workers, create_jobs(self, moments)) as pool,
            TrainingBar(total_images, self.images_seen, cluster) as bar,
        ):
            # Stage 1: the classifier in closed form, from one pass over the photos.
            if moments:
                fit_head(self.net, moments, pool, cluster, stop)
            cluster.broadcast_parameters()
            self.take_snapshot()
            # Stage 2: Hogwild.
            self.save_timer = SaveTimer()
            while not state.finished and not stop.requested:
                self.train_stretch(pool, bar, stop)
            if state.finished:
                cluster.barrier()  # no machine leaves before rank 0 has saved
            elif self.session_metrics.images:
                self.save()

    def train_stretch(self, pool: Workers, bar: TrainingBar, stop: Stop) -> None:
        """Train to the end of the epoch, until it is time to save, or until training diverges."""
        self.train_steps(pool, bar, stop)
        if not self.take_snapshot():
            self.roll_back()
            return
        finished = self.step >= self.schedule.total_steps
        if self.is_epoch_over():
            self.close_epoch(pool)
            self.state.finished = finished
            total_epochs = self.state.first_epoch + self.state.hyperparameters.epochs
            bar.print(self.state.history.describe_last(total_epochs))
        if finished or self.save_timer.is_due():
            with self.save_timer:
                self.save()

    def train_steps(self, pool: Workers, bar: TrainingBar, stop: Stop) -> None:
        schedule, detector = self.schedule, self.detector
        end = (self.step // schedule.steps_per_epoch + 1) * schedule.steps_per_epoch
        steps = takewhile(lambda step: step < min(end, schedule.total_steps), count(self.step))

        def should_pause() -> bool:
            return detector.diverged or stop.requested or self.save_timer.is_due()

        clock = time.monotonic()
        for _, result in pool.run("train", steps, should_pause):
            self.step += 1
            detector.add(result.loss)
            started, clock = clock, time.monotonic()
            for sums in (self.epoch_metrics, self.session_metrics):
                sums.add(result, clock - started)
            self.cluster.sync_if_due(self.step / schedule.steps_per_epoch)
            if self.budget:
                self.adjust_length(self.budget)
            bar.update(self.images_seen, schedule.live.total_images, self.epoch_metrics)
        if self.is_epoch_over() and not detector.diverged:
            self.cluster.sync_parameters()
        for sums in (self.epoch_metrics, self.session_metrics):
            sums.seconds += time.monotonic() - clock

    def adjust_length(self, budget: Budget) -> None:
        """Move the end of the run to where the budget ends at the present speed."""
        session = self.session_metrics
        left = budget.images_left(session.images, session.seconds, self.schedule.num_photos)
        if left is not None:
            self.state.total_images = self.schedule.live.total_images = self.images_seen + left

    def is_epoch_over(self) -> bool:
        at_boundary = self.step % self.schedule.steps_per_epoch == 0
        is_run_over = self.step >= self.schedule.total_steps
        return (at_boundary and self.epoch_metrics.images > 0) or is_run_over

    def take_snapshot(self) -> bool:
        """Copy what has been learned. False, keeping the last snapshot, if training diverged."""
        images, num_photos = self.images_seen, self.schedule.num_photos
        snapshot = Snapshot.take(self.net, self.momentum, images, num_photos, self.epoch_metrics)
        if self.detector.diverged or not snapshot.is_finite:
            return False
        self.state.snapshot = snapshot
        self.state.machines = self.cluster.machines
        return True

    def roll_back(self) -> None:
        """Return to the last snapshot with half the learning rate. Raises TrainingDiverged."""
        snapshot, images_seen = self.state.snapshot, self.images_seen
        assert snapshot
        loss, lr = self.detector.mean_loss, self.schedule.current_peak_lr
        snapshot.restore(self.net, self.momentum)
        self.epoch_metrics = replace(snapshot.metrics)
        self.step = self.schedule.step_at(snapshot.images_seen)
        self.detector = DivergenceDetector(self.num_classes)
        if self.state.rollbacks == MAX_ROLLBACKS:
            raise TrainingDiverged(loss, lr, self.images_seen)
        self.state.rollbacks += 1
        self.schedule.live.lr_scale = 0.5**self.state.rollbacks
        warn(
            f"training diverged (loss {loss:.1f}) after {images_seen} images: "
            f"back to {self.images_seen}, with half the learning rate, {lr / 2:g}"
        )

    def close_epoch(self, pool: Workers) -> None:
        """Validate, add a row to the history, and keep the weights if they are the best so far."""
        history, val, sums = self.state.history, self.data.val, self.epoch_metrics
        logits = predict.collect_logits(pool, len(val), self.cluster.heartbeat)
        logits = np.nan_to_num(logits, nan=0, posinf=HUGE, neginf=-HUGE)
        logits, labels, sums_by_rank = self.cluster.all_gather(
            [logits, val.labels, np.array([[sums.images, sums.loss, sums.correct]])]
        )
        images, loss, correct = sums_by_rank.sum(axis=0).tolist()
        row = EpochRow(
            epoch=len(history.rows) + 1,
            images=int(images),
            lr=self.schedule.lr_at(self.step - 1),
            train_loss=loss / images,
            train_acc=correct / images,
            val_loss=metrics.cross_entropy(logits, labels),
            val_acc=metrics.accuracy(logits, labels),
            images_per_second=images / sums.seconds,
        )
        history.rows.append(row)
        assert self.state.snapshot
        if history.is_best(row):
            image_size = self.state.hyperparameters.image_size
            weights = self.state.snapshot.weights
            history.best = Best.measure(weights, row.epoch, image_size, logits, labels)
        self.epoch_metrics = RunningMetrics()
        self.state.snapshot = replace(self.state.snapshot, metrics=RunningMetrics())

    def save(self, on_every_machine: bool = False) -> None:
        """Save on rank 0. After a machine was lost any of the others may be the one to go on."""
        if self.cluster.rank == 0:
            self.folder.save(self.state)
        elif on_every_machine:
            with suppress(BadInput):  # the folder may be that of rank 0, which saves there
                self.folder.claim()
                self.folder.save(self.state)


def create_schedule(trainer: Trainer) -> Schedule:
    """The schedule of a run, for the photos on this machine."""
    state, hyperparameters = trainer.state, trainer.state.hyperparameters
    machines, num_photos = trainer.cluster.machines, len(trainer.data.train)
    total_images = state.total_images or hyperparameters.epochs * num_photos
    return Schedule(
        num_photos=num_photos,
        batch_size=hyperparameters.batch_size,
        peak_lr=choose_peak_lr(trainer.net, hyperparameters, trainer.workers, machines),
        seed=hyperparameters.seed,
        first_epoch=state.first_epoch,
        live=LiveSettings.create(total_images, lr_scale=0.5**state.rollbacks),
    )


def create_moments(trainer: Trainer) -> Moments | None:
    """What the closed form needs; None unless a pretrained network begins its first run."""
    if trainer.step or trainer.state.history.rows or not trainer.net.pretrained:
        return None
    features = trainer.net.head.in_features
    return Moments(trainer.workers, features, trainer.data.train, trainer.num_classes)


def create_jobs(trainer: Trainer, moments: Moments | None) -> Callable[[int], Jobs]:
    """What a worker does, by rank."""
    net, train, val = trainer.net, trainer.data.train, trainer.data.val
    hyperparameters = trainer.state.hyperparameters
    batches = Batches(train, net.crop_size(hyperparameters.image_size), trainer.schedule)
    log_prior = hogwild.log_prior(train.labels, trainer.num_classes)

    def jobs(rank: int) -> Jobs:
        jobs = {
            "train": hogwild.create_train_step(
                net, trainer.momentum[rank], batches, hyperparameters.momentum, log_prior
            ),
            "predict": predict.prediction_job(net, val.images, val.rows),
        }
        return jobs | ({"moments": moments.job(net.features, rank)} if moments else {})

    return jobs
