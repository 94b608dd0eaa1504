"""Read photos in worker processes: a hostile photo may crash or hang a worker, but not the run."""

import mmap
import os
import resource
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeVar

import numpy as np
from tqdm import tqdm

from hogwear.data import decoding
from hogwear.data.decoding import Limits, TransientReason
from hogwear.system import machine
from hogwear.system.arrays import UInt8Array
from hogwear.system.paths import Paths
from hogwear.system.workers import MAX_IN_FLIGHT, Jobs, Workers

BYTES_PER_PIXEL, MIN_BYTES = 24, 512 << 20  # memory for a photo; valid ones take at most 18
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
IDLE = -1  # in place of a row: this worker is not reading a photo
MAX_PHOTOS_PER_ITEM = 64  # where photos are read but not decoded into the cache

tqdm.monitor_interval = 0  # its thread is the only thing that would make forking unsafe

T = TypeVar("T")
Reader = Callable[[BinaryIO], T]


def limit_resources(limits: Limits) -> None:
    """In a worker that is about to read photos: limit what a hostile one can do."""
    warnings.simplefilter("ignore")  # Pillow's warnings about strange photos
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    lower_limit(resource.RLIMIT_CORE, 0)
    with suppress(FileNotFoundError):  # only Linux has /proc, and enforces this limit
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        photo = max(MIN_BYTES, int(BYTES_PER_PIXEL * 1e6 * limits.megapixels))
        lower_limit(resource.RLIMIT_AS, mapped + photo + limits.megabytes * 1_000_000)


def read_guarded(read: Callable[[], T], limits: Limits) -> T | str:
    """In such a worker: what `read` returns, or the reason why it fails.

    If it takes too long, or crashes, the worker dies: see describe_death.
    """
    # The signal ends the process; a handler in Python would wait for a decoder in C to return
    signal.setitimer(signal.ITIMER_PROF, limits.seconds)
    try:
        return read()
    except Exception as error:  # a decoder fed with hostile files may raise anything
        reason = decoding.describe_error(error)
        return TransientReason(reason) if decoding.is_transient(error) else reason
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def describe_death(exitcode: int, limits: Limits) -> str:
    """What a photo did to the worker that read it; empty if it may not be the photo's fault."""
    if -exitcode == signal.SIGPROF:
        return f"takes more than {limits.seconds:g} s to decode"
    if -exitcode in CRASHES:
        return f"its decoder crashed ({signal.Signals(-exitcode).name})"
    return ""


class SafeReader:
    """Reads photos in forked workers. A photo that crashes or blocks its worker is rejected.

    It costs at most `limits.seconds`, and the other items of its worker are done again. A worker
    that was killed in another way is not the photo's fault: Workers counts it.
    """

    def __init__(
        self, paths: Paths, limits: Limits, processes: int, within: Iterable[Path]
    ) -> None:
        self.paths, self.limits, self.processes = paths, limits, processes
        self.within = frozenset(map(os.path.realpath, within))
        self.rank = IDLE  # in a worker: its rank
        self.rejected: dict[int, str] = {}  # {row: reason}; a new worker inherits it
        # (processes,), shared: what each is reading
        self.current_rows = np.frombuffer(mmap.mmap(-1, 8 * processes), np.int64)
        self.current_rows[:] = IDLE

    def workers(self, jobs: Jobs) -> Workers:
        """Workers for jobs that call `read`."""

        def prepare(rank: int) -> Jobs:
            self.rank = rank
            limit_resources(self.limits)
            return jobs

        return Workers(self.processes, prepare, self.on_worker_death)

    def read(self, row: int, reader: Reader[T]) -> T | str:
        """In a worker: what the reader returns for the photo's open file, or the reason why not."""
        if row in self.rejected:
            return self.rejected[row]

        def open_and_read() -> T:
            with decoding.open_photo(self.paths[row], self.limits, self.within) as file:
                return reader(file)

        self.current_rows[self.rank] = row
        try:
            return read_guarded(open_and_read, self.limits)
        finally:
            self.current_rows[self.rank] = IDLE

    def on_worker_death(self, rank: int, exitcode: int) -> bool:
        """Reject the photo that killed a worker. False if none did: anyone can send SIGKILL."""
        row, reason = int(self.current_rows[rank]), describe_death(exitcode, self.limits)
        self.current_rows[rank] = IDLE
        if row == IDLE or not reason:
            return False
        self.rejected[row] = reason
        return True


class SafeDecoder(SafeReader):
    """Decodes photos in forked workers.

    decoder = SafeDecoder(paths, 160, LIMITS, processes, within=[data_dir])
    with decoder.workers({"decode": decoder.decode}) as workers:
        dict(workers.run("decode", range(len(paths))))  # {row: pixels or the reason why not}
    """

    def __init__(
        self, paths: Paths, size: int, limits: Limits, processes: int, within: Iterable[Path]
    ) -> None:
        super().__init__(paths, limits, processes, within)
        self.size = size

    def decode(self, row: int) -> UInt8Array | str:
        """In a worker: the photo as decoding.decode returns it, or the reason why not."""
        return self.read(row, lambda file: decoding.decode(file, self.size, self.limits))


def read_all(
    paths: Paths, root: Path, limits: Limits, reader: Reader[T], description: str
) -> Iterator[tuple[int, T | str]]:
    """Call the reader with each open photo, on all CPUs and with a progress bar.

    Yields (row, result or the reason why not) in the order of completion. Links may not lead out of
    `root`.
    """
    if not len(paths):
        return
    safe = SafeReader(paths, limits, min(machine.cpus(), len(paths)), within=[root])
    chunk = chunk_size(len(paths), safe.processes, MAX_PHOTOS_PER_ITEM)

    def read_chunk(start: int) -> list[T | str]:
        return [safe.read(row, reader) for row in range(start, min(start + chunk, len(paths)))]

    with (
        safe.workers({"read": read_chunk}) as workers,
        show_progress(len(paths), description, None) as bar,
    ):
        for start, results in workers.run("read", range(0, len(paths), chunk)):
            yield from enumerate(results, start)
            bar.update(len(results))


def show_progress(photos: int, description: str, disable: bool | None) -> "tqdm[NoReturn]":
    """A progress bar; `disable` None shows it only on a terminal."""
    return tqdm(
        total=photos, desc=description, unit=" photos", disable=disable, delay=0.5, leave=False
    )


def chunk_size(photos: int, processes: int, most: int) -> int:
    """The number of photos per item of work, so that each process gets some."""
    return max(1, min(most, -(-photos // (MAX_IN_FLIGHT * processes))))


def lower_limit(resource_id: int, limit: int) -> None:
    """Lower a resource limit of this process, unless it is lower already."""
    soft, hard = resource.getrlimit(resource_id)
    if soft == resource.RLIM_INFINITY or soft > limit:
        resource.setrlimit(resource_id, (limit, hard))
