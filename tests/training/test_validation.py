"""What a validation measures, records and keeps."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers import new_state, pixels_of

import model
from hogwear.cluster.peers import SINGLE_MACHINE, SingleMachine
from hogwear.evaluation import metrics, predict
from hogwear.networks.network import Network
from hogwear.networks.novelty import NoveltyWeights
from hogwear.system.arrays import AnyArray, Float32Array
from hogwear.training.checkpoint import HEADER, Checkpoint
from hogwear.training.discriminant import Classifier, Forecast
from hogwear.training.heads import HeadFitter
from hogwear.training.history import HOGWILD, HistoryRow, RunningMetrics
from hogwear.training.run_state import InitialNetwork
from hogwear.training.validation import Validator

PHOTOS = 40
LABELS = np.arange(PHOTOS) % 5
RIGHT = np.eye(5, dtype=np.float32)[LABELS]
FORECAST = Forecast(0.9, 0.3, PHOTOS)
ROW = HistoryRow(1.0, HOGWILD, 120, 0.01, 0.7, 0.6, images_per_second=99.0)


@dataclass
class Heads:
    """Notes what is to be solved instead of solving it, unless a stop is requested."""

    net: Network
    stops: bool = False
    solved: list[float | None] = field(default_factory=list)  # ridges
    both: int = 0  # how often the training head was solved as well

    def fit_heads(
        self, workers: object, ridge: float | None = None
    ) -> tuple[Classifier, float] | None:
        self.solved.append(ridge)
        self.both += 1
        with torch.no_grad():
            self.net.head.weight.fill_(1.0)
        weight = self.net.head.weight.detach().numpy()
        forecast = None if ridge else FORECAST
        novelty = NoveltyWeights(weight[:, 0], weight[:, : len(weight)])
        found = Classifier(weight, weight[:, 0], novelty, ridge or 0.4, forecast)
        return None if self.stops else (found, 250.0)

    def measure_novelty(self, ridge: float) -> float:
        return 0.9

    def refit_head(self, workers: object, ridge: float) -> bool:
        self.solved.append(ridge)
        with torch.no_grad():
            self.net.head.weight.fill_(1.0)
            self.net.head.bias.fill_(1.0)
        return not self.stops


@dataclass
class Validation:
    """A validator whose network predicts what a test says."""

    patch: pytest.MonkeyPatch

    def validator(
        self,
        logits: Float32Array = RIGHT,
        heads: bool = False,
        stops: bool = False,
        cluster: SingleMachine = SINGLE_MACHINE,
    ) -> Validator:
        self.patch.setattr(predict, "collect_logits", lambda *arguments: logits.copy())
        torch.manual_seed(0)
        net = model.build("tinyvgg", 5, 32)
        val = pixels_of(np.zeros((PHOTOS, 32, 32, 3), np.uint8), LABELS)
        solver = cast(HeadFitter, Heads(net, stops)) if heads else None
        return Validator(net, new_state(), val, solver, None, cast(Any, None), cluster)


@pytest.fixture
def validation(monkeypatch: pytest.MonkeyPatch) -> Validation:
    return Validation(monkeypatch)


def solved(validator: Validator) -> list[float | None]:
    return cast(Heads, validator.heads).solved


# --- before the first step


def test_a_network_without_heads_to_solve_is_validated_as_it_is(validation: Validation) -> None:
    validator = validation.validator()
    assert validator.validate_first()
    [row] = validator.state.history.rows
    assert (row.epoch, row.stage, row.images, row.train_loss, row.val_acc) == (
        0, "initial", 0, None, 1.0,
    )  # fmt: skip


def test_the_classifier_in_closed_form_is_validated_first_and_its_forecast_kept(
    validation: Validation,
) -> None:
    validator = validation.validator(heads=True)
    assert validator.validate_first() and solved(validator) == [None]
    [row], state = validator.state.history.rows, validator.state
    assert (row.epoch, row.stage, row.images_per_second) == (0, "closed form", 250.0)
    assert (state.forecast, state.ridge) == (FORECAST, 0.4)


@pytest.mark.parametrize("has_changed", [False, True])
def test_a_later_run_solves_the_head_again_only_for_other_photos(
    validation: Validation, has_changed: bool
) -> None:
    validator = validation.validator(heads=True)
    assert validator.validate_first()
    validator.state.train_photos_changed = has_changed
    assert validator.validate_first()
    assert solved(validator) == ([None, 0.4] if has_changed else [None])
    assert len(validator.state.history.rows) == 1 + has_changed


@pytest.mark.parametrize("ridge", [None, 0.7])
def test_where_the_classes_have_changed_both_heads_are_solved_and_the_best_is_replaced(
    validation: Validation, ridge: float | None
) -> None:
    """By the ridge of the first head, and calibrated on val, if the tail has been trained."""
    logits = RIGHT.copy()
    logits[:10] = np.roll(logits[:10], 1, axis=1)
    validator = validation.validator(logits, heads=True)
    state = validator.state
    state.history.rows, state.ridge = [replace(ROW, epoch=1.5, val_loss=1e-9)], ridge
    state.initial = InitialNetwork({}, 1.5)
    assert validator.validate_first() and solved(validator) == [ridge]
    assert cast(Heads, validator.heads).both == 1
    row, best = state.history.rows[-1], state.history.best
    assert (row.epoch, row.stage, row.val_acc) == (1.5, "classes changed", 0.75)
    assert best and best.val_loss == row.val_loss > 1e-9
    assert (state.ridge, state.forecast) == ((0.7, None) if ridge else (0.4, FORECAST))
    scale = validator.net.head.weight[0, 0].item()
    assert scale == (pytest.approx(2.416, rel=0.01) if ridge else 1)


def test_a_network_without_heads_to_solve_is_validated_with_its_new_classes(
    validation: Validation,
) -> None:
    validator = validation.validator()
    validator.state.initial = InitialNetwork({}, 2.0)
    assert validator.validate_first()
    [row] = validator.state.history.rows
    assert (row.epoch, row.stage, row.val_acc) == (2.0, "classes changed", 1.0)


def test_nothing_is_recorded_where_a_stop_was_requested(validation: Validation) -> None:
    validator = validation.validator(heads=True, stops=True)
    assert not validator.validate_first() and not validator.state.history.rows
    validator.state.ridge = 0.4
    assert not validator.validate(ROW) and not validator.state.history.rows


# --- in training


def test_a_validation_adds_its_figures_to_the_row_of_a_stretch(validation: Validation) -> None:
    logits = RIGHT.copy()
    logits[:10] = np.roll(logits[:10], 1, axis=1)
    validator = validation.validator(3 * logits)
    assert validator.validate(ROW)
    [row], best = validator.state.history.rows, validator.state.history.best
    assert best and (row.val_acc, row.val_loss) == (0.75, best.val_loss)
    assert (row.train_loss, row.images_per_second) == (0.7, 99.0)
    calibrated = metrics.cross_entropy(3 * logits / best.temperature, LABELS)
    assert best.val_loss == pytest.approx(calibrated, rel=1e-6)
    assert (best.epoch, best.image_size) == (1.0, 32)


def test_the_kept_weights_do_not_change_with_the_network(validation: Validation) -> None:
    validator = validation.validator()
    assert validator.validate(ROW)
    before = validator.net.head.weight.detach().clone()
    with torch.no_grad():
        validator.net.head.weight.add_(1)
    best = validator.state.history.best
    assert best and torch.equal(best.weights["head.weight"], before)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_head_that_was_solved_again_is_calibrated_whatever_its_scale(
    validation: Validation, scale: float
) -> None:
    logits = RIGHT.copy()
    logits[:10] = np.roll(logits[:10], 1, axis=1)
    validator = validation.validator(np.float32(scale) * logits, heads=True)
    validator.state.ridge = 0.7
    assert validator.validate(ROW) and solved(validator) == [0.7]
    best = validator.state.history.best
    assert best and best.temperature == pytest.approx(1.0, rel=0.02)
    # Three of four are right, 0.737 with the smoothing of labels: log(4 * 0.737 / 0.263) = 2.416
    assert validator.net.head.weight[0, 0].item() * scale == pytest.approx(2.416, rel=0.01)
    assert torch.equal(validator.net.head.bias, validator.net.head.weight[:, 0])


def test_without_one_finite_output_a_checkpoint_can_still_be_read(validation: Validation) -> None:
    logits = np.full((PHOTOS, 5), np.nan, np.float32)
    logits[1::3], logits[2::3] = np.inf, -np.inf
    validator = validation.validator(logits)
    assert validator.validate(ROW)
    validator.state.finished = True
    state = {**HEADER, **validator.state.state_dict()}
    model.validate_checkpoint(Checkpoint(Path("checkpoint.pt"), state, ""))


class TwoMachines(SingleMachine):
    """The other one has the same rows."""

    machines = 2

    def all_gather(self, arrays: Any) -> list[AnyArray]:
        return [np.concatenate([array, array]) for array in arrays]


def test_figures_are_those_of_all_machines_in_the_time_of_this_one(validation: Validation) -> None:
    validator = validation.validator(cluster=TwoMachines())
    assert len(validator.predict()[1]) == 2 * PHOTOS
    total = validator.total(RunningMetrics(images=30, loss=9.5, correct=20, seconds=0.5))
    assert total == RunningMetrics(60, 19.0, 40, 0.5)
    assert isinstance(total.images, int) and isinstance(total.correct, int)
