"""The trainer: stages, snapshots and rollbacks, and checkpoints whatever happens."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CLASSES, ForkedCall, flat, new_state, pixels_of, saved

import model
from hogwear.cluster.peers import PeerLost, SingleMachine
from hogwear.evaluation import predict
from hogwear.system.arrays import Float32Array
from hogwear.system.signals import Stop
from hogwear.training import trainer
from hogwear.training.checkpoint import FORMAT, Checkpoint
from hogwear.training.history import RunningMetrics
from hogwear.training.hogwild import StepResult
from hogwear.training.model_folder import ModelFolder
from hogwear.training.recovery import TrainingDiverged
from hogwear.training.run_state import RunState
from hogwear.training.trainer import Trainer, TrainingData, create_schedule

SIZE, PHOTOS = 32, 40


@dataclass
class Project:
    """A model folder, and five classes that are easy to tell apart."""

    folder: Path

    def trainer(self, state: RunState | None = None, seed: int = 0) -> Trainer:
        torch.manual_seed(seed)
        labels = np.arange(PHOTOS) % 5
        random = np.random.default_rng(0)
        images = random.integers(0, 20, (PHOTOS, SIZE, SIZE, 3)) + 40 * labels[:, None, None, None]
        photos = pixels_of(images.astype(np.uint8), labels)
        state = state or new_state(epochs=3, batch_size=8)
        net = model.build("tinyvgg", 5, SIZE)
        return Trainer(net, state, TrainingData(photos, photos), 1, ModelFolder(self.folder))

    def saved(self) -> RunState:
        return RunState.load_state_dict(saved(self.folder))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


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


def test_a_run_learns_and_is_saved_when_it_is_finished(
    project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    elsewhere(lambda: project.trainer().fit(Stop()))
    state = project.saved()
    assert state.finished and state.images_seen == 3 * PHOTOS
    assert [row.images for row in state.history.rows] == [PHOTOS] * 3
    assert state.history.rows[-1].train_loss < state.history.rows[0].train_loss
    printed = capfd.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed] == [f"epoch {n}/3" for n in (1, 2, 3)]


def test_a_run_that_is_stopped_and_resumed_equals_one_that_was_not(
    project: Project, tmp_path: Path
) -> None:
    whole = Project(tmp_path / "whole")
    whole.folder.mkdir()
    elsewhere(lambda: whole.trainer().fit(Stop()))

    def stop_after(steps: int, state: RunState | None = None) -> None:
        trainer = project.trainer(state, seed=steps)
        if state is None:
            trainer = project.trainer()
        trainer.fit(StopAfter(trainer, steps))

    elsewhere(lambda: stop_after(3))
    assert 3 * 8 <= project.saved().images_seen < 3 * PHOTOS and not project.saved().finished
    elsewhere(lambda: stop_after(9, project.saved()))
    elsewhere(lambda: stop_after(99, project.saved()))
    one, other = project.saved(), whole.saved()
    assert one.snapshot and other.snapshot and one.history.best and other.history.best
    assert torch.equal(flat(one.snapshot.weights), flat(other.snapshot.weights))
    assert torch.equal(flat(one.history.best.weights), flat(other.history.best.weights))


def test_diverged_training_goes_back_to_the_last_snapshot_with_half_the_rate(
    project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    def diverge() -> tuple[float, float, int, int]:
        trainer = project.trainer()
        trainer.schedule = create_schedule(trainer)
        trainer.step = 5
        assert trainer.take_snapshot()
        lr = trainer.schedule.current_peak_lr
        trainer.step, trainer.epoch_metrics = 9, RunningMetrics(images=32)
        trainer.detector.add(float("nan"))
        assert not trainer.take_snapshot()
        with torch.no_grad():
            trainer.net.head.weight.fill_(float("nan"))
        trainer.roll_back()
        assert trainer.net.head.weight.isfinite().all()
        return lr, trainer.schedule.current_peak_lr, trainer.step, trainer.epoch_metrics.images

    before, after, step, images = elsewhere(diverge)
    assert after == before / 2 and (step, images) == (5, 0)
    warning = capfd.readouterr().err
    assert warning.startswith("Warning: training diverged (loss nan) after 72 images: back to 40,")


def test_the_third_divergence_ends_the_run_with_the_last_good_weights_saved(
    project: Project,
) -> None:
    def diverge() -> str:
        state = new_state(epochs=3, batch_size=8, lr=9.9)
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
    assert PHOTOS < state.images_seen < 2 * PHOTOS and len(state.history.rows) == 1


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


# --- the end of an epoch


def closed(project: Project, monkeypatch: pytest.MonkeyPatch, logits: Float32Array) -> Trainer:
    """A trainer that has validated with these logits."""
    trainer = project.trainer()
    trainer.schedule = create_schedule(trainer)
    trainer.step = 5
    trainer.epoch_metrics = RunningMetrics(images=PHOTOS, loss=40.0, correct=20, seconds=0.5)
    assert trainer.take_snapshot()
    monkeypatch.setattr(predict, "collect_logits", lambda *arguments: logits)
    trainer.close_epoch(None)  # type: ignore[arg-type]
    return trainer


def test_an_epoch_becomes_a_row_and_the_next_one_counts_from_zero(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = np.eye(5, dtype=np.float32)[np.arange(PHOTOS) % 5]
    trainer = closed(project, monkeypatch, logits)
    [row] = trainer.state.history.rows
    assert (row.epoch, row.images, row.train_loss, row.train_acc) == (1, PHOTOS, 1.0, 0.5)
    assert (row.val_acc, row.images_per_second) == (1.0, 80.0)
    best = trainer.state.history.best
    assert best and best.val_acc == 1.0 and best.image_size == SIZE
    assert trainer.epoch_metrics == trainer.state.snapshot.metrics == RunningMetrics()  # type: ignore[union-attr]


def test_the_best_weights_are_the_most_accurate_and_of_equal_ones_the_later(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = np.eye(5, dtype=np.float32)[np.arange(PHOTOS) % 5]
    trainer = closed(project, monkeypatch, logits)
    kept = []
    for later in (logits[::-1], logits):
        monkeypatch.setattr(predict, "collect_logits", lambda *arguments, later=later: later)
        trainer.epoch_metrics = RunningMetrics(images=PHOTOS, seconds=0.5)
        assert trainer.take_snapshot()
        trainer.close_epoch(None)  # type: ignore[arg-type]
        assert trainer.state.history.best
        kept.append(trainer.state.history.best.epoch)
    assert kept == [1, 3] and [row.epoch for row in trainer.state.history.rows] == [1, 2, 3]


def test_a_resumed_epoch_adds_to_the_metrics_of_its_snapshot(project: Project) -> None:
    before = project.trainer()
    before.schedule = create_schedule(before)
    before.epoch_metrics = RunningMetrics(images=16, loss=8.0, correct=4, seconds=2.0)
    assert before.take_snapshot()
    resumed = project.trainer(before.state)
    resumed.epoch_metrics.add(StepResult(images=8, loss=1.0, correct=2), seconds=0.5)
    assert resumed.epoch_metrics == RunningMetrics(24, 16.0, 6, 2.5)
    assert resumed.session_metrics == RunningMetrics()
    assert before.state.snapshot and before.state.snapshot.metrics.images == 16


def test_an_epoch_without_one_finite_output_leaves_a_checkpoint_that_can_be_read(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = np.full((PHOTOS, 5), np.nan, np.float32)
    logits[1::3], logits[2::3] = np.inf, -np.inf
    trainer = closed(project, monkeypatch, logits)
    state = {"format": FORMAT, **trainer.state.state_dict()}
    model.validate_checkpoint(Checkpoint(Path("checkpoint.pt"), state, ""))
    trainer.momentum[0, -1] = np.nan
    assert not trainer.take_snapshot(), "what cannot be loaded is not saved"


def test_only_a_pretrained_network_starts_with_the_closed_form(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    tinyvgg = project.trainer()
    assert trainer.create_moments(tinyvgg) is None
    monkeypatch.setattr(tinyvgg.net, "pretrained", True)
    moments = trainer.create_moments(tinyvgg)
    assert moments and len(moments.counts[0]) == len(CLASSES)
