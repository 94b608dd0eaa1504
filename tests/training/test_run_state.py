"""The state of a run: written and read again, resumed, continued."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CLASSES, hogwild_row, new_state, validated_state

import model
from hogwear.training import checkpoint
from hogwear.training.checkpoint import Checkpoint
from hogwear.training.discriminant import Forecast
from hogwear.training.history import CLOSED_FORM, HistoryRow, RunningMetrics
from hogwear.training.photo_sets import PhotoSet
from hogwear.training.run_state import RunState
from hogwear.training.schedule import LiveSettings, Schedule

ROW = hogwild_row(1)
FIRST = HistoryRow(0.0, CLOSED_FORM, val_loss=0.9, val_acc=0.5)


@pytest.fixture
def state() -> RunState:
    """In the second epoch of two machines."""
    state = validated_state(ROW, images_seen=150)
    assert state.snapshot
    metrics, momentum = RunningMetrics(30, 9.5, 20, 0.5), torch.ones(2, 6215)
    optimizer = replace(state.snapshot.optimizer, momentum=momentum)
    return replace(
        state, machines=2, job_id="night", images_seen=300, total_images=300, rollbacks=1,
        start_loss=0.9, ridge=0.4, forecast=Forecast(0.7, 0.8, 120),
        snapshot=replace(state.snapshot, metrics=metrics, optimizer=optimizer),
    )  # fmt: skip


def plain(state: RunState) -> dict[str, Any]:
    """For comparisons: tensors as lists."""

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: convert(inner) for key, inner in value.items()}
        return value.tolist() if isinstance(value, torch.Tensor) else value

    return {key: convert(value) for key, value in state.state_dict().items()}


def test_what_was_saved_is_loaded(state: RunState, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state.state_dict())
    loaded = RunState.load_state_dict(checkpoint.load(tmp_path).state)
    assert plain(loaded) == plain(state)
    assert loaded.class_names == CLASSES and loaded.hyperparameters == state.hyperparameters
    assert loaded.history.rows == [ROW] and loaded.history.best
    assert loaded.forecast == state.forecast and (loaded.start_loss, loaded.ridge) == (0.9, 0.4)
    assert loaded.snapshot and (loaded.snapshot.optimizer.momentum == 1).all()
    assert loaded.snapshot and loaded.snapshot.metrics == RunningMetrics(30, 9.5, 20, 0.5)
    assert isinstance(loaded.trained_on, np.ndarray) and loaded.photos == state.photos


@pytest.mark.parametrize("finished", [False, True])
def test_what_is_saved_is_a_valid_checkpoint(state: RunState, finished: bool) -> None:
    state.finished = finished
    saved = {**checkpoint.HEADER, **state.state_dict()}
    model.validate_checkpoint(Checkpoint(Path("checkpoint.pt"), saved, ""))
    assert (saved["snapshot"] is None) == finished, "a finished run has its best weights only"


def test_the_images_of_all_machines_count(state: RunState) -> None:
    assert state.images_seen == state.state_dict()["images_seen"] == 300
    assert new_state().images_seen == 0


def test_an_interrupted_run_resumes_with_everything_but_its_photos(state: RunState) -> None:
    resumed = replace(new_state(), trained_on=np.arange(9)).resume(state)
    assert resumed.trained_on.tolist() == list(range(9))
    assert resumed.snapshot is state.snapshot and resumed.history is state.history
    assert (resumed.machines, resumed.rollbacks, resumed.total_images) == (2, 1, 300)
    assert (resumed.start_loss, resumed.ridge) == (0.9, 0.4) and resumed.forecast == state.forecast


def test_a_finished_run_leaves_its_history_and_its_forecast_only(state: RunState) -> None:
    state.finished = True
    resumed = new_state().resume(state)
    assert resumed.history is state.history and resumed.first_epoch == 1 and not resumed.finished
    assert (resumed.forecast, resumed.ridge) == (state.forecast, 0.4)
    assert resumed.start_loss is None
    assert resumed.snapshot is None and resumed.rollbacks == 0 and resumed.total_images is None


@pytest.mark.parametrize(("epochs", "first_epoch"), [(0.0, 0), (0.5, 1), (2.0, 2), (2.25, 3)])
def test_the_next_run_begins_with_a_whole_epoch(
    state: RunState, epochs: float, first_epoch: int
) -> None:
    state.finished, state.history.rows = True, [hogwild_row(epochs)]
    assert new_state().resume(state).first_epoch == first_epoch


def test_the_next_run_knows_whether_its_training_photos_are_others(state: RunState) -> None:
    state.finished, run, other = True, new_state(), PhotoSet(5, "1" * 64)
    assert not run.resume(state).train_photos_changed
    assert (
        not replace(run, photos=replace(run.photos, val=other)).resume(state).train_photos_changed
    )
    assert replace(run, photos=replace(run.photos, train=other)).resume(state).train_photos_changed


def test_the_losses_of_a_run_are_those_of_its_averages_and_of_its_start(state: RunState) -> None:
    rows = [FIRST, hogwild_row(1.0, 0.8), hogwild_row(2.0, 0.7)]
    solved_again = replace(FIRST, epoch=2.0, val_loss=0.65)
    further = [solved_again, hogwild_row(2.5, 0.6), hogwild_row(3.0, 0.5)]
    state.history.rows = rows + further
    assert replace(state, first_epoch=2, start_loss=0.65).losses() == [0.65, 0.6, 0.5]
    state.history.rows = rows
    assert state.losses() == [0.9, 0.8, 0.7]


def test_a_finished_run_is_continued_at_the_size_of_its_best_weights(state: RunState) -> None:
    assert state.history.best
    state.history.best = replace(state.history.best, image_size=96)
    assert state.next_hyperparameters.image_size == 32
    state.finished = True
    assert state.next_hyperparameters.image_size == 96


# --- where training goes on


def schedule_of(num_photos: int) -> Schedule:
    return Schedule(num_photos, 16, 0.01, 0, 0, LiveSettings.create())


def test_a_new_run_starts_with_the_first_step() -> None:
    assert new_state().first_step(schedule_of(120), machines=1) == 0


def test_one_machine_goes_on_with_the_next_batch(state: RunState) -> None:
    state.machines = 1
    assert state.first_step(schedule_of(120), machines=1) == 8 + 1, "150 images: 120, 16 and 14"


@pytest.mark.parametrize(("machines", "num_photos"), [(1, 120), (2, 60), (3, 40)])
def test_another_number_of_machines_goes_on_in_the_same_epoch(
    state: RunState, machines: int, num_photos: int
) -> None:
    schedule = schedule_of(num_photos)
    assert state.first_step(schedule, machines) == int(1.25 * schedule.steps_per_epoch)
