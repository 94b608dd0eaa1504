"""--time-budget: what fits into the time, and a run that ends with it."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Answer, Elsewhere, at, refusal, saved

import model
import train
from hogwear import dataset, decoding
from hogwear.budget import PROBED_SIZE, SIZES, Budget, Speed, plan, probe
from hogwear.decoding import LIMITS
from hogwear.errors import BadInput

SPEED = Speed(decoding=0.001, predicting=0.002, training=0.008)


def planned(seconds: float, photos: int = 1000) -> Budget:
    return plan(SPEED, time.monotonic() + seconds, photos, photos // 4, 500)


def test_the_speed_is_probed_with_one_thread_a_worker_as_in_training(data: Path, tmp_path: Path) -> None:
    def probed() -> Speed:
        torch.set_num_threads(4)
        threads = torch.tensor([0]).share_memory_()

        class Network(torch.nn.Module):
            crop = staticmethod(round)

            def forward(self, pixels: torch.Tensor) -> torch.Tensor:
                threads[0] = max(int(threads[0]), torch.get_num_threads())
                return torch.zeros(len(pixels), 5, requires_grad=True)

        speed = probe(Network(), dataset.find(data, tmp_path).train, LIMITS, 2)
        assert int(threads[0]) == 1
        return speed

    speed: Speed = Elsewhere(probed).answer()
    assert 0 < speed.decoding < 1 and 0 < speed.predicting < 1 and 0 < speed.training < 1


def test_what_the_first_photo_of_a_process_costs_is_no_part_of_the_speed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []  # each worker has its own

    def slow_at_first(path: Path, *rest: object) -> None:
        """As Pillow is, which imports its decoders then."""
        calls.append(path)
        time.sleep(0.4 if len(calls) == 1 else 0)

    monkeypatch.setattr(decoding, "decode", slow_at_first)
    net = model.build("tinyvgg", 5, PROBED_SIZE)
    speed: Speed = Elsewhere(probe, net, dataset.find(data, tmp_path).train, LIMITS, 2).answer()
    assert speed.decoding < 0.02


def test_more_time_buys_larger_photos_and_more_epochs() -> None:
    plans = [planned(seconds) for seconds in (7, 10, 20, 30, 60, 120, 240)]
    sizes = [p.image_size for p in plans]
    assert sizes == sorted(sizes) and (sizes[0], sizes[-1]) == (96, 224)
    for p in plans:
        assert p.images >= dict(SIZES)[p.image_size] * 1000
    assert plans[-1].images > 1.9 * plans[-2].images


def test_fewer_photos_are_seen_more_often() -> None:
    assert planned(60, photos=200).images / 200 > 2 * planned(60).images / 1000


def test_a_budget_that_is_too_short_is_refused() -> None:
    with pytest.raises(BadInput, match="--time-budget: too short for 1000 photos"):
        planned(4)


def test_a_size_that_was_asked_for_stays() -> None:
    assert plan(SPEED, time.monotonic() + 60, 1000, 250, 500, ((64, 0.25),)).image_size == 64


def test_what_is_left_to_do_follows_the_speed_and_leaves_time_to_validate() -> None:
    budget = Budget(time.monotonic() + 100, 128, 5000, validation=10)
    assert budget.more(images=100, seconds=1, per_epoch=1000) is None, "too few to judge by"
    slow, fast = (budget.more(images=1000, seconds=seconds, per_epoch=1000) for seconds in (20.0, 10.0))
    assert slow is not None and fast is not None
    # 100 s less the last validation and the save; 10 or 20 ms an image, and the 10 s of validation every 1,000
    assert slow == pytest.approx(89.7 / (0.020 + 0.010), rel=0.01)
    assert fast == pytest.approx(89.7 / (0.010 + 0.010), rel=0.01)
    assert Budget(time.monotonic() - 1, 128, 5000, validation=10).more(1000, 10.0, 1000) == 0


def test_a_run_goes_on_until_its_time_is_over(data: Path, call: Callable[..., Answer], tmp_path: Path) -> None:
    """In this process, which has imported torch: how long that takes from a cold disk is not the matter here."""
    started = time.monotonic()
    answer = call(train, "--time-budget", 8, "--image-size", 64, *at(data, tmp_path, tmp_path / "cache"))
    assert answer.code == 0 and "epochs in 8 s" in answer.stdout
    assert time.monotonic() - started > 5.5, "a few seconds without a budget"
    state = saved(tmp_path)
    assert state["finished"] and state["length"] <= state["images_seen"] < state["length"] + 128
    assert sum(row["images"] for row in state["history"]) == state["images_seen"]


def test_epochs_and_a_budget_exclude_each_other(data: Path, call: Callable[..., Answer], tmp_path: Path) -> None:
    answer = call(train, "--epochs", 2, "--time-budget", 60, *at(data, tmp_path, tmp_path / "cache"))
    assert answer.code == 2 and "--epochs and --time-budget exclude each other" in refusal(answer.stderr)
