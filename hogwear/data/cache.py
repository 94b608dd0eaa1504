"""The cache of photos: each is decoded once, on all CPUs, while the program does other work.

decoding = cache.start(photos.train, 160)  # forks the workers
import model                               # takes seconds
train = decoding.finish()
"""

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hogwear.data.cache_folder import CacheFolder, CacheWriter
from hogwear.data.decoding import LIMITS, Limits
from hogwear.data.photos import Split
from hogwear.data.pixels import ALL_ROWS, Pixels
from hogwear.data.safe_decoder import SafeReader, chunk_size
from hogwear.system import machine
from hogwear.system.arrays import Int64Array
from hogwear.system.errors import naming

MAX_PHOTOS_PER_ITEM = 512  # which may take a worker seconds
SECONDS_BETWEEN_TRIES = 0.2  # while another process decodes the same photos

OnProgress = Callable[[int], object]


@dataclass(frozen=True)
class PhotoCache:
    """All decoded photos. Missing ones are decoded by `processes` workers, within the limits."""

    folder: Path
    limits: Limits = LIMITS
    processes: int = field(default_factory=lambda: machine.cpus())

    def start(self, split: Split, size: int, part: slice = ALL_ROWS) -> "DecodingJob":
        """Start decoding what is missing of a split, or of a part of its rows."""
        return DecodingJob(self, split, size, part)

    def open(
        self,
        split: Split,
        size: int,
        part: slice = ALL_ROWS,
        on_progress: OnProgress = lambda count: None,
    ) -> Pixels:
        """The pixels of a split, or of a part of its rows. Raises like DecodingJob.finish."""
        return self.start(split, size, part).finish(on_progress)

    def open_if_complete(self, split: Split, size: int) -> Pixels | None:
        """The split's pixels if all of them are there; nothing is decoded."""
        folder = CacheFolder.locate(self.folder, split, size, self.limits)
        return folder.open_pixels() if folder.is_complete(ALL_ROWS) else None


class DecodingJob:
    """Photos that worker processes decode into the cache; `finish` waits for them."""

    def __init__(self, cache: PhotoCache, split: Split, size: int, part: slice) -> None:
        self.cache, self.part = cache, part
        self.folder = CacheFolder.locate(cache.folder, split, size, cache.limits)
        self.resources = ExitStack()  # the lock, and the workers
        self.writer: CacheWriter | None = None
        self.rows: Int64Array  # (k,), to be decoded
        # (start of a chunk, {row: why it is skipped})
        self.results: Iterator[tuple[int, dict[int, str]]]
        self.is_blocked = not self.try_start()  # by another process

    def try_start(self) -> bool:
        """Fork the workers if photos are missing. False if another process is decoding them."""
        if self.folder.is_complete(self.part):
            return True
        slot = self.folder.path.parent
        slot.mkdir(parents=True, exist_ok=True)
        with ExitStack() as resources:
            lock = resources.enter_context((slot / "lock").open("a"))
            try:  # not flock: forked workers would hold that, too
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return False
            if not self.folder.is_complete(self.part):  # perhaps the other process has decoded it
                resources.enter_context(removed_on_error(self.folder.path))
                self.fork_workers(resources)
            self.resources = resources.pop_all()
        return True

    def fork_workers(self, resources: ExitStack) -> None:
        cache, folder, split = self.cache, self.folder, self.folder.split
        self.obsolete = folder.others()
        self.writer = writer = CacheWriter(folder)
        self.rows = rows = folder.missing_rows(writer.decoded, self.part)
        reader = SafeReader(split.paths, cache.limits, cache.processes, within=[split.root])
        self.chunk = chunk = chunk_size(len(rows), cache.processes, MAX_PHOTOS_PER_ITEM)

        def decode_chunk(start: int) -> dict[int, str]:
            chunk_rows = rows[start : start + chunk].tolist()
            return {row: why for row in chunk_rows if (why := writer.decode(row, reader))}

        workers = resources.enter_context(reader.workers({"decode": decode_chunk}))
        self.results = workers.run("decode", range(0, len(rows), chunk))

    def cancel(self) -> None:
        """Stop decoding; photos decoded so far may be decoded again."""
        self.resources.close()

    def finish(self, on_progress: OnProgress = lambda count: None) -> Pixels:
        """Wait until the photos are decoded, and open them.

        `on_progress(count)` is called with how many more are done, and with 0 while another process
        decodes them. Raises BadInput for a class without a readable photo, if the part is the whole
        split, and OSError when the disk is full.
        """
        while self.is_blocked:
            time.sleep(SECONDS_BETWEEN_TRIES)
            on_progress(0)
            self.is_blocked = not self.try_start()
        if self.writer is None:
            return self.folder.open_pixels(self.part)
        with self.resources:
            on_progress(len(range(len(self.folder.split))[self.part]) - len(self.rows))
            for start, skipped in self.results:
                rows = self.rows[start : start + self.chunk]
                on_progress(len(rows))
                self.writer.add(rows, skipped)
            self.writer.finish()
            for folder in self.obsolete:
                shutil.rmtree(folder, ignore_errors=True)
        return self.folder.open_pixels(self.part, self.writer.unread)


@contextmanager
def removed_on_error(folder: Path) -> Iterator[None]:
    """Remove the folder on OSError: half a cache would keep a full disk full."""
    try:
        with naming(folder):
            yield
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
