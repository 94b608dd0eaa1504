"""The trainer: a closed-form classifier first, then Hogwild while the validation loss falls.

1. One pass over the photos gives a classifier, which is validated and saved at once. (A network
   without pretrained weights is validated as it is.)
2. Hogwild, in stretches. Between two of them, no worker is training: the trainer then takes a
   snapshot or rolls back, and saves when it is time. When a validation is due, it refits the head
   to the features of the averaged weights, and validates that.

The weights with the lowest validation loss are kept, so the result is never worse than that of 1.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count, takewhile

import torch

from hogwear.cluster.peers import SINGLE_MACHINE, PeerLost, SingleMachine
from hogwear.data.pixels import Pixels
from hogwear.evaluation import predict
from hogwear.networks import parameters
from hogwear.networks.network import Network
from hogwear.networks.parameters import OptimizerState
from hogwear.system.errors import BadInput
from hogwear.system.signals import Stop
from hogwear.system.text import warn
from hogwear.system.workers import Jobs, Workers
from hogwear.training import hogwild
from hogwear.training.batches import Batches
from hogwear.training.checkpoint import SaveTimer
from hogwear.training.heads import HeadFitter
from hogwear.training.history import HOGWILD, HistoryRow, RunningMetrics
from hogwear.training.hyperparameters import MAX_ROLLBACKS
from hogwear.training.model_folder import ModelFolder
from hogwear.training.passes import TrunkOutputs
from hogwear.training.progress import TrainingBar
from hogwear.training.recovery import DivergenceDetector, Snapshot, TrainingDiverged
from hogwear.training.run_state import RunState
from hogwear.training.schedule import LiveSettings, Schedule, choose_peak_lr
from hogwear.training.stopping import StoppingRule
from hogwear.training.time_budget import Budget
from hogwear.training.validation import Validator


@dataclass(frozen=True)
class TrainingData:
    """The decoded photos of a run; in a cluster, this machine's shard of them."""

    train: Pixels
    val: Pixels


class Trainer:
    """Trains a network until its run is finished. `state` is what the run remembers."""

    schedule: Schedule
    stopping: StoppingRule
    validator: Validator
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
        saved = state.snapshot
        if saved:
            net.load_state_dict(saved.weights)
        elif state.history.best:
            net.load_state_dict(state.history.best.weights)
        elif state.initial:
            net.load_state_dict(state.initial.weights)
        else:
            net.load_pretrained()
        parameters.share_parameters(net)
        self.optimizer = OptimizerState.create(net, workers)
        if saved:
            self.optimizer.copy_(saved.optimizer)
        self.step = 0  # the next one of the run
        self.metrics = replace(saved.metrics) if saved else RunningMetrics()  # since a validation
        self.session_metrics = RunningMetrics()  # of this process
        self.detector = DivergenceDetector(len(state.class_names))

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
        state, data, cluster = self.state, self.data, self.cluster
        self.schedule = create_schedule(self)
        self.step = state.first_step(self.schedule, cluster.machines)
        self.stopping = StoppingRule(self.schedule, state, self.budget)
        heads, trunk = None, None
        if self.net.pretrained:
            is_new = not state.history.best and state.ridge is None
            heads = HeadFitter(self.net, data.train, cluster, stop, is_new)
            trunk = TrunkOutputs(self.net, data.val, "trunk of val")
        jobs = create_jobs(self, heads, trunk)
        with Workers(self.workers, jobs) as pool, TrainingBar(cluster) as bar:
            self.validator = Validator(self.net, state, data.val, heads, trunk, pool, cluster)
            if not state.snapshot and not self.begin(bar):
                return
            cluster.broadcast_parameters()  # later averages are relative to these
            self.save_timer = SaveTimer()
            while not self.is_over() and not stop.requested:
                self.train_stretch(bar, stop)
            state.finished = self.is_over()
            if state.finished or self.session_metrics.images:
                self.save()
            if state.finished:
                cluster.barrier()  # no machine leaves before rank 0 has saved

    def is_over(self) -> bool:
        return not self.metrics.images and self.stopping.is_over(self.step)

    def begin(self, bar: TrainingBar) -> bool:
        """Stage 1, validated and saved at once. False if a stop was requested before that."""
        state, rows = self.state, len(self.state.history.rows)
        is_first = not state.history.best
        if not self.validator.validate_first():
            return False
        self.optimizer.copy_(OptimizerState.create(self.net, 0))
        assert state.history.best
        state.start_loss = state.history.best.val_loss
        self.take_snapshot()
        if len(state.history.rows) > rows:
            self.save()
            bar.print(state.describe_start(is_first))
        return True

    def train_stretch(self, bar: TrainingBar, stop: Stop) -> None:
        """Stage 2: train until it is time to validate or to save, or until training diverges."""
        if not self.is_validation_due():
            self.train_steps(bar, stop)
            if not self.take_snapshot():
                self.roll_back()
                return
        if self.is_validation_due() and self.validate_average():
            bar.print(self.state.history.describe_last())
        if self.save_timer.is_due():
            with self.save_timer:
                self.save()

    def is_validation_due(self) -> bool:
        """Whether to validate before the next step."""
        return self.metrics.images > 0 and self.stopping.should_validate(self.step)

    def validate_average(self) -> bool:
        """Validate the averaged weights. False if a stop was requested before."""
        started = time.monotonic()
        with self.optimizer.averaged(self.net):
            if not self.validator.validate(summarize_since_validation(self)):
                return False
        if self.budget:
            self.budget.expect_validation(time.monotonic() - started)
        self.metrics = RunningMetrics()
        assert self.state.snapshot
        self.state.snapshot = replace(self.state.snapshot, metrics=RunningMetrics())
        return True

    def train_steps(self, bar: TrainingBar, stop: Stop) -> None:
        detector, end = self.detector, self.stopping.next_validation(self.step)
        steps = takewhile(lambda step: step < end, count(self.step))

        def should_pause() -> bool:
            return (
                detector.diverged
                or stop.requested
                or self.save_timer.is_due()
                or self.stopping.is_out_of_time
            )

        clock = time.monotonic()
        for _, result in self.validator.workers.run("train", steps, should_pause):
            self.step += 1
            detector.add(result.loss)
            started, clock = clock, time.monotonic()
            for sums in (self.metrics, self.session_metrics):
                sums.add(result, clock - started)
            self.cluster.sync_if_due(self.stopping.epochs_before(self.step))
            self.stopping.adjust(self.images_seen, self.session_metrics)
            bar.update(self.images_seen, self.stopping.total_images, self.metrics)
        if self.stopping.should_validate(self.step) and not detector.diverged:
            self.cluster.sync_parameters()
            [average] = self.cluster.all_reduce([self.optimizer.average.numpy()])
            self.optimizer.average.copy_(torch.from_numpy(average) / self.cluster.machines)
        for sums in (self.metrics, self.session_metrics):
            sums.seconds += time.monotonic() - clock

    def take_snapshot(self) -> bool:
        """Copy what has been learned. False, keeping the last snapshot, if training diverged."""
        done = self.step / self.schedule.steps_per_epoch
        snapshot = Snapshot.take(self.net, self.optimizer, self.images_seen, done, self.metrics)
        if self.detector.diverged or not snapshot.is_finite:
            return False
        self.state.snapshot = snapshot
        self.state.machines = self.cluster.machines
        self.state.images_seen = self.images_seen * self.cluster.machines
        return True

    def roll_back(self) -> None:
        """Return to the last snapshot with half the learning rate. Raises TrainingDiverged."""
        snapshot, images_seen = self.state.snapshot, self.images_seen
        assert snapshot
        loss, lr = self.detector.mean_loss, self.schedule.current_peak_lr
        snapshot.restore(self.net, self.optimizer)
        self.metrics = replace(snapshot.metrics)
        self.step = self.schedule.step_at(snapshot.images_seen)
        self.detector = DivergenceDetector(len(self.state.class_names))
        if self.state.rollbacks == MAX_ROLLBACKS:
            raise TrainingDiverged(loss, lr, self.images_seen)
        self.state.rollbacks += 1
        self.schedule.live.lr_scale = 0.5**self.state.rollbacks
        warn(
            f"training diverged (loss {loss:.1f}) after {images_seen} images: "
            f"back to {self.images_seen}, with half the learning rate, {lr / 2:g}"
        )

    def save(self, on_every_machine: bool = False) -> None:
        """Save on rank 0. After a machine was lost any of the others may be the one to go on."""
        if self.cluster.rank == 0:
            self.folder.save(self.state)
        elif on_every_machine:
            with suppress(BadInput):  # the folder may be that of rank 0, which saves there
                self.folder.claim()
                self.folder.save(self.state)


def summarize_since_validation(trainer: Trainer) -> HistoryRow:
    """What was trained since the last validation, on all machines."""
    state, schedule = trainer.state, trainer.schedule
    sums = trainer.validator.total(trainer.metrics)
    return HistoryRow(
        epoch=round(state.first_epoch + trainer.step / schedule.steps_per_epoch, 2),
        stage=HOGWILD,
        images=sums.images,
        lr=schedule.lr_at(trainer.step - 1),
        train_loss=sums.loss / sums.images,
        train_acc=sums.correct / sums.images,
        images_per_second=sums.images / sums.seconds,
    )


def create_schedule(trainer: Trainer) -> Schedule:
    """The schedule of a run, for the photos on this machine."""
    state, hyperparameters = trainer.state, trainer.state.hyperparameters
    machines = trainer.cluster.machines
    return Schedule(
        num_photos=len(trainer.data.train),
        batch_size=hyperparameters.batch_size,
        peak_lr=choose_peak_lr(trainer.net, hyperparameters, trainer.workers, machines),
        seed=hyperparameters.seed,
        first_epoch=state.first_epoch,
        live=LiveSettings.create(lr_scale=0.5**state.rollbacks),
    )


def create_jobs(
    trainer: Trainer, heads: HeadFitter | None, trunk: TrunkOutputs | None
) -> Callable[[int], Jobs]:
    """What a worker does, by rank."""
    net, photos, val = trainer.net, trainer.data.train, trainer.data.val
    hyperparameters = trainer.state.hyperparameters
    crop_size = net.crop_size(hyperparameters.training_size)
    side = crop_size * hyperparameters.image_size // hyperparameters.training_size
    mirrors = not hyperparameters.no_mirror
    batches = Batches(photos, side, crop_size, trainer.schedule, mirrors)
    log_prior = hogwild.log_prior(photos.labels, len(trainer.state.class_names))
    momentum = hyperparameters.momentum
    common = {"predict": predict.prediction_job(net, val.images, val.rows)}
    if heads and trunk:
        passes = {trunk.computing.name: trunk.computing.job, **heads.jobs}
        common = {"predict": predict.tail_job(net, trunk.__getitem__, len(val)), **passes}

    def jobs(rank: int) -> Jobs:
        own = trainer.optimizer.for_worker(rank)
        return {
            **common,
            "train": hogwild.create_train_step(net, own, batches, momentum, log_prior),
        }

    return jobs
