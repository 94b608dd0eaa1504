"""Worker processes that are handed numbered items over a pipe each, replaced when they die, and never need a lock.

A worker asks for nothing and waits for nobody: the parent keeps two items in its pipe and reads the answers. So a slow
worker gets fewer items, and a killed one (a hostile photo, the OOM killer) costs only the items that it had, which
are handed out again; there is no lock that could die with it.

Workers are forked, which costs milliseconds and lets them inherit all they work on. That is safe because the parent
stays single-threaded: it computes nothing itself (docs/decisions/fork.md).

Exceptions are not deaths: what a job raises is raised again in the parent.
"""

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from hogwear.system.errors import BadInput

Jobs = Mapping[str, Callable[[int], Any]]
OnWorkerDeath = Callable[[int, int], bool]
MAX_IN_FLIGHT = 2  # items in a worker's hands: the one it works on and the next, so that it never waits for the parent
DEATHS_IN_A_ROW = 3
FORK = multiprocessing.get_context("fork")


class Slot:
    """One worker's place: its process, our end of its pipe, and the items it has been given and not yet answered."""

    process: Any
    pipe: Connection

    def __init__(self) -> None:
        self.given: deque[tuple[str, int]] = deque()
        self.deaths = 0


class Workers:
    """`count` processes; `prepare(rank)` is called in each and returns its jobs, {name: function of an item}.

        with Workers(2, lambda rank: {"square": lambda n: n * n}) as workers:
            dict(workers.run("square", range(10)))

    Leaving the with-block ends them. They also end by themselves when the parent is gone.

    `on_worker_death(rank, exitcode)` is called in the parent when a worker has died, before another takes its place; where it
    answers True the cause has been dealt with, and the death does not count.
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
        self,
        job: str,
        items: Iterable[int],
        pause: Callable[[], bool] = lambda: False,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Iterator[tuple[int, Any]]:
        """Yield (item, answer) as they come; once `pause()` is true hand out no more.

        `meanwhile` is called once, when the workers have their first items. Ends when all that was handed out is answered, so what has been done is always a prefix of `items`.
        Raises what a job raised, and BadInput when the same worker dies three times in a row.
        """
        waiting = iter(items)
        while True:
            while not pause():
                idlest = min(self.slots, key=lambda slot: len(slot.given))
                if len(idlest.given) == MAX_IN_FLIGHT or (item := next(waiting, None)) is None:
                    break
                self.give(idlest, job, item)
            busy = {slot.pipe: slot for slot in self.slots if slot.given}
            if not busy:
                return
            meanwhile, do_meanwhile = lambda: None, meanwhile
            do_meanwhile()
            for pipe in wait(
                list(busy), timeout=1.0
            ):  # a dead worker's pipe is ready too, with EOF
                slot = busy[pipe]  # type: ignore[index]
                try:
                    item, answer = slot.pipe.recv()
                except (EOFError, ConnectionResetError):
                    self.replace(slot)
                    continue
                slot.given.remove((job, item))
                slot.deaths = 0
                if isinstance(answer, Exception):
                    raise answer
                yield item, answer

    def give(self, slot: Slot, job: str, item: int) -> None:
        slot.given.append((job, item))
        with suppress(
            BrokenPipeError
        ):  # it has just died; `run` will notice, and hands its items out again
            slot.pipe.send((job, item))

    def start(self, slot: Slot) -> None:
        slot.pipe, theirs = FORK.Pipe()
        process = FORK.Process(target=self.work, args=(self.slots.index(slot), theirs), daemon=True)
        try:
            process.start()
        except OSError as error:
            raise BadInput(
                f"no process could be started for another worker ({error.strerror}): use fewer --workers, or allow "
                f"more processes and memory (HOGWEAR_PIDS and HOGWEAR_MEMORY in compose)"
            ) from error
        finally:
            theirs.close()
        slot.process = process

    def work(self, rank: int, pipe: Connection) -> None:
        """A worker's life."""
        for (
            slot
        ) in self.slots:  # the parent's ends, inherited: while we hold them, nobody would see it go
            with suppress(AttributeError, OSError):
                slot.pipe.close()
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # Ctrl-C reaches the whole terminal; the parent decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with suppress(
            OSError
        ):  # where memory runs out, the kernel shall take us, and not the parent
            Path("/proc/self/oom_score_adj").write_text("500")
        jobs = answer(self.prepare, rank)
        with suppress(EOFError, BrokenPipeError, ConnectionResetError):
            while True:
                job, item = pipe.recv()
                pipe.send((item, jobs if isinstance(jobs, Exception) else answer(jobs[job], item)))

    def replace(self, slot: Slot) -> None:
        """A new process for a dead one, with the same items to do."""
        slot.process.join()
        slot.pipe.close()
        code = slot.process.exitcode
        slot.deaths += not self.on_worker_death(self.slots.index(slot), code)
        if slot.deaths == DEATHS_IN_A_ROW:
            hint = "; memory ran out: use fewer --workers or a smaller --batch-size" * (
                code == -signal.SIGKILL
            )
            raise BadInput(
                f"a worker died {DEATHS_IN_A_ROW} times in a row ({last_words(code)}){hint}"
            )
        given, slot.given = slot.given, deque()
        self.start(slot)
        for job, item in given:
            self.give(slot, job, item)

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


def answer(function: Callable[[int], Any], argument: int) -> Any:
    """What the function returns, or the exception that it raises, with its traceback as a note."""
    try:
        return function(argument)
    except Exception as error:
        error.add_note(traceback.format_exc())
        return error


def last_words(exitcode: int) -> str:
    """What killed a process: "SIGKILL", or "exit code 1"."""
    return signal.Signals(-exitcode).name if exitcode < 0 else f"exit code {exitcode}"
