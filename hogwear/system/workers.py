"""Worker processes, each with a pipe of numbered items. Dead workers are replaced; no locks.

The parent keeps two items in each worker's pipe and reads the results, so a slow worker gets fewer
items. A killed worker (a hostile photo, the OOM killer) costs only the items it had in flight,
which are handed out again. An exception in a job is no death: it is raised again in the parent.

Workers are forked: that takes milliseconds, and they inherit everything they work on. It is safe
because the parent stays single-threaded: it computes nothing itself (docs/decisions/fork.md).
"""

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, TypeVar, cast

from hogwear.system.errors import BadInput

Jobs = Mapping[str, Callable[[int], Any]]
OnWorkerDeath = Callable[[int, int], bool]
MAX_IN_FLIGHT = 2  # items per worker: the one it works on and the next, so that it never waits
MAX_DEATHS = 3  # of one worker in a row
Result = TypeVar("Result")
FORK = multiprocessing.get_context("fork")


class Slot:
    """One worker: its process, the parent's end of its pipe, and its items without a result yet."""

    process: ForkProcess
    pipe: Connection

    def __init__(self) -> None:
        self.in_flight: deque[tuple[str, int]] = deque()
        self.deaths = 0


class Workers:
    """`count` processes. Each calls `prepare(rank)`, which returns its jobs, {name: function}.

        with Workers(2, lambda rank: {"square": lambda n: n * n}) as workers:
            dict(workers.run("square", range(10)))

    The workers end with the with-block, and also when the parent is gone. When one has died, the
    parent calls `on_worker_death(rank, exitcode)` before it starts another. If that returns True,
    the cause is dealt with and the death does not count.
    """

    def __init__(
        self,
        count: int,
        prepare: Callable[[int], Jobs],
        on_worker_death: OnWorkerDeath = lambda rank, exitcode: False,
    ) -> None:
        self.prepare, self.on_worker_death = prepare, on_worker_death
        self.slots = [Slot() for _ in range(count)]

    def run(
        self, job: str, items: Iterable[int], pause: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, Any]]:
        """Start a job on the first items now; the iterator gives (item, result) as results arrive.

        Once `pause()` is true, no more items are handed out. The iterator ends when every item in
        flight has its result, so the items that are done are always a prefix of `items`.
        Raises what a job raised, and BadInput when the same worker dies three times in a row.
        """
        waiting = iter(items)
        self.hand_out(job, waiting, pause)
        return self.collect(job, waiting, pause)

    def hand_out(self, job: str, waiting: Iterator[int], pause: Callable[[], bool]) -> None:
        """Fill the workers' pipes, always that of the idlest worker first."""
        while not pause():
            idlest = min(self.slots, key=lambda slot: len(slot.in_flight))
            if len(idlest.in_flight) == MAX_IN_FLIGHT or (item := next(waiting, None)) is None:
                return
            self.send(idlest, job, item)

    def collect(
        self, job: str, waiting: Iterator[int], pause: Callable[[], bool]
    ) -> Iterator[tuple[int, Any]]:
        """The results of what is in flight, and of more items as there is room for them."""
        while busy := {slot.pipe: slot for slot in self.slots if slot.in_flight}:
            for pipe in wait(list(busy), timeout=1.0):  # a dead worker's pipe is ready, with EOF
                slot = busy[pipe]  # type: ignore[index]
                try:
                    item, result = slot.pipe.recv()
                except (EOFError, ConnectionResetError):
                    self.replace(slot)
                    continue
                slot.in_flight.remove((job, item))
                slot.deaths = 0
                if isinstance(result, Exception):
                    raise result
                yield item, result
            self.hand_out(job, waiting, pause)

    def send(self, slot: Slot, job: str, item: int) -> None:
        slot.in_flight.append((job, item))
        with suppress(BrokenPipeError):  # it has just died: `collect` notices and sends it again
            slot.pipe.send((job, item))

    def start(self, slot: Slot) -> None:
        slot.pipe, pipe = FORK.Pipe()
        rank = self.slots.index(slot)
        process = FORK.Process(target=self.run_worker, args=(rank, pipe), daemon=True)
        try:
            process.start()
        except OSError as error:
            raise BadInput(
                f"cannot start another worker process ({error.strerror}): use fewer --workers, or "
                "allow more processes and memory (HOGWEAR_PIDS and HOGWEAR_MEMORY in compose)"
            ) from error
        finally:
            pipe.close()
        slot.process = process

    def run_worker(self, rank: int, pipe: Connection) -> None:
        """In the worker process: do jobs until the parent closes the pipe or is gone."""
        for slot in self.slots:  # inherited; nobody would see EOF while we held the parent's ends
            with suppress(AttributeError, OSError):
                slot.pipe.close()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with suppress(OSError):  # out of memory, the kernel should kill a worker, not the parent
            Path("/proc/self/oom_score_adj").write_text("500")
        jobs = catch(self.prepare, rank)
        with suppress(EOFError, BrokenPipeError, ConnectionResetError):
            while True:
                job, item = pipe.recv()
                pipe.send((item, jobs if isinstance(jobs, Exception) else catch(jobs[job], item)))

    def bury(self, slot: Slot) -> int:
        """The exit code of a dead worker, of which nothing remains."""
        slot.process.join()
        slot.pipe.close()
        code = slot.process.exitcode
        assert code is not None
        return code

    def replace(self, slot: Slot) -> None:
        """Start a new process in place of a dead one, and give it the same items."""
        code = self.bury(slot)
        slot.deaths += not self.on_worker_death(self.slots.index(slot), code)
        if slot.deaths == MAX_DEATHS:
            cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            problem = f"a worker died {MAX_DEATHS} times in a row ({cause})"
            if code == -signal.SIGKILL:
                problem += "; memory ran out: use fewer --workers or a smaller --batch-size"
            raise BadInput(problem)
        lost, slot.in_flight = slot.in_flight, deque()
        self.start(slot)
        for job, item in lost:
            self.send(slot, job, item)

    def __enter__(self) -> "Workers":
        try:
            for slot in self.slots:
                self.start(slot)
        except BaseException as error:
            self.__exit__(error)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        started = [slot for slot in self.slots if hasattr(slot, "process")]
        for slot in started:
            slot.pipe.close()
        for slot in started:
            slot.process.join(timeout=0 if any(error) else 5)
            slot.process.kill()
            slot.process.join()


def call_in_worker(function: Callable[[], Result]) -> Result:
    """The function's result, computed in a process of its own, which may use threads and memory."""
    with Workers(1, lambda rank: {"call": lambda item: function()}) as workers:
        [(_, result)] = workers.run("call", range(1))
    return cast(Result, result)


def catch(function: Callable[[int], Any], argument: int) -> Any:
    """The function's result, or the exception it raises, with the traceback as a note."""
    try:
        return function(argument)
    except Exception as error:
        error.add_note(traceback.format_exc())
        return error
