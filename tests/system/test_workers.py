"""Worker processes: every item is done exactly once, whoever dies, and none outlives its parent."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from helpers import descendants, is_running, log_to, wait_until

from hogwear.system.errors import BadInput
from hogwear.system.workers import FORK, MAX_IN_FLIGHT, Workers


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
