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
from hogwear.training import checkpoint, time_budget, trainer
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
    for module in (time_budget, trainer, checkpoint, train):
        monkeypatch.setattr(module, "time", clock)
    return clock


Plan = Callable[..., Budget]


@pytest.fixture
def planned(clock: Clock) -> Plan:
    """planned(60): the plan for the next 60 seconds."""
    return lambda seconds, photos=1000, sizes=SIZES: plan_run(
        SPEED, clock.now + seconds, Workload(photos, photos // 4, 500), sizes
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


def test_more_time_buys_larger_photos_and_more_epochs(planned: Plan) -> None:
    plans = [planned(seconds) for seconds in (7, 10, 20, 30, 60, 120, 240)]
    sizes = [p.image_size for p in plans]
    assert sizes == sorted(sizes) and (sizes[0], sizes[-1]) == (96, 224)
    for p in plans:
        assert p.images >= dict(SIZES)[p.image_size] * 1000
    assert plans[-1].images > 1.9 * plans[-2].images


def test_fewer_photos_are_seen_more_often(planned: Plan) -> None:
    assert planned(60, photos=200).images / 200 > 2 * planned(60).images / 1000


def test_a_budget_that_is_too_short_is_refused(planned: Plan) -> None:
    with pytest.raises(BadInput, match="--time-budget: too short for 1000 photos"):
        planned(4)


def test_a_chosen_image_size_is_kept(planned: Plan) -> None:
    assert planned(60, sizes=((64, 0.25),)).image_size == 64


def test_the_images_left_follow_the_speed_and_leave_time_to_validate(clock: Clock) -> None:
    budget = Budget(clock.now + 100, 128, 5000, validation_seconds=10)
    assert budget.images_left(images=100, seconds=1, per_epoch=1000) is None, "too few to judge by"
    slow, fast = (
        budget.images_left(images=1000, seconds=seconds, per_epoch=1000) for seconds in (20.0, 10.0)
    )
    assert slow is not None and fast is not None
    # 100 s less the last validation and the save; 10 or 20 ms an image, and the 10 s of validation every 1,000
    assert slow == int(89.7 / (0.020 + 0.010))
    assert fast == int(89.7 / (0.010 + 0.010))
    assert (
        Budget(clock.now - 1, 128, 5000, validation_seconds=10).images_left(1000, 10.0, 1000) == 0
    )


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
    assert answer.code == 0 and "epochs in 8 s" in answer.stdout
    assert 7 < clock.now - started <= 8
    state = saved(tmp_path)
    assert (
        state["finished"]
        and state["total_images"] <= state["images_seen"] < state["total_images"] + 128
    )
    assert sum(row["images"] for row in state["history"]) == state["images_seen"]


def test_epochs_and_a_budget_exclude_each_other(data: Path, call: Call, tmp_path: Path) -> None:
    answer = call(
        train, "--epochs", 2, "--time-budget", 60, *at(data, tmp_path, tmp_path / "cache")
    )
    assert answer.code == 2 and "--epochs and --time-budget exclude each other" in refusal(
        answer.stderr
    )
