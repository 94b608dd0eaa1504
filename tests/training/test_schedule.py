"""The order of the photos, the learning rate, and the average of the weights."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from helpers import ForkedCall

import model
from hogwear.networks.network import Network
from hogwear.training.hyperparameters import Hyperparameters
from hogwear.training.schedule import LiveSettings, Schedule, choose_peak_lr


@pytest.fixture
def schedule() -> Schedule:
    """Of 120 photos; the last batch of each epoch has 8."""
    return Schedule(
        num_photos=120,
        batch_size=16,
        peak_lr=0.01,
        seed=0,
        first_epoch=0,
        live=LiveSettings.create(),
    )


def photos_of(schedule: Schedule, steps: range) -> list[int]:
    return [int(photo) for step in steps for photo in schedule.photos_at(step)]


def test_an_epoch_holds_every_photo_exactly_once(schedule: Schedule) -> None:
    assert schedule.steps_per_epoch == 8
    first, second = photos_of(schedule, range(8)), photos_of(schedule, range(8, 16))
    assert sorted(first) == sorted(second) == list(range(120))
    assert first != second, "each epoch has its own order"


def test_a_later_run_does_not_repeat_the_shuffles_of_an_earlier_one(schedule: Schedule) -> None:
    first, second = photos_of(schedule, range(8)), photos_of(schedule, range(8, 16))
    assert photos_of(replace(schedule, first_epoch=2), range(8)) not in (first, second)
    assert photos_of(replace(schedule, first_epoch=1), range(8)) == second


def test_the_order_is_numpys_permutation_for_the_seed_and_the_epoch(schedule: Schedule) -> None:
    for step in (0, 9, 7, 8):  # back and forth between two epochs
        epoch, batch = divmod(step, 8)
        order = np.random.default_rng((0, epoch)).permutation(120)
        assert schedule.photos_at(step).tolist() == sorted(order[16 * batch : 16 * batch + 16])


def test_an_epoch_is_shuffled_once_and_not_for_every_batch(
    schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    shuffled: list[int] = []

    class Counting(np.random.Generator):
        def permutation(self, x: Any, axis: int = 0) -> Any:
            shuffled.append(x)
            return super().permutation(x, axis)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Counting(np.random.PCG64(seed)))
    photos_of(replace(schedule, seed=12345), range(16))
    assert shuffled == [120, 120], "two epochs"


@pytest.mark.parametrize("batch_size", [1, 7, 16, 40, 120, 500])
def test_images_before_and_step_at_are_inverse_with_a_short_last_batch_too(
    schedule: Schedule, batch_size: int
) -> None:
    schedule = replace(schedule, batch_size=batch_size)
    steps = range(2 * schedule.steps_per_epoch + 1)
    counts = [schedule.images_before(step) for step in steps]
    assert counts[0] == 0 and counts[schedule.steps_per_epoch] == 120 and counts[-1] == 240
    assert all(0 < later - earlier <= batch_size for earlier, later in pairwise(counts))
    assert [schedule.step_at(count) for count in counts] == list(steps)
    assert [schedule.steps_for(count) for count in counts] == list(steps)
    assert schedule.step_at(min(batch_size, 120) // 2) == 0, "half a batch is no step"


def test_the_steps_for_a_number_of_images_see_all_of_them(schedule: Schedule) -> None:
    assert [schedule.steps_for(images) for images in (1, 16, 17, 119, 121)] == [1, 1, 2, 8, 9]


@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_learning_rate_warms_up_over_320_images_and_then_stays(
    schedule: Schedule, batch_size: int
) -> None:
    schedule = replace(schedule, num_photos=640, batch_size=batch_size)
    rates = [schedule.lr_at(step) for step in range(5 * schedule.steps_per_epoch)]
    warm_up = 320 // batch_size
    assert rates[:warm_up] == pytest.approx([0.01 * (n + 1) / warm_up for n in range(warm_up)])
    assert set(rates[warm_up - 1 :]) == {0.01}


def test_other_processes_see_a_new_learning_rate(schedule: Schedule) -> None:
    def change() -> None:
        schedule.live.lr_scale = 0.25

    before = schedule.lr_at(3)
    ForkedCall(change).result()
    assert schedule.current_peak_lr == 0.0025 and schedule.lr_at(3) == before / 4


def averaged(schedule: Schedule, start: float, weights: Sequence[float]) -> float:
    """The average of weights that have these values after each step."""
    average = start
    for step, value in enumerate(weights):
        average += schedule.average_weight(step) * (value - average)
    return average


def test_the_average_is_of_the_start_and_the_weights_after_every_eighth_step(
    schedule: Schedule,
) -> None:
    between, last = [100.0] * 7, [5.0]
    assert averaged(schedule, 5.0, between) == 5.0
    assert averaged(schedule, 5.0, (between + last) * 3) == pytest.approx(5.0)
    assert averaged(schedule, 0.0, between + last) == pytest.approx(4.0), "the start fades"


@pytest.mark.parametrize("count", [2, 10, 200])
def test_later_weights_count_more_in_the_average(schedule: Schedule, count: int) -> None:
    """The t-th of n, beginning with the start, weighs t (t + 1) (t + 2): their mean is
    (4 n + 1) / 5."""
    weights = [float(2 + step // 8) for step in range(8 * (count - 1))]
    assert averaged(schedule, 1.0, weights) == pytest.approx((4 * count + 1) / 5)


@pytest.mark.parametrize(
    ("changes", "workers", "machines", "expected"),
    [
        ({}, 2, 1, 1.0),
        ({}, 4, 1, 1.0),
        ({}, 16, 1, 0.25),
        ({"batch_size": 8}, 2, 1, 0.25),
        ({"batch_size": 128}, 2, 1, 1.0),
        ({}, 2, 4, 2.0),
    ],
)
def test_the_default_rate_falls_with_many_workers_and_small_batches_and_rises_with_machines(
    changes: dict[str, Any], workers: int, machines: int, expected: float
) -> None:
    net: Network = model.build("tinyvgg", 5, 32)
    scale = choose_peak_lr(net, Hyperparameters(**changes), workers, machines) / net.default_lr
    assert scale == pytest.approx(expected)


def test_a_rate_that_was_set_is_used_as_it_is() -> None:
    net: Network = model.build("tinyvgg", 5, 32)
    assert choose_peak_lr(net, Hyperparameters(lr=0.3, batch_size=1), 64, 9) == 0.3
