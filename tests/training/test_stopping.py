"""When a run is validated, and when it is over."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from helpers import hogwild_row, new_state

from hogwear.training.history import INITIAL, HistoryRow
from hogwear.training.photo_sets import PhotoSet
from hogwear.training.schedule import LiveSettings, Schedule
from hogwear.training.stopping import MIN_GAIN, StoppingRule, is_improving
from hogwear.training.time_budget import Budget

MakeRule = Callable[..., StoppingRule]


@pytest.fixture
def rule() -> MakeRule:
    """rule(photos=120): of a run on so many photos, in batches of 16."""

    def rule(photos: int = 120, machines: int = 1, epochs: int | None = None) -> StoppingRule:
        state = new_state(epochs=epochs)
        state.photos = replace(state.photos, train=PhotoSet(photos, "0" * 64))
        state.history.rows, state.start_loss = [HistoryRow(0.0, INITIAL)], 1.0
        schedule = Schedule(photos // machines, 16, 0.01, 0, 0, LiveSettings.create())
        return StoppingRule(schedule, state, None)

    return rule


def validations(rule: StoppingRule, end: int) -> list[int]:
    return [step for step in range(end) if rule.is_validation_step(step)]


@pytest.mark.parametrize(
    ("photos", "expected"),
    [(1600, [64, 256, 1024]), (16_000, [500, 2000, 8000]), (160, [64, 256, 1024])],
)
def test_a_run_is_validated_after_1024_images_or_half_an_epoch_and_then_after_four_times_as_many(
    photos: int, expected: list[int], rule: MakeRule
) -> None:
    assert validations(rule(photos), expected[-1] + 1) == expected


def test_the_next_validation_is_the_next_check_or_the_end_of_the_run(rule: MakeRule) -> None:
    run = rule(1600, epochs=99)
    for step in range(1, 300):
        assert run.next_validation(step) == next(
            s for s in range(step + 1, 1200) if run.is_validation_step(s)
        )
    assert [rule(1600, epochs=2).next_validation(step) for step in (0, 64, 128)] == [64, 200, 200]


def test_all_machines_validate_after_the_same_part_of_an_epoch(rule: MakeRule) -> None:
    assert validations(rule(3200, machines=2), 900) == [50, 200, 800], "half an epoch of both"


def test_before_a_validation_all_machines_have_done_the_same(rule: MakeRule) -> None:
    """Or they would not average equally often until then."""
    one, other = rule(2049, machines=2), rule(2049, machines=2)
    one = replace(one, schedule=replace(one.schedule, num_photos=1025))
    assert one.schedule.steps_per_epoch == 65 and other.schedule.steps_per_epoch == 64
    for number in range(4):
        steps = one.validation_step(number), other.validation_step(number)
        assert one.epochs_before(steps[0]) == other.epochs_before(steps[1])
        for run, step in zip((one, other), steps, strict=True):
            near = [run.epochs_before(step + more) for more in (-1, 0, 1)]
            assert near == sorted(set(near))
    assert one.epochs_before(13) == 0.2


# --- the end


@pytest.mark.parametrize(("epochs", "end"), [(0, 0), (1, 8), (3, 24)])
def test_a_run_of_some_epochs_is_over_after_their_steps(
    epochs: int, end: int, rule: MakeRule
) -> None:
    run = rule(120, epochs=epochs)
    assert [step for step in range(30) if run.is_over(step)] == list(range(end, 30))
    assert (run.total_steps, run.total_images) == (end, 120 * epochs)


def test_a_planned_number_of_images_comes_before_epochs(rule: MakeRule) -> None:
    run = rule(120)
    run.state.total_images = 130
    assert run.total_steps == 9 and not run.is_over(8) and run.is_over(9)
    assert run.total_images == 136, "whole batches"


def test_without_a_length_a_run_is_over_at_the_first_check_that_does_not_pay(
    rule: MakeRule,
) -> None:
    run = rule(1600)
    run.state.hyperparameters = replace(run.state.hyperparameters, arch="efficientnet_lite0")
    assert not run.is_fixed and run.total_steps == 256, "4,096 images"
    assert not run.is_over(0) and not run.is_over(255) and run.is_over(256)
    run.state.history.rows.append(hogwild_row(0.64, 0.9))
    assert not run.is_over(64), "the loss falls"
    run.state.history.rows.append(hogwild_row(0.64, 0.9))
    assert run.is_over(64) and not run.is_over(63) and not run.is_over(65)


@pytest.mark.parametrize(
    ("arch", "photos", "images"),
    [
        ("efficientnet_lite0", 160, 4096),
        ("efficientnet_lite0", 16_000, 32_000),
        ("tinyvgg", 16_000, 32_000),
        ("tinyvgg", 160, 20_000),
    ],
)
def test_without_a_length_a_run_sees_two_epochs_or_some_thousand_images_at_most(
    arch: str, photos: int, images: int, rule: MakeRule
) -> None:
    run = rule(photos)
    run.state.hyperparameters = replace(run.state.hyperparameters, arch=arch)
    assert run.total_images and images <= run.total_images < images + 16


def test_a_time_budget_has_no_other_limit(rule: MakeRule) -> None:
    run = replace(rule(1600), budget=Budget(time.monotonic() + 100, 96, closing_seconds=1.0))
    assert run.total_steps is run.total_images is None and run.is_fixed
    assert not run.is_over(10_000)


def test_a_run_is_over_when_its_time_is(rule: MakeRule, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run = replace(rule(1600, epochs=9), budget=Budget(130.0, 96, closing_seconds=10.0))
    assert not run.is_out_of_time and not run.is_over(5)
    now[0] = 120.0
    assert run.is_out_of_time and run.is_over(5)


ENOUGH, TOO_LITTLE = 1.1 * MIN_GAIN, 0.9 * MIN_GAIN


@pytest.mark.parametrize(
    ("losses", "pays"),
    [
        ([0.5], True),
        ([0.5, 0.5 - ENOUGH], True),
        ([0.5, 0.5 - TOO_LITTLE], False),
        ([0.5, 0.6], False),
        ([0.0, 0.0], False),
        ([0.5, 0.4, 0.4 - ENOUGH], True),
        ([0.5, 0.4, 0.4 - TOO_LITTLE], False),
        ([0.5, 0.7, 0.55], False),  # lower than the last, but not than the lowest
        ([0.5, 0.7, 0.5 - ENOUGH], True),
    ],
)
def test_going_on_pays_while_the_loss_falls_enough(losses: Sequence[float], pays: bool) -> None:
    assert is_improving(losses) == pays
