"""The order of the photos, and the learning rate."""

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
    """Two epochs of 120 photos; the last batch of each has 8 photos."""
    return Schedule(
        num_photos=120,
        batch_size=16,
        peak_lr=0.01,
        seed=0,
        first_epoch=0,
        live=LiveSettings.create(total_images=240),
    )


def photos_of(schedule: Schedule, steps: range) -> list[int]:
    return [int(photo) for step in steps for photo in schedule.photos_at(step)]


def test_an_epoch_holds_every_photo_exactly_once(schedule: Schedule) -> None:
    assert (schedule.steps_per_epoch, schedule.total_steps) == (8, 16)
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
    counts = [schedule.images_before(step) for step in range(schedule.total_steps + 1)]
    assert counts[0] == 0 and counts[schedule.steps_per_epoch] == 120 and counts[-1] == 240
    assert all(0 < later - earlier <= batch_size for earlier, later in pairwise(counts))
    assert [schedule.step_at(count) for count in counts] == list(range(schedule.total_steps + 1))
    assert schedule.step_at(min(batch_size, 120) // 2) == 0, "half a batch is no step"


def test_the_learning_rate_warms_up_and_ends_near_zero(schedule: Schedule) -> None:
    schedule = replace(schedule, batch_size=1)
    rates = [schedule.lr_at(step) for step in range(schedule.total_steps)]
    peak = rates.index(max(rates))
    assert peak == pytest.approx(0.1 * schedule.total_steps, abs=2)
    assert max(rates) == pytest.approx(0.01, rel=0.01)
    assert 0 < rates[0] <= 0.001 and 0 <= rates[-1] < 1e-5
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    half_way = rates[int(0.55 * schedule.total_steps)]
    assert half_way == pytest.approx(0.005, rel=0.02), "half-way down a cosine"


def test_other_processes_see_a_new_length_and_learning_rate(schedule: Schedule) -> None:
    before = schedule.total_steps, schedule.lr_at(3)

    def change() -> None:
        schedule.live.total_images, schedule.live.lr_scale = 480, 0.25

    ForkedCall(change).result()
    assert before[0] == 16 and schedule.total_steps == 32
    assert schedule.current_peak_lr == 0.0025 and schedule.lr_at(3) < before[1]


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
