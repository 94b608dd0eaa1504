"""Workers that may die, and the training they share: every photo once, one worker as plain SGD, nothing left over."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import torch._dynamo  # SGD imports it when first used: better once here than in every worker
import torch.nn.functional as F
from helpers import CLASSES, FAST, SIZE, ForkedCall, descendants, flat, is_running, wait_until

import model
from hogwear.data import dataset
from hogwear.data.cache import PhotoCache
from hogwear.data.pixels import Pixels
from hogwear.networks import parameters
from hogwear.system.errors import BadInput
from hogwear.system.workers import FORK, MAX_IN_FLIGHT, Workers
from hogwear.training import hogwild
from hogwear.training.hogwild import Course
from hogwear.training.trainer import log_prior

ARCHITECTURES = ("efficientnet_lite0", "tinyvgg")


@pytest.fixture(scope="module")
def train(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Pixels:
    cache = tmp_path_factory.mktemp("cache")
    return PhotoCache(cache, processes=2).open(dataset.find_photos(data, cache).train, SIZE)


@pytest.fixture
def course(train: Pixels) -> Course:
    """Two epochs of 120 photos, the last batch of each with 8 photos."""
    return Course(
        images=train.images, crop=SIZE, rows=train.rows, labels=train.labels, batch_size=16, length=torch.tensor([240]), lr=0.01,
        lr_scale=torch.ones(1), momentum=0.9, seed=0, first_epoch=0, log_prior=torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]),
    )  # fmt: skip


# --- the course


def seen(course: Course, steps: range) -> list[int]:
    """Which photos these steps train on, told by labels that number them."""
    numbered = replace(course, labels=np.arange(len(course.rows)))
    return [int(n) for step in steps for n in numbered.batch(step)[1]]


def test_an_epoch_holds_every_photo_exactly_once(course: Course) -> None:
    assert (course.steps_per_epoch, course.steps) == (8, 16)
    first, second = seen(course, range(8)), seen(course, range(8, 16))
    assert sorted(first) == sorted(second) == list(range(120))
    assert first != second, "each epoch has an order of its own"


def test_a_later_run_does_not_repeat_the_shuffles_of_an_earlier_one(course: Course) -> None:
    assert seen(replace(course, first_epoch=2), range(8)) not in (
        seen(course, range(8)),
        seen(course, range(8, 16)),
    )
    assert seen(replace(course, first_epoch=1), range(8)) == seen(course, range(8, 16))


def test_labels_stay_with_their_photos(course: Course) -> None:
    photos = np.broadcast_to(
        np.arange(120, dtype=np.uint8)[:, None, None, None], (120, 8, 8, 3)
    )  # photo n is all n
    for step in (0, 7, 9):
        pixels, labels = replace(course, crop=8, images=photos).batch(step)
        assert labels.tolist() == [course.labels[int(photo[0, 0, 0])] for photo in pixels]
    assert course.labels.tolist() == [CLASSES.index(name) for name in CLASSES for _ in range(24)]


@pytest.mark.parametrize("batch_size", [1, 7, 16, 40, 120, 500])
def test_images_before_and_step_at_are_inverse_also_with_a_short_last_batch(
    course: Course, batch_size: int
) -> None:
    course = replace(course, batch_size=batch_size)
    counts = [course.images_before(step) for step in range(course.steps + 1)]
    assert counts[0] == 0 and counts[course.steps_per_epoch] == 120 and counts[-1] == 240
    assert all(0 < later - earlier <= batch_size for earlier, later in pairwise(counts))
    assert [course.step_at(count) for count in counts] == list(range(course.steps + 1))
    assert course.step_at(min(batch_size, 120) // 2) == 0, "half a batch is no step"


def test_the_learning_rate_warms_up_and_ends_near_zero(course: Course) -> None:
    course = replace(course, batch_size=1)
    rates = [course.lr_at(step) for step in range(course.steps)]
    peak = rates.index(max(rates))
    assert peak == pytest.approx(0.1 * course.steps, abs=2) and max(rates) == pytest.approx(
        0.01, rel=0.01
    )
    assert 0 < rates[0] <= 0.001 and 0 <= rates[-1] < 1e-5
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(
        rates[peak:], reverse=True
    )
    assert rates[int(0.55 * course.steps)] == pytest.approx(0.005, rel=0.02), (
        "half-way down a cosine"
    )


def test_the_order_is_numpys_permutation_for_the_seed_and_the_epoch(course: Course) -> None:
    for step in (0, 9, 7, 8):  # back and forth between two epochs
        epoch, batch = divmod(step, 8)
        order = np.random.default_rng((0, epoch)).permutation(120)
        assert seen(course, range(step, step + 1)) == sorted(order[16 * batch : 16 * batch + 16])


def test_an_epoch_is_shuffled_once_and_not_for_every_batch(
    course: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    shuffled: list[int] = []

    class Counting(np.random.Generator):
        def permutation(self, x: Any, axis: int = 0) -> Any:
            shuffled.append(x)
            return super().permutation(x, axis)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Counting(np.random.PCG64(seed)))
    seen(replace(course, seed=12345), range(16))
    assert shuffled == [120, 120], "two epochs"


def test_training_maps_no_photos_into_memory(course: Course) -> None:
    net = network("tinyvgg")
    parameters.share_parameters(net)
    momentum = parameters.create_momentum_buffers(net, 1, None)
    train = hogwild.trainer(net, momentum[0], course)
    maps = ForkedCall(lambda: train(0) and Path("/proc/self/maps").read_text()).result()
    assert "libtorch" in maps and "pixels.npy" not in maps


def test_a_batch_is_the_same_whoever_makes_it(course: Course) -> None:
    first, labels = course.batch(11)

    def batch() -> tuple[Any, Any]:
        course.batch(3)
        pixels, labels = course.batch(11)
        return pixels.numpy(), labels.numpy()

    again, same = ForkedCall(batch).result()
    assert np.array_equal(first.numpy(), again) and np.array_equal(labels.numpy(), same)
    assert not torch.equal(first, replace(course, seed=1).batch(11)[0])


# --- training


def network(arch: str) -> Any:
    torch.manual_seed(0)
    net = model.build(arch, 5, SIZE, FAST)
    net.load_pretrained()
    return net


@dataclass
class Trained:
    results: dict[int, hogwild.Result]
    weights: torch.Tensor
    momentum: torch.Tensor


def train_in_workers(
    net: Any, course: Course, count: int, *parts: range, momentum: torch.Tensor | None = None
) -> Trained:
    """Train on the steps of `parts`, one after the other; `momentum` as saved."""
    parameters.share_parameters(net)
    buffers = parameters.create_momentum_buffers(net, count, momentum)
    with Workers(
        count, lambda rank: {"train": hogwild.trainer(net, buffers[rank], course)}
    ) as workers:
        answers = [answer for steps in parts for answer in workers.run("train", steps)]
    assert len({step for step, _ in answers}) == len(answers)
    return Trained(dict(answers), flat(net.state_dict()), buffers.clone())


def plain_sgd(net: Any, course: Course, steps: range) -> tuple[Any, list[float]]:
    """The loop that one worker must equal: no processes, no shared memory."""
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        trained,
        lr=1,
        momentum=course.momentum,
        nesterov=True,
        weight_decay=hogwild.WEIGHT_DECAY,
        fused=True,
    )
    losses = []
    for step in steps:
        pixels, labels = course.batch(step)
        optimizer.param_groups[0]["lr"] = course.lr_at(step)
        loss = F.cross_entropy(net(pixels) + course.log_prior, labels)
        optimizer.zero_grad()
        loss.backward()
        if net.pretrained:
            hogwild.adaptive_clip_grad(trained)
        else:
            torch.nn.utils.clip_grad_norm_(trained, hogwild.NORM)
        optimizer.step()
        losses.append(loss.item())
    return flat(net.state_dict()).numpy(), losses


@pytest.mark.parametrize(
    ("counts", "strong"), [((30, 30, 20), False), ((99, 50, 10), False), ((100, 50, 10), True)]
)
def test_rare_classes_weigh_as_much_as_others_where_sizes_differ_strongly(
    counts: tuple[int, ...], strong: bool
) -> None:
    labels = np.repeat(np.arange(3), counts)
    prior = log_prior(labels, 3)
    logits = torch.zeros(len(labels), 3, requires_grad=True)
    F.cross_entropy(logits + prior, torch.from_numpy(labels)).backward()
    assert logits.grad is not None
    pull = (
        logits.grad.sum(0).abs().max()
    )  # of undecided logits: towards the large classes, or towards none
    assert (pull < 1e-6) == strong


def test_a_gradient_is_clipped_to_a_share_of_the_weights_it_moves() -> None:
    large, small = (
        torch.nn.Parameter(torch.full((4,), 3.0)),
        torch.nn.Parameter(torch.full((4,), 3.0)),
    )
    large.grad, small.grad = torch.full((4,), -50.0), torch.full((4,), 0.001)
    hogwild.adaptive_clip_grad([large, small])
    assert torch.allclose(large.grad, torch.full((4,), -3.0 * hogwild.CLIP)), (
        "shortened, not turned"
    )
    assert torch.equal(small.grad, torch.full((4,), 0.001)), "left alone"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_one_worker_equals_plain_sgd(arch: str, course: Course) -> None:
    net, steps = network(arch), range(4, 12)  # over the end of an epoch
    course = replace(course, pretrained=net.pretrained)
    before = flat(net.state_dict())
    expected, losses = ForkedCall(plain_sgd, net, course, steps).result()
    trained = train_in_workers(net, course, 1, steps)
    assert [(step, result.images, result.loss) for step, result in trained.results.items()] == [
        (step, 8 if step == 7 else 16, loss) for step, loss in zip(steps, losses, strict=True)
    ]
    assert np.array_equal(trained.weights, expected)
    assert (trained.weights - before).abs().max() > 1e-4


def test_momentum_goes_on_where_it_was_saved(course: Course) -> None:
    whole = train_in_workers(network("tinyvgg"), course, 1, range(6))
    net = network("tinyvgg")
    half = train_in_workers(net, course, 1, range(3))
    rest = train_in_workers(net, course, 1, range(3, 6), momentum=half.momentum)
    assert torch.equal(rest.weights, whole.weights) and not torch.equal(half.weights, whole.weights)


@pytest.mark.parametrize("workers", [1, 3])
def test_momentum_of_another_number_of_workers_is_used_as_far_as_it_goes(workers: int) -> None:
    net = network("tinyvgg")
    saved = torch.arange(2.0)[:, None].expand(2, sum(p.numel() for p in net.parameters())) + 1
    buffers = parameters.create_momentum_buffers(net, workers, saved)
    assert buffers.is_shared() and buffers[:, 0].tolist() == [1, 2, 0][:workers]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_sharing_keeps_the_weights_and_shares_every_parameter(arch: str) -> None:
    net = network(arch)
    before = flat(net.state_dict())
    parameters.share_parameters(net)
    assert all(p.is_shared() for p in net.parameters())
    assert torch.equal(flat(net.state_dict()), before)


def test_two_workers_train_on_every_photo_once_an_epoch_and_both_take_part(course: Course) -> None:
    net = network("tinyvgg")
    before = flat(net.state_dict())
    trained = train_in_workers(net, course, 2, range(8), range(8, 16))
    assert sorted(trained.results) == list(range(16))
    assert sum(result.images for result in trained.results.values()) == 2 * 120
    assert not torch.equal(trained.weights, before)
    assert (trained.momentum != 0).any(dim=1).tolist() == [True, True]


# --- workers


def log_to(file: Path) -> Callable[[str], None]:
    """A function that notes a line in a file, from any process."""
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(text: str) -> None:
        os.write(handle, f"{text}\n".encode())

    return note


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_every_item_is_done_exactly_once(log: Path) -> None:
    note = log_to(log)

    def job(item: int) -> int:
        note(f"{item} {os.getpid()}")
        time.sleep(0.002)
        return item * item

    with Workers(2, lambda rank: {"square": job}) as workers:
        for items in (range(40), range(40, 45), range(0)):
            assert sorted(workers.run("square", items)) == [(n, n * n) for n in items]
    done = [line.split() for line in log.read_text().splitlines()]
    assert sorted(int(item) for item, _ in done) == list(range(45))
    assert len({pid for _, pid in done}) == 2 and str(os.getpid()) not in {pid for _, pid in done}


def test_items_are_taken_only_when_a_worker_wants_them() -> None:
    taken = []

    def items() -> Iterator[int]:
        for n in range(1000):
            taken.append(n)
            yield n

    with Workers(2, lambda rank: {"work": lambda item: item}) as workers:
        for answered, _ in enumerate(workers.run("work", items()), start=1):
            assert len(taken) <= answered + 2 * 2
    assert answered == 1000


def test_as_many_items_as_workers_are_done_side_by_side() -> None:
    together = FORK.Barrier(3)

    def prepare(rank: int) -> dict[str, Callable[[int], int]]:
        def job(item: int) -> int:
            together.wait(60)  # for the others to be at it, too
            return rank

        return {"work": job}

    with Workers(3, prepare) as workers:
        assert sorted(rank for _, rank in workers.run("work", range(3))) == [0, 1, 2]


def test_a_slow_worker_gets_fewer_items() -> None:
    others_are_done = FORK.Event()

    def prepare(rank: int) -> dict[str, Callable[[int], int]]:
        def job(item: int) -> int:
            assert rank == 1 or others_are_done.wait(60)
            return rank

        return {"work": job}

    shares: Counter[int] = Counter()
    with Workers(2, prepare) as workers:
        for _, rank in workers.run("work", range(60)):
            shares[rank] += 1
            if shares[1] == 60 - MAX_IN_FLIGHT:
                others_are_done.set()
    assert shares == {0: MAX_IN_FLIGHT, 1: 60 - MAX_IN_FLIGHT}


def test_a_killed_worker_costs_one_batch(log: Path, course: Course) -> None:
    """It is replaced, all steps get done, and what is done again is no more than the batch that it was working on."""
    net, note = network("tinyvgg"), log_to(log)
    parameters.share_parameters(net)
    momentum = parameters.create_momentum_buffers(net, 2, None)

    def prepare(rank: int) -> dict[str, Callable[[int], Any]]:
        train = hogwild.trainer(net, momentum[rank], course)

        def job(step: int) -> Any:
            note(str(step))
            return train(step)

        return {"train": job}

    with Workers(2, prepare) as workers:
        before = descendants(os.getpid())
        results = []
        for step, result in workers.run("train", range(16)):
            results.append((step, result.images))
            if len(results) == 5:
                os.kill(min(before), signal.SIGKILL)
        after = descendants(os.getpid())
    assert sorted(results) == [(step, 8 if step % 8 == 7 else 16) for step in range(16)]
    assert len(before) == len(after) == 2 and len(before & after) == 1
    begun = Counter(log.read_text().split())
    assert set(begun) == {str(step) for step in range(16)}
    assert sum(begun.values()) <= 16 + 1


def test_a_worker_that_dies_with_every_answer_still_loses_no_item(log: Path) -> None:
    note = log_to(log)

    def job(item: int) -> int:
        if (
            f"{item}\n" not in log.read_text()
        ):  # each item kills one worker, and is then done by the next
            note(str(item))
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with Workers(2, lambda rank: {"work": job}) as workers:
        assert sorted(workers.run("work", range(9))) == [(n, n) for n in range(9)]


@pytest.mark.parametrize(
    ("last_words", "said"),
    [
        (
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            "a worker died 3 times in a row (SIGKILL); memory ran out: use fewer --workers",
        ),
        (lambda: os._exit(7), "a worker died 3 times in a row (exit code 7)"),
    ],
)
def test_three_deaths_in_a_row_are_given_up_on(
    last_words: Callable[[], None], said: str, log: Path
) -> None:
    note = log_to(log)

    def job(item: int) -> None:
        note(str(item))
        last_words()

    with pytest.raises(BadInput) as error, Workers(1, lambda rank: {"work": job}) as workers:
        list(workers.run("work", range(5)))
    assert str(error.value).startswith(said)
    assert log.read_text().split() == ["0"] * 3
    assert not descendants(os.getpid())


def test_deaths_are_no_longer_in_a_row_after_an_answer(log: Path) -> None:
    note = log_to(log)

    def job(item: int) -> int:
        note(str(item))
        if log.read_text().split().count(str(item)) <= 2:
            os._exit(1)
        return item

    with Workers(1, lambda rank: {"work": job}) as workers:
        assert sorted(workers.run("work", range(4))) == [(n, n) for n in range(4)]


def test_a_death_that_is_accounted_for_does_not_count(log: Path) -> None:
    note = log_to(log)
    blamed: list[tuple[int, int]] = []

    def job(item: int) -> int:
        note(str(item))
        if len(log.read_text().split()) <= 5:
            os.kill(os.getpid(), signal.SIGUSR1)
        return item

    def on_worker_death(rank: int, code: int) -> bool:
        blamed.append((rank, code))
        return True

    with Workers(1, lambda rank: {"work": job}, on_worker_death) as workers:
        assert list(workers.run("work", range(1))) == [(0, 0)]
    assert blamed == [(0, -signal.SIGUSR1)] * 5


def test_where_memory_runs_out_the_kernel_takes_a_worker_first() -> None:
    with Workers(
        1, lambda rank: {"score": lambda item: Path("/proc/self/oom_score_adj").read_text()}
    ) as workers:
        assert list(workers.run("score", range(1))) == [(0, "500\n")]
    assert int(Path("/proc/self/oom_score_adj").read_text()) < 500


@pytest.mark.parametrize("where", ["prepare", "job"])
def test_what_a_job_raises_is_raised_in_the_parent_and_tells_where(where: str) -> None:
    def no_space(item: int) -> NoReturn:
        raise OSError(28, "No space left on device", "pixels.npy")

    def prepare(rank: int) -> dict[str, Callable[[int], Any]]:
        return {"work": no_space} if where == "job" else no_space(rank)

    with pytest.raises(OSError, match="No space left") as error, Workers(2, prepare) as workers:
        list(workers.run("work", range(5)))
    assert error.value.filename == "pixels.npy"
    assert "in no_space" in error.value.__notes__[0]
    assert not descendants(os.getpid())


@pytest.mark.parametrize("done", [0, 1, 7])
def test_once_paused_no_more_is_handed_out_and_what_was_done_is_a_prefix(done: int) -> None:
    results: list[int] = []
    with Workers(2, lambda rank: {"work": lambda item: item}) as workers:
        for item, _ in workers.run("work", range(100), pause=lambda: len(results) >= done):
            results.append(item)
        assert sorted(results) == list(range(len(results)))
        assert done <= len(results) <= done + 4
        rest = [item for item, _ in workers.run("work", range(len(results), 100))]
    assert sorted(results + rest) == list(range(100))


def test_workers_are_gone_after_the_with_block() -> None:
    with Workers(3, lambda rank: {"work": lambda item: item}) as workers:
        list(workers.run("work", range(3)))
        assert len(descendants(os.getpid())) == 3
    assert not descendants(os.getpid())


def test_busy_workers_are_killed_after_an_error() -> None:
    """Idle ones are given 5 s to end by themselves; these would be done in less."""
    with (
        pytest.raises(ZeroDivisionError),
        Workers(2, lambda rank: {"work": lambda item: time.sleep(4 * (item > 0))}) as workers,
    ):
        for _ in workers.run("work", range(4)):
            raise ZeroDivisionError
    assert [slot.process.exitcode for slot in workers.slots] == [-signal.SIGKILL] * 2
    assert not descendants(os.getpid())


@pytest.fixture
def python_sigint() -> Iterator[None]:
    """Python's own handler, also where these tests run in the background and were told to ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_sigint")
def test_ctrl_c_is_left_to_the_parent() -> None:
    def interrupt(item: int) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return item

    with Workers(1, lambda rank: {"work": interrupt}) as workers:
        assert list(workers.run("work", range(3))) == [(n, n) for n in range(3)]
        assert workers.slots[0].deaths == 0


@pytest.fixture
def orphans(log: Path) -> Iterator[set[int]]:
    """Workers, one busy and one idle, whose parent has been killed without a chance to tell them."""
    note = log_to(log)

    def job(item: int) -> None:
        note(str(item))
        time.sleep(0.3 * item)

    def parent() -> None:
        with Workers(2, lambda rank: {"work": job}) as workers:
            for _ in workers.run("work", range(2)):
                pass

    process = FORK.Process(target=parent)
    process.start()
    wait_until(lambda: log.exists() and len(log.read_text().split()) == 2)
    assert process.pid
    found = descendants(process.pid)
    process.kill()
    process.join()
    yield found
    for pid in filter(is_running, found):
        os.kill(pid, signal.SIGKILL)


def test_workers_end_when_their_parent_is_killed(orphans: set[int]) -> None:
    assert len(orphans) == 2
    wait_until(lambda: not any(map(is_running, orphans)))
