"""The trainer: stages, snapshots and rollbacks, and checkpoints whatever happens."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ForkedCall, flat, new_state, pixels_of, same_run, saved

import model
from hogwear.cluster.peers import PeerLost, SingleMachine
from hogwear.system.arrays import Float32Array, Int64Array
from hogwear.system.signals import Stop
from hogwear.training import stopping
from hogwear.training.history import RunningMetrics
from hogwear.training.hogwild import StepResult
from hogwear.training.model_folder import ModelFolder
from hogwear.training.recovery import Snapshot, TrainingDiverged
from hogwear.training.run_state import RunState
from hogwear.training.trainer import Trainer, TrainingData, create_schedule
from hogwear.training.validation import Validator

SIZE, PHOTOS = 32, 40  # five batches of 8 in an epoch


@pytest.fixture(autouse=True)
def validated_after_one_two_and_four_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "FIRST_IMAGES", new_state().photos.train.count)
    monkeypatch.setattr(stopping, "GROWTH", 2)


@dataclass
class Project:
    """A model folder and a cache, and five classes that are easy to tell apart."""

    folder: Path
    arch: str = "tinyvgg"

    def state(self, **hyperparameters: Any) -> RunState:
        return new_state(self.arch, **{"epochs": 4, "batch_size": 8, **hyperparameters})

    def trainer(self, state: RunState | None = None, photos: int = PHOTOS) -> Trainer:
        torch.manual_seed(0)
        labels = np.arange(photos) % 5
        random = np.random.default_rng(0)
        images = random.integers(0, 60, (photos, SIZE, SIZE, 3)) + 20 * labels[:, None, None, None]
        self.folder.mkdir(exist_ok=True)
        cached = pixels_of(images.astype(np.uint8), labels, self.folder)
        data = TrainingData(train=cached, val=cached)
        net = model.build(self.arch, 5, SIZE)
        return Trainer(net, state or self.state(), data, 1, ModelFolder(self.folder))

    def saved(self) -> RunState:
        return RunState.load_state_dict(saved(self.folder))

    def fit(self, state: RunState | None = None, steps: int = 10**6) -> RunState:
        """What is saved of a run that is stopped after some steps."""

        def fit() -> None:
            trainer = self.trainer(state)
            trainer.fit(StopAfter(trainer, steps))

        elsewhere(fit)
        return self.saved()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def pretrained(tmp_path: Path) -> Project:
    return Project(tmp_path, "efficientnet_lite0")


class StopAfter(Stop):
    """A stop that is requested after a number of steps."""

    def __init__(self, trainer: Trainer, steps: int) -> None:
        super().__init__()
        self.trainer, self.steps = trainer, steps

    @property
    def requested(self) -> bool:
        return self.trainer.step >= self.steps


def elsewhere(function: Callable[[], Any]) -> Any:
    """Training forks workers, which a process that has computed gradients cannot."""
    return ForkedCall(function).result()


def stages(state: RunState) -> list[tuple[float, str]]:
    return [(row.epoch, row.stage) for row in state.history.rows]


# --- the stages of a run


def test_a_network_without_pretrained_weights_learns_from_its_initial_ones(
    project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    state = project.fit()
    assert state.finished and state.images_seen == 4 * PHOTOS
    assert stages(state) == [(0, "initial"), (1, "hogwild"), (2, "hogwild"), (4, "hogwild")]
    assert [row.images for row in state.history.rows] == [0, PHOTOS, PHOTOS, 2 * PHOTOS]
    assert state.history.rows[-1].val_loss < state.history.rows[0].val_loss
    assert state.forecast is None and state.history.best
    printed = capfd.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed] == [
        "initial", "epoch 1", "epoch 2", "epoch 4",
    ]  # fmt: skip


def test_a_pretrained_network_begins_with_the_closed_form(pretrained: Project) -> None:
    state = pretrained.fit()
    assert stages(state)[0] == (0, "closed form") and len(stages(state)) == 4
    assert state.forecast and state.forecast.photos == PHOTOS and state.ridge
    assert state.start_loss == state.history.rows[0].val_loss


@pytest.mark.parametrize("arch", ["tinyvgg", "efficientnet_lite0"])
def test_a_run_of_no_epochs_is_its_first_stage(tmp_path: Path, arch: str) -> None:
    project = Project(tmp_path, arch)
    state = project.fit(project.state(epochs=0))
    assert state.finished and state.images_seen == 0 and len(state.history.rows) == 1
    assert model.load(project.folder, torch.float32).epoch == 0


@pytest.mark.parametrize("arch", ["tinyvgg", "efficientnet_lite0"])
def test_the_first_stage_is_saved_before_the_first_step(tmp_path: Path, arch: str) -> None:
    project = Project(tmp_path, arch)

    def fail_in_the_first_step() -> None:
        trainer = project.trainer()
        trainer.detector.__class__.add = fail  # type: ignore[method-assign, assignment]
        with pytest.raises(SystemError):
            trainer.fit(Stop())

    def fail(*arguments: object) -> None:
        os._exit(9)  # as by SIGKILL: nothing is saved on the way

    with pytest.raises(EOFError):
        elsewhere(fail_in_the_first_step)
    state = project.saved()
    assert not state.finished and state.snapshot and state.snapshot.images_seen == 0
    loaded = model.load(project.folder, torch.float32)
    assert loaded.epoch == 0 and loaded.val_acc == state.history.rows[0].val_acc


def test_a_stop_in_the_first_stage_leaves_no_checkpoint(pretrained: Project) -> None:
    def stop() -> bool:
        trainer, stop = pretrained.trainer(), Stop()
        stop.signal = 15
        trainer.fit(stop)
        return trainer.state.finished

    assert not elsewhere(stop)
    assert not list(pretrained.folder.glob("checkpoint*"))


@pytest.mark.parametrize("arch", ["tinyvgg", "efficientnet_lite0"])
def test_the_result_is_never_worse_than_the_first_stage(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_right, rows = Validator.predict, list[int]()

    def predict_worse_and_worse(validator: Validator) -> tuple[Float32Array, Int64Array]:
        _, labels = predict_right(validator)
        rows.append(len(rows))
        right = np.eye(5, dtype=np.float32)[labels]
        right[: 3 * len(rows)] = np.roll(right[: 3 * len(rows)], 1, axis=1)
        return 4 * right, labels

    monkeypatch.setattr(Validator, "predict", predict_worse_and_worse)
    state = Project(tmp_path, arch).fit()
    losses = [row.val_loss for row in state.history.rows]
    assert losses == sorted(losses) and len(set(losses)) == 4
    assert state.history.best and state.history.best.epoch == 0
    assert state.history.best.val_loss == losses[0]


# --- interrupted


@pytest.mark.parametrize(
    "arch", ["tinyvgg", pytest.param("efficientnet_lite0", marks=pytest.mark.long)]
)
def test_a_run_that_is_stopped_again_and_again_equals_one_that_was_not(
    arch: str, tmp_path: Path
) -> None:
    whole, parts = Project(tmp_path / "whole", arch), Project(tmp_path / "parts", arch)
    whole.fit()
    state, processes = parts.fit(steps=1), 1
    while not state.finished:
        assert processes < 20, "each of them should do a step at least"
        state = parts.fit(state, parts.trainer(state).state.images_seen // 8 + 1)
        processes += 1
    assert processes > 5
    assert same_run(saved(whole.folder), saved(parts.folder))


def test_weights_momentum_and_average_are_continued_to_the_bit(tmp_path: Path) -> None:
    once, twice = Project(tmp_path / "once"), Project(tmp_path / "twice")
    twice.fit(steps=7)
    one, other = once.fit(steps=13).snapshot, twice.fit(twice.saved(), steps=13).snapshot
    assert one and other and one.images_seen == other.images_seen < 4 * PHOTOS
    assert torch.equal(flat(one.weights), flat(other.weights))
    assert torch.equal(one.optimizer.momentum, other.optimizer.momentum)
    assert torch.equal(one.optimizer.average, other.optimizer.average)
    assert not torch.equal(one.optimizer.average, flat_parameters(one))


def flat_parameters(snapshot: Snapshot) -> torch.Tensor:
    return torch.cat(
        [w.flatten() for name, w in snapshot.weights.items() if not name.startswith("training_")]
    )


@pytest.mark.parametrize("steps", [7, 10], ids=["in an epoch", "before a validation"])
def test_a_resumed_run_that_has_seen_more_images_than_it_should_is_finished(
    project: Project, steps: int
) -> None:
    """Most of its photos were deleted."""
    state = project.fit(steps=steps)
    seen = state.images_seen
    elsewhere(lambda: project.trainer(state, photos=10).fit(Stop()))
    assert project.saved().finished and project.saved().images_seen >= seen
    images = sum(row.images for row in project.saved().history.rows)
    assert images == seen, "what was trained is validated"


# --- one run after another


def next_state(project: Project, **hyperparameters: Any) -> RunState:
    return project.state(**hyperparameters).resume(project.saved())


@pytest.mark.parametrize("arch", ["tinyvgg", "efficientnet_lite0"])
def test_a_second_run_goes_on_from_the_best_weights(tmp_path: Path, arch: str) -> None:
    project = Project(tmp_path, arch)
    first = project.fit()
    best = first.history.best
    assert best
    trainer = project.trainer(next_state(project))
    assert torch.equal(flat(trainer.net.state_dict()), flat(best.weights))
    second = project.fit(next_state(project, epochs=1))
    assert second.history.rows[:4] == first.history.rows
    assert stages(second)[4:] == [(5, "hogwild")] and second.start_loss == best.val_loss


def test_a_second_run_with_other_photos_first_solves_the_head_again(pretrained: Project) -> None:
    first = pretrained.fit(pretrained.state(epochs=1))
    state = next_state(pretrained, epochs=1)
    state.train_photos_changed = True
    second = pretrained.fit(state)
    assert stages(second)[2:] == [(1, "closed form"), (2, "hogwild")]
    assert second.ridge == first.ridge


def test_a_stop_before_the_head_is_solved_again_leaves_the_checkpoint(pretrained: Project) -> None:
    pretrained.fit(pretrained.state(epochs=1))
    before = (pretrained.folder / "checkpoint.pt").read_bytes()
    state = next_state(pretrained, epochs=1)
    state.train_photos_changed = True
    pretrained.fit(state, steps=0)
    assert (pretrained.folder / "checkpoint.pt").read_bytes() == before


# --- what goes wrong


def test_diverged_training_goes_back_to_the_last_snapshot_with_half_the_rate(
    project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    def diverge() -> tuple[float, float, int, int]:
        trainer = project.trainer()
        trainer.schedule = create_schedule(trainer)
        trainer.step = 5
        assert trainer.take_snapshot()
        lr, average = trainer.schedule.current_peak_lr, trainer.optimizer.average.clone()
        trainer.step, trainer.metrics = 9, RunningMetrics(images=32)
        trainer.detector.add(float("nan"))
        assert not trainer.take_snapshot()
        with torch.no_grad():
            trainer.net.head.weight.fill_(float("nan"))
        trainer.optimizer.average.fill_(float("nan"))
        trainer.roll_back()
        assert trainer.net.head.weight.isfinite().all()
        assert torch.equal(trainer.optimizer.average, average)
        return lr, trainer.schedule.current_peak_lr, trainer.step, trainer.metrics.images

    before, after, step, images = elsewhere(diverge)
    assert after == before / 2 and (step, images) == (5, 0)
    warning = capfd.readouterr().err
    assert warning.startswith("Warning: training diverged (loss nan) after 72 images: back to 40,")


def test_the_third_divergence_ends_the_run_with_the_last_good_weights_saved(
    project: Project,
) -> None:
    def diverge() -> str:
        state = project.state(lr=9.9)
        state.rollbacks = 2
        trainer = project.trainer(state)
        add = trainer.detector.__class__.add
        trainer.detector.__class__.add = lambda self, loss: add(self, 1e9)  # type: ignore[method-assign]
        try:
            trainer.fit(Stop())
        except TrainingDiverged as error:
            return str(error)
        return ""

    assert "training diverged 3 times" in elsewhere(diverge)
    snapshot = project.saved().snapshot
    assert snapshot and snapshot.is_finite and snapshot.images_seen == 0


@pytest.mark.parametrize("error", [OSError("no space"), MemoryError(), PeerLost("gone")])
def test_whatever_ends_training_what_was_learned_is_saved(
    project: Project, error: Exception
) -> None:
    def fail_in_the_second_epoch() -> bool:
        trainer = project.trainer()

        class Failing(SingleMachine):
            def sync_if_due(self, epochs: float) -> None:
                if epochs > 1.3:
                    raise error

        try:
            trainer.fit(Stop(), Failing())
        except type(error):
            return True
        return False

    assert elsewhere(fail_in_the_second_epoch)
    state = project.saved()
    assert PHOTOS < state.images_seen < 2 * PHOTOS and len(state.history.rows) == 2


@pytest.mark.parametrize(("error", "is_saved"), [(PeerLost("gone"), True), (OSError("x"), False)])
def test_another_machine_than_rank_0_saves_only_when_a_machine_is_lost(
    project: Project, error: Exception, is_saved: bool
) -> None:
    def fail() -> None:
        class Second(SingleMachine):
            rank, machines = 1, 2

            def sync_if_due(self, epochs: float) -> None:
                if epochs > 0.5:
                    raise error

        with pytest.raises(type(error)):
            project.trainer().fit(Stop(), Second())

    elsewhere(fail)
    assert (project.folder / "checkpoint.pt").exists() == is_saved


def test_a_resumed_stretch_adds_to_the_metrics_of_its_snapshot(project: Project) -> None:
    before = project.trainer()
    before.schedule = create_schedule(before)
    before.metrics = RunningMetrics(images=16, loss=8.0, correct=4, seconds=2.0)
    assert before.take_snapshot()
    resumed = project.trainer(before.state)
    resumed.metrics.add(StepResult(images=8, loss=1.0, correct=2), seconds=0.5)
    assert resumed.metrics == RunningMetrics(24, 16.0, 6, 2.5)
    assert resumed.session_metrics == RunningMetrics()
    assert before.state.snapshot and before.state.snapshot.metrics.images == 16


def test_what_cannot_be_loaded_is_not_saved(project: Project) -> None:
    trainer = project.trainer()
    trainer.schedule = create_schedule(trainer)
    assert trainer.take_snapshot()
    trainer.optimizer.average[-1] = np.nan
    assert not trainer.take_snapshot()
