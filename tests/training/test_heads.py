"""Heads in closed form: solved by workers, kept in the cache, and interrupted."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SIZE, ForkedCall, decode_some, pixels_of, pretrained_network

import model
from hogwear.cluster.peers import SINGLE_MACHINE
from hogwear.data.pixels import Pixels
from hogwear.networks.network import Network
from hogwear.networks.parameters import share_parameters
from hogwear.system.signals import Stop
from hogwear.system.workers import Workers
from hogwear.training.heads import HeadFitter, scale_head
from hogwear.training.passes import hash_weights

COUNT = 70  # two batches and a part of one


@pytest.fixture
def photos(photo_files: list[Path], tmp_path: Path) -> Pixels:
    """Real photos; the classes are dark, grey and bright ones."""
    images = decode_some(photo_files, COUNT, SIZE)
    return pixels_of(images, images.mean((1, 2, 3)).argsort().argsort() // 24, tmp_path)


def network() -> Network:
    net = pretrained_network(3, torch.float32)
    share_parameters(net)
    return net


class StopAfter(Stop):
    """Requested when some batches have been computed."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    @property
    def requested(self) -> bool:
        return self.left <= 0


@dataclass
class Counted:
    """A head solver, and what its workers compute."""

    net: Network
    photos: Pixels
    stop: StopAfter
    solver: HeadFitter
    computed: list[str]

    def call(self, function: Callable[[Workers], Any], workers: int = 1) -> Any:
        """Call a function of the solver with its workers."""
        with Workers(workers, lambda rank: self.solver.jobs) as pool:
            run = pool.run

            def count(job: str, items: Any, pause: Any) -> Any:
                for each in run(job, items, pause):
                    self.computed.append(job)
                    self.stop.left -= 1
                    yield each

            pool.run = count  # type: ignore[method-assign, assignment]
            return function(pool)


def create(photos: Pixels, stop_after: int = 10**6, is_new: bool = True) -> Counted:
    net, stop = network(), StopAfter(stop_after)
    return Counted(net, photos, stop, HeadFitter(net, photos, SINGLE_MACHINE, stop, is_new), [])


def elsewhere(function: Callable[[], Any]) -> Any:
    """In a process of its own, as every run: the lock of the cache ends with it."""
    return ForkedCall(function).result()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_heads_classify_the_photos_and_the_forecast_is_honest(
    workers: int, photos: Pixels
) -> None:
    def solve() -> tuple[Any, ...]:
        this = create(photos)
        solved = this.call(this.solver.fit_heads, workers)
        pixels = torch.from_numpy(np.asarray(photos.images))
        with torch.inference_mode():
            head, training = (f(pixels).numpy() for f in (this.net, this.net.training_logits))
        return solved, head, training

    (classifier, speed), head, training = elsewhere(solve)
    assert (head.argmax(1) == photos.labels).mean() > 0.95
    assert 0.5 < classifier.forecast.accuracy < (head.argmax(1) == photos.labels).mean()
    assert classifier.forecast.photos == COUNT and speed > 0
    assert (training.argmax(1) == photos.labels).mean() > 0.8


def solve_heads(photos: Pixels, workers: int) -> Any:
    """Both heads, as one array."""
    this = create(photos)
    this.call(this.solver.fit_heads, workers)
    solved = [*this.net.head.parameters(), *this.net.training_head.parameters()]
    return torch.cat([p.detach().flatten() for p in solved]).numpy()


def copy_of(photos: Pixels, folder: Path) -> Pixels:
    """The same photos with a cache of their own."""
    folder.mkdir()
    return replace(photos, folder=folder)


def test_one_worker_and_two_find_the_same_heads(photos: Pixels, tmp_path: Path) -> None:
    one = elsewhere(lambda: solve_heads(photos, 1))
    two = elsewhere(lambda: solve_heads(copy_of(photos, tmp_path / "other"), 2))
    assert np.array_equal(one, two) and one.std() > 0


def test_a_worker_that_dies_changes_nothing(
    photos: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, died = elsewhere(lambda: solve_heads(photos, 1)), tmp_path / "died"
    calls, trunk = [], model.EfficientNetLite0.trunk

    def die_once(net: model.EfficientNetLite0, pixels: torch.Tensor) -> torch.Tensor:
        calls.append(pixels)
        if len(calls) == 3 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return trunk(net, pixels)

    monkeypatch.setattr(model.EfficientNetLite0, "trunk", die_once)
    found = elsewhere(lambda: solve_heads(copy_of(photos, tmp_path / "other"), 1))
    assert died.exists() and np.array_equal(expected, found)


def test_a_stop_leaves_the_heads_as_they_were_and_what_was_computed_in_the_cache(
    photos: Pixels,
) -> None:
    def interrupt() -> bool:
        this = create(photos, stop_after=1)
        before = this.net.head.weight.clone()
        assert this.call(this.solver.fit_heads) is None
        return torch.equal(this.net.head.weight, before)

    def go_on() -> list[str]:
        this = create(photos)
        assert this.call(this.solver.fit_heads)
        return this.computed

    assert elsewhere(interrupt)
    computed = elsewhere(go_on)
    assert 1 <= computed.count("trunk") < 3 == computed.count("first features")
    assert elsewhere(go_on) == [], "the next time, all of it is there"


def test_a_later_head_needs_only_the_tail(photos: Pixels) -> None:
    def solve() -> tuple[list[str], Any]:
        this = create(photos)
        classifier, _ = this.call(this.solver.fit_heads)
        first = this.net.head.weight.clone()
        this.computed.clear()
        assert this.call(lambda workers: this.solver.refit_head(workers, classifier.ridge))
        spread = float(this.net.head.weight.std() / first.std())
        same = torch.nn.functional.cosine_similarity(
            this.net.head.weight.ravel(), first.ravel(), dim=0
        )
        return this.computed, (spread, float(same))

    computed, (_, same) = elsewhere(solve)
    assert computed == ["later features"] * 3
    assert same > 0.99, "the features are the same, but for their rounding; the scale may differ"


def test_a_later_head_is_that_of_the_features_as_they_are_now(photos: Pixels) -> None:
    def solve(change: float) -> Any:
        this = create(photos, is_new=False)
        with torch.no_grad():
            this.net.get_parameter("last.weight").mul_(change)
        assert this.call(lambda workers: this.solver.refit_head(workers, 0.4))
        return this.net.head.weight.clone().numpy()

    one, again, other = (ForkedCall(solve, change).result() for change in (1.0, 1.0, 0.5))
    assert np.array_equal(one, again) and not np.allclose(one, other, rtol=0.1)


def test_both_heads_of_a_trained_tail_are_solved_by_a_given_ridge(
    photos: Pixels, tmp_path: Path
) -> None:
    """Its features stay out of the cache, which keeps those that new runs begin with."""

    def solve() -> Any:
        this = create(photos, is_new=False)
        with torch.no_grad():
            this.net.get_parameter("last.weight").mul_(0.5)
        classifier, _ = this.call(lambda workers: this.solver.fit_heads(workers, 0.4))
        solved = this.net.head.weight.clone()
        training = this.net.training_head.weight.std().item()
        assert this.call(lambda workers: this.solver.refit_head(workers, 0.4))
        same = torch.equal(solved, this.net.head.weight)
        return classifier, same, training

    classifier, same, training = ForkedCall(solve).result()
    assert same and (classifier.ridge, classifier.forecast) == (0.4, None) and training > 0
    assert list(tmp_path.glob("trunk-*")) and not list(tmp_path.glob("features-*"))


def test_a_stop_leaves_a_later_head_as_it_was(photos: Pixels) -> None:
    def interrupt() -> bool:
        this = create(photos, stop_after=4, is_new=False)
        before = this.net.head.weight.clone()
        assert not this.call(lambda workers: this.solver.refit_head(workers, 0.4))
        return torch.equal(this.net.head.weight, before)

    assert elsewhere(interrupt)


def test_features_are_those_of_the_weights_before_the_heads() -> None:
    net = network()
    features, trunk = hash_weights(net, frozen=False), hash_weights(net, frozen=True)
    with torch.no_grad():
        net.head.weight.add_(1)
        net.training_head.weight.add_(1)
    assert hash_weights(net, frozen=False) == features
    assert hash_weights(net, frozen=True) == trunk
    net.requires_grad_(False)
    net.get_parameter("last.weight").requires_grad_(True)
    trunk = hash_weights(net, frozen=True)
    with torch.no_grad():
        net.get_parameter("last.weight").add_(1)
    assert hash_weights(net, frozen=False) != features
    assert hash_weights(net, frozen=True) == trunk
    with torch.no_grad():
        net.get_parameter("stem.weight").add_(1)
    assert hash_weights(net, frozen=True) != trunk


def test_a_scaled_head_has_scaled_logits() -> None:
    head = torch.nn.Linear(4, 3)
    x = torch.rand(5, 4)
    before = head(x).detach()
    scale_head(head, 0.5)
    assert torch.allclose(head(x), 0.5 * before)
