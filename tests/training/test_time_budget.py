"""--time-budget: a plan that fits into the time, and a run that ends with it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Call, ForkedCall, at, refusal, saved

import model
import train
from hogwear.data import dataset, decoding
from hogwear.data.decoding import LIMITS
from hogwear.networks.network import Network
from hogwear.system.errors import BadInput
from hogwear.training import checkpoint, heads, time_budget, trainer
from hogwear.training.heads import HeadFitter
from hogwear.training.recovery import DivergenceDetector
from hogwear.training.time_budget import (
    MEASURED_SIZE,
    SIZES,
    Budget,
    Speed,
    Workload,
    measure_speed,
    plan_run,
)
from hogwear.training.validation import Validator

SPEED = Speed(decoding=0.001, prediction=0.002, training=0.008)


class Clock:
    """The module `time` with a clock that stands still unless the test moves it."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of train and of its budget."""
    clock = Clock()
    for module in (time_budget, trainer, heads, checkpoint, train):
        monkeypatch.setattr(module, "time", clock)
    return clock


Plan = Callable[..., Budget]


@pytest.fixture
def planned(clock: Clock) -> Plan:
    """planned(60): the plan for the next 60 seconds."""
    return lambda seconds, photos=1000, sizes=SIZES, pretrained=True: plan_run(
        SPEED, clock.now + seconds, Workload(photos, photos // 4, pretrained), sizes
    )


def test_speed_is_measured_with_one_thread_per_worker_as_in_training(
    data: Path, tmp_path: Path
) -> None:
    def measure() -> Speed:
        torch.set_num_threads(4)
        threads = torch.tensor([0]).share_memory_()

        class CountsThreads(Network):
            def forward(self, pixels: torch.Tensor) -> torch.Tensor:
                threads[0] = max(int(threads[0]), torch.get_num_threads())
                return torch.zeros(len(pixels), 5, requires_grad=True)

        speed = measure_speed(CountsThreads(), dataset.find_photos(data, tmp_path).train, LIMITS, 2)
        assert int(threads[0]) == 1
        return speed

    speed: Speed = ForkedCall(measure).result()
    assert min(speed.decoding, speed.prediction, speed.training) > 0


@pytest.mark.long
def test_the_first_photo_of_a_process_does_not_count_in_the_speed(
    data: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []  # each worker has its own, and its own clock

    def slow_at_first(path: Path, *rest: object) -> None:
        """Like Pillow, which imports its decoders with the first photo."""
        calls.append(path)
        clock.now += 0.4 if len(calls) == 1 else 0.01

    monkeypatch.setattr(decoding, "decode", slow_at_first)
    net = model.build("tinyvgg", 5, MEASURED_SIZE)
    speed: Speed = ForkedCall(
        measure_speed, net, dataset.find_photos(data, tmp_path).train, LIMITS, 2
    ).result()
    assert speed.decoding == pytest.approx(0.01 / 2), "with two workers"


@pytest.mark.parametrize("pretrained", [True, False])
def test_more_time_buys_larger_photos(planned: Plan, pretrained: bool) -> None:
    seconds = (9, 10, 15, 20, 30, 60, 120, 240) if pretrained else (40, 60, 90, 150, 400)
    sizes = [planned(each, pretrained=pretrained).image_size for each in seconds]
    assert sizes == sorted(sizes) and (sizes[0], sizes[-1]) == (96, 288) and len(set(sizes)) >= 4


def test_the_first_stage_leaves_a_part_of_the_time_to_hogwild(planned: Plan) -> None:
    """224 px: 1.96 times the area of the photos that were measured, so 3.92 ms per photo."""
    first_stage = 2.5 + 0.00392 * 1250  # solving, 1,000 photos, and 250 to validate
    needed = 1.5 + 1.25 + first_stage / 0.6  # start-up and decoding
    assert planned(needed + 0.1).image_size == 224
    assert planned(needed - 0.1).image_size == 192


def test_fewer_photos_are_larger(planned: Plan) -> None:
    assert planned(20, photos=200).image_size > planned(20).image_size


def test_time_is_left_to_solve_the_head_again_to_validate_and_to_save(planned: Plan) -> None:
    small, large = planned(60, sizes=(96,)), planned(60, sizes=(224,))
    assert large.closing_seconds == pytest.approx(0.3 + 0.98 + 1.0 + 0.4 * 3.92)
    assert small.closing_seconds < large.closing_seconds
    assert planned(400, sizes=(224,), pretrained=False).closing_seconds == pytest.approx(1.28)


def test_a_budget_that_is_too_short_is_refused(planned: Plan) -> None:
    with pytest.raises(BadInput, match="--time-budget: too short for 1000 photos"):
        planned(5)


def test_a_chosen_image_size_is_kept(planned: Plan) -> None:
    """Even where most of the time goes into the first stage."""
    assert planned(60, sizes=(64,)).image_size == 64
    assert planned(10.5, sizes=(224,)).image_size == 224


def test_the_images_left_follow_the_speed_and_the_time_to_the_deadline(clock: Clock) -> None:
    budget = Budget(clock.now + 100, 128, closing_seconds=10)
    assert budget.images_left(images=100, seconds=1) is None, "too few to judge by"
    slow, fast = (budget.images_left(images=1000, seconds=each) for each in (20.0, 10.0))
    assert (slow, fast) == (4500, 9000)
    clock.now += 50
    assert budget.seconds_left == 40 and budget.images_left(1000, 10.0) == 4000
    clock.now += 50
    assert budget.seconds_left < 0 and budget.images_left(1000, 10.0) == 0


def test_a_run_ends_when_its_time_is_over(
    data: Path, call: Call, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that was measured to be eight times faster than it then is."""
    add, started = DivergenceDetector.add, clock.now

    def slowly(detector: DivergenceDetector, loss: float) -> None:
        """Called after each batch of up to 32 photos."""
        clock.now += 0.01 * 32
        add(detector, loss)

    monkeypatch.setattr(DivergenceDetector, "add", slowly)
    monkeypatch.setattr(time_budget, "measure_speed", lambda *arguments: SPEED)
    small = "--arch", "tinyvgg", "--image-size", 64, "--workers", 1
    answer = call(train, "--time-budget", 8, *small, *at(data, tmp_path, tmp_path / "cache"))
    assert answer.code == 0 and "at 64 px, for 8 s" in answer.stdout
    assert 7 < clock.now - started <= 8 + 2 * 0.32, "no batch begins after the deadline"
    state = saved(tmp_path)
    assert state["finished"] and state["images_seen"] > 120
    assert state["total_images"] <= state["images_seen"] < state["total_images"] + 128
    assert sum(row["images"] for row in state["history"]) == state["images_seen"]


def test_the_first_stage_is_the_result_where_it_takes_all_of_the_time(
    data: Path, call: Call, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = HeadFitter.run

    def slowly(*arguments: Any) -> bool:
        clock.now += 20
        return run(*arguments)

    monkeypatch.setattr(HeadFitter, "run", slowly)
    monkeypatch.setattr(time_budget, "measure_speed", lambda *arguments: SPEED)
    small = "--image-size", 32, "--workers", 1
    answer = call(train, "--time-budget", 30, *small, *at(data, tmp_path, tmp_path / "cache"))
    assert answer.code == 0, answer
    state = saved(tmp_path)
    assert state["finished"] and state["images_seen"] == 0
    assert [row["stage"] for row in state["history"]] == ["closed form"]


def test_the_last_validation_is_expected_to_take_as_long_as_the_one_before(
    data: Path, call: Call, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured to take no time at all, it takes 5 s."""
    validate, add, started = Validator.validate, DivergenceDetector.add, clock.now

    def validate_slowly(*arguments: Any) -> bool:
        clock.now += 5
        return validate(*arguments)

    def train_slowly(detector: DivergenceDetector, loss: float) -> None:
        clock.now += 0.2
        add(detector, loss)

    monkeypatch.setattr(Validator, "validate", validate_slowly)
    monkeypatch.setattr(DivergenceDetector, "add", train_slowly)
    monkeypatch.setattr(time_budget, "measure_speed", lambda *arguments: SPEED)
    small = "--arch", "tinyvgg", "--image-size", 32, "--workers", 1
    answer = call(train, "--time-budget", 30, *small, *at(data, tmp_path, tmp_path / "cache"))
    assert answer.code == 0, answer
    assert len(saved(tmp_path)["history"]) == 3, "from the first validation on, it is known"
    assert 28 < clock.now - started < 31


def test_epochs_and_a_budget_exclude_each_other(data: Path, call: Call, tmp_path: Path) -> None:
    answer = call(
        train, "--epochs", 2, "--time-budget", 60, *at(data, tmp_path, tmp_path / "cache")
    )
    assert answer.code == 2 and "--epochs and --time-budget exclude each other" in refusal(
        answer.stderr
    )
