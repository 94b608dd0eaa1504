"""The state of a run: written and read again, resumed, continued."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CLASSES, new_state

import model
from hogwear.system.errors import BadInput
from hogwear.training import checkpoint
from hogwear.training.checkpoint import Checkpoint
from hogwear.training.history import Best, EpochRow, History, RunningMetrics
from hogwear.training.recovery import Snapshot
from hogwear.training.run_state import RunState
from hogwear.training.schedule import LiveSettings, Schedule

ROW = EpochRow(1, 120, 0.001, 0.25, 0.9, 0.5, 0.75, 98.76)


@pytest.fixture
def state() -> RunState:
    """In the second epoch of two machines."""
    net = model.build("tinyvgg", 5, 32)
    snapshot = Snapshot.take(net, torch.ones(2, 6215), 150, 120, RunningMetrics(30, 9.5, 20, 0.5))
    history = History([ROW], Best(1, 32, 0.5, 0.75, 1.5, 0.8, snapshot.weights))
    return replace(
        new_state(), machines=2, job_id="night", first_epoch=0, history=history,
        total_images=300, rollbacks=1, snapshot=snapshot,
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
    assert loaded.snapshot and loaded.snapshot.metrics == RunningMetrics(30, 9.5, 20, 0.5)
    assert isinstance(loaded.trained_on, np.ndarray) and loaded.photos == state.photos


@pytest.mark.parametrize("finished", [False, True])
def test_what_is_saved_is_a_valid_checkpoint(state: RunState, finished: bool) -> None:
    state.finished = finished
    saved = {"format": checkpoint.FORMAT, **state.state_dict()}
    model.validate_checkpoint(Checkpoint(Path("checkpoint.pt"), saved, ""))
    assert (saved["momentum"] is None) == finished


def test_the_images_of_all_machines_count(state: RunState) -> None:
    assert state.images_seen == state.state_dict()["images_seen"] == 300
    assert new_state().images_seen == 0


def test_an_interrupted_run_resumes_with_everything_but_its_photos(state: RunState) -> None:
    resumed = replace(new_state(), trained_on=np.arange(9)).resume(state)
    assert resumed.trained_on.tolist() == list(range(9))
    assert resumed.snapshot is state.snapshot and resumed.history is state.history
    assert (resumed.machines, resumed.rollbacks, resumed.total_images) == (2, 1, 300)


def test_a_finished_run_leaves_its_history_only(state: RunState) -> None:
    state.finished = True
    resumed = new_state().resume(state)
    assert resumed.history is state.history and resumed.first_epoch == 1 and not resumed.finished
    assert resumed.snapshot is None and resumed.rollbacks == 0 and resumed.total_images is None


def test_a_finished_run_is_continued_at_the_size_of_its_best_weights(state: RunState) -> None:
    assert state.history.best
    state.history.best = replace(state.history.best, image_size=96)
    assert state.next_hyperparameters.image_size == 32
    state.finished = True
    assert state.next_hyperparameters.image_size == 96


# --- where training goes on


def schedule_of(num_photos: int, total_images: int = 240) -> Schedule:
    return Schedule(num_photos, 16, 0.01, 0, 0, LiveSettings.create(total_images))


def test_a_new_run_starts_with_the_first_step() -> None:
    assert new_state().first_step(schedule_of(120), machines=1) == 0


def test_one_machine_goes_on_with_the_next_batch(state: RunState) -> None:
    state.machines = 1
    assert state.first_step(schedule_of(120), machines=1) == 8 + 1, "150 images: 120, 16 and 14"


@pytest.mark.parametrize(("machines", "num_photos"), [(1, 120), (2, 60), (3, 40)])
def test_another_number_of_machines_goes_on_in_the_same_epoch(
    state: RunState, machines: int, num_photos: int
) -> None:
    schedule = schedule_of(num_photos, total_images=3 * num_photos)
    step = state.first_step(schedule, machines)
    assert step == int(1.25 * schedule.steps_per_epoch)


def test_a_run_with_no_step_left_is_refused_unless_an_epoch_is_to_be_closed(
    state: RunState,
) -> None:
    state.machines = 1
    assert state.snapshot
    assert state.first_step(schedule_of(30, total_images=60), 1) >= 4, "validated, and finished"
    state.snapshot = replace(state.snapshot, metrics=RunningMetrics())
    with pytest.raises(BadInput, match=r"has seen 150 images.*would end after 60: use --fresh"):
        state.first_step(schedule_of(30, total_images=60), 1)
