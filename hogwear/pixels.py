"""Photos as pixels: decoded once, by all CPUs, into a cache.

A cache is a folder <split>-<size>-<slot>/<key>/ with pixels.npy, (N, S, S, 3) uint8, signatures.npy, (N, 256) uint8, which tell near
duplicates (similar.py), skipped.json, {row: reason}, and leaked-<key>.json, how many of them are in the train of that key, too. As
long as rows are missing, because it was interrupted or because other machines have them, there is done.npy, (N,) bool; in the
files they are holes, which take no room. The key is a hash of every file's name, size, time and rights, and of the limits, so a
changed photo makes a new cache; the old one is then removed.
"""

import errno
import fcntl
import hashlib
import io
import json
import math
import os
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from hogwear import similar
from hogwear.dataset import Split
from hogwear.decoding import LIMITS, Guard, Limits
from hogwear.decoding import Array as Array
from hogwear.errors import BadInput, naming
from hogwear.files import write_atomically
from hogwear.workers import QUEUED, Workers

CACHE_VERSION = 3  # part of the key: raise it when `decode` gives other pixels, or `signature` others
LARGEST_CHUNK = 512  # photos in one order to a worker: with this few orders, it need not be answered for seconds

PIXELS, SIGNATURES, SKIPPED = "pixels.npy", "signatures.npy", "skipped.json"
DONE, NOTED_EVERY = "done.npy", 20.0  # seconds; what an interruption costs at the most

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
WHOLE = slice(None)


class Images:
    """The (N, S, S, 3) uint8 array in a .npy file (or any uint8 array of rows), read and written by row, also by processes forked after it was opened.

    It is not memory-mapped, because a page once touched counts as resident, and in the end all of the file would.
    """

    def __init__(self, file: Path, mode: str = "rb") -> None:
        self.file = file.open(mode, buffering=0)
        np.lib.format.read_magic(self.file)
        self.shape = np.lib.format.read_array_header_1_0(self.file)[0]
        self.start, self.stride = self.file.tell(), math.prod(self.shape[1:])

    def __getitem__(self, rows: Ints) -> Array:
        """A copy of these rows, (n, S, S, 3). Raises EOFError for one beyond the end of the file."""
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for image, row in zip(images, rows.tolist(), strict=True):
            if os.preadv(self.file.fileno(), [image], self.start + row * self.stride) < self.stride:
                raise EOFError(f"{self.file.name}: no row {row}")
        return images

    def __setitem__(self, row: int, image: Array) -> None:
        """Write one row, (S, S, 3). Raises OSError where the disk is full."""
        if os.pwrite(self.file.fileno(), image.data, self.start + row * self.stride) < self.stride:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.file.name)


@dataclass(frozen=True)
class Pixels:
    """The readable photos of one split."""

    file: Path  # pixels.npy, for other processes to open
    rows: Ints  # (n,) rows of the file that hold a photo
    labels: Ints  # (n,)
    skipped: dict[Path, str]  # {photo: why it was not read}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def images(self) -> Images:
        """The file, opened anew; index it with `rows`."""
        return Images(self.file)

    @property
    def signatures(self) -> Array:
        """(n, 256), as `rows`: similar.py."""
        return Images(self.file.with_name(SIGNATURES))[self.rows]

    @classmethod
    def open(
        cls,
        split: Split,
        size: int,
        cache_dir: Path,
        processes: int,
        on_photos: Callable[[int], object] = lambda count: None,
        meanwhile: Callable[[], object] = lambda: None,
        limits: Limits = LIMITS,
        part: slice = WHOLE,
    ) -> "Pixels":
        """The split's pixels, or those of a part of its rows, decoded now by so many processes unless the cache has them.

        `on_photos` is told how many more are done; `meanwhile` is called once while the processes decode, if they do.
        Raises BadInput for a class without one readable photo, where it is the whole split.
        """
        return cls.within(cached(split, size, cache_dir, processes, on_photos, meanwhile, limits, part), split, part)

    @classmethod
    def at_hand(cls, split: Split, size: int, cache_dir: Path, limits: Limits) -> "Pixels | None":
        """The split's pixels if the cache has them; nothing is decoded."""
        folder = place(split, size, cache_dir, limits)
        return cls.within(folder, split) if done(folder, len(split)).all() else None

    @classmethod
    def within(cls, folder: Path, split: Split, part: slice = WHOLE) -> "Pixels":
        """Those in a cache folder. Raises as `open`."""
        wanted = np.arange(len(split))[part]
        skipped = {int(row): why for row, why in json.loads((folder / SKIPPED).read_text()).items()}
        skipped = {row: why for row, why in skipped.items() if row in range(len(split))[part]}
        rows = np.setdiff1d(wanted, list(skipped))
        labels = split.labels[rows]
        if part == WHOLE and len(emptied := np.setdiff1d(split.labels, labels)):
            row = next(i for i in skipped if split.labels[i] in emptied)
            photo = split.paths[row]
            raise BadInput(f"{photo.parent}: no readable photo in this class ({photo.name}: {skipped[row]})")
        return cls(folder / PIXELS, rows, labels, {split.paths[i]: why for i, why in skipped.items()})


def cached(
    split: Split,
    size: int,
    cache_dir: Path,
    processes: int,
    on_photos: Callable[[int], object],
    meanwhile: Callable[[], object],
    limits: Limits,
    part: slice,
) -> Path:
    """The cache folder of this split at this size, in which this part is; one process at a time decodes into it."""
    folder = place(split, size, cache_dir, limits)
    parent = folder.parent
    if done(folder, len(split))[part].all():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / "lock").open("w") as lock:
        while not locked(lock):
            on_photos(0)
        if not done(folder, len(split))[part].all():
            others = [entry for entry in parent.iterdir() if entry.is_dir() and entry != folder]
            try:
                with naming(folder):
                    fill(folder, split, size, processes, on_photos, meanwhile, limits, part)
            except OSError:
                shutil.rmtree(folder, ignore_errors=True)  # half a cache would keep a full disk full
                raise
            for other in others:  # of photos as they were
                shutil.rmtree(other, ignore_errors=True)
    return folder


def locked(file: IO[str], wait: float = 0.2) -> bool:
    """Whether it is ours, after so many seconds at the most. Not flock: forked workers would hold it too, and may outlive us by seconds."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        time.sleep(wait)
        return False
    return True


def done(folder: Path, count: int) -> Bools:
    """Which rows a cache has: (count,)."""
    if not (folder / SKIPPED).exists():
        return np.zeros(count, bool)
    try:
        rows: Bools = np.load(folder / DONE)
    except FileNotFoundError:
        rows = np.ones(count, bool)
    return rows


def leaked(train: Pixels, held_out: Pixels) -> int:
    """How many photos of `held_out` are in `train`, too, exactly or nearly; kept beside them, for it takes 6 s with 200,000.

    Another process looks: the memory that takes is then free again.
    """
    known = held_out.file.with_name(f"leaked-{train.file.parent.name}.json")
    if not known.exists():
        with Workers(1, lambda rank: {"look": lambda item: similar.leaked(train.signatures, held_out.signatures)}) as workers:
            [(_, count)] = workers.run("look", [0])
        write_atomically(known, str(count).encode())
    return int(known.read_text())


def place(split: Split, size: int, cache_dir: Path, limits: Limits) -> Path:
    """Where the cache of the split as it is now belongs."""
    key = hashlib.sha256(f"{CACHE_VERSION} {size} {len(split)} {limits} ".encode() + split.paths.encoded)
    key.update(np.fromiter(map(fingerprint, split.paths.texts()), "Q, Q, Q", len(split)).tobytes())
    common = os.path.commonpath({path.rpartition("/")[0] for path in split.paths.texts()})  # of folders, because of 200,000 photos it takes a second
    slot = hashlib.sha256(os.fsencode(common)).hexdigest()[:12]
    return cache_dir / "pixels" / f"{split.name}-{size}-{slot}" / key.hexdigest()[:32]


def fingerprint(path: str) -> tuple[int, int, int]:
    """What changes with a photo: its size, its time and who may read it; all 0 for one that is not there."""
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):  # changes with its target, and when it gets another
            target = Path(path).stat()
            return target.st_size, (target.st_mtime_ns + status.st_mtime_ns) % 2**64, target.st_mode
    except OSError:
        return 0, 0, 0
    return status.st_size, status.st_mtime_ns % 2**64, status.st_mode  # a file can be older than 1970, and from beyond 2262


def fill(
    folder: Path,
    split: Split,
    size: int,
    processes: int,
    on_photos: Callable[[int], object],
    meanwhile: Callable[[], object],
    limits: Limits,
    part: slice,
) -> None:
    """Decode those photos of a part into `folder` that are not there yet."""
    ready = done(folder, len(split))
    if not (folder / SKIPPED).exists():
        begin(folder, len(split), size)
    skipped = {int(row): why for row, why in json.loads((folder / SKIPPED).read_text()).items() if ready[int(row)]}
    wanted = np.arange(len(split))[part]
    on_photos(int(ready[wanted].sum()))
    missing = wanted[~ready[wanted]]
    images, signatures = Images(folder / PIXELS, "r+b"), Images(folder / SIGNATURES, "r+b")
    guard = Guard(split.paths, size, limits, processes, within=[split.root])
    chunk = min(LARGEST_CHUNK, -(-len(missing) // (QUEUED * processes)))

    def decode_chunk(start: int) -> dict[int, str]:
        skipped = {}
        for row in missing[start : start + chunk].tolist():
            image = guard.decode(row)
            if isinstance(image, str):
                skipped[row] = image
            else:
                images[row] = image
                signatures[row] = similar.signature(image)
        return skipped

    def note() -> None:
        """On the disk first the pixels, then that they are there."""
        for written in images, signatures:
            os.fsync(written.file.fileno())
        write_atomically(folder / SKIPPED, json.dumps(skipped).encode())
        np.save(content := io.BytesIO(), ready)
        write_atomically(folder / DONE, content.getvalue())

    noted = time.monotonic()
    with guard.workers({"decode": decode_chunk}) as workers:
        for start, more in workers.run("decode", range(0, len(missing), chunk), meanwhile=meanwhile):
            rows = missing[start : start + chunk]
            skipped |= more
            ready[rows] = True
            on_photos(len(rows))
            if time.monotonic() - noted > NOTED_EVERY:
                note()
                noted = time.monotonic()
    note()
    if ready.all():
        (folder / DONE).unlink()


def begin(folder: Path, count: int, size: int) -> None:
    """A cache with no row yet. What is written last makes it one."""
    folder.mkdir(exist_ok=True)
    np.lib.format.open_memmap(folder / PIXELS, "w+", np.uint8, (count, size, size, 3))  # header and holes
    np.lib.format.open_memmap(folder / SIGNATURES, "w+", np.uint8, (count, similar.LENGTH))
    np.save(folder / DONE, np.zeros(count, bool))
    write_atomically(folder / SKIPPED, b"{}")
