"""Photos as pixels: decoded once, by all CPUs, into a cache.

A cache is a folder <split>-<size>-<slot>/<recipe>-<key>/ with pixels.npy, (N, S, S, 3) uint8, signatures.npy, (N, 256) uint8, which tell near
duplicates (similar.py), hashes.npy, (N, 16) uint8, of the photos' contents, skipped.json, {row: reason}, and leaked-<key>.json, how many of them
are in a train split, too. As long as rows are missing, because it was interrupted, because other machines have them, or because the system let nobody
read them, there is done.npy, (N,) bool; in the files they are holes, which take no room. The recipe is a hash of the size and the limits, the key one of
the contents: photos that are renamed, copied or moved are not decoded again, and of changed ones only those that are new; the old cache is then removed.
"""

import errno
import fcntl
import hashlib
import io
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from hogwear import decoding, similar
from hogwear.contents import as_keys
from hogwear.dataset import Split
from hogwear.decoding import HASH_SIZE, LIMITS, Guard, Limits, Passing
from hogwear.decoding import Array as Array
from hogwear.errors import BadInput, naming
from hogwear.files import write_atomically
from hogwear.workers import QUEUED, Workers

CACHE_VERSION = 4  # part of the recipe: raise it when `decode` gives other pixels, or `signature` others
LARGEST_CHUNK = 512  # photos in one order to a worker: with this few orders, it need not be answered for seconds

PIXELS, SIGNATURES, HASHES, SKIPPED = "pixels.npy", "signatures.npy", "hashes.npy", "skipped.json"
DONE, NOTED_EVERY = "done.npy", 20.0  # seconds; what an interruption costs at the most

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
WHOLE = slice(None)
DAMAGE = (OSError, ValueError, EOFError, TypeError, AttributeError)  # what reading a file raises that is not as it was written


class Images:
    """The (N, S, S, 3) uint8 array in a .npy file (or any uint8 array of rows), read and written by row, also by processes forked after it was opened.

    It is not memory-mapped, because a page once touched counts as resident, and in the end all of the file would.
    """

    def __init__(self, file: Path, mode: str = "rb") -> None:
        self.file = file.open(mode, buffering=0)
        np.lib.format.read_magic(self.file)
        self.shape = np.lib.format.read_array_header_1_0(self.file)[0]
        self.start, self.stride = self.file.tell(), math.prod(self.shape[1:])

    def require(self, *shape: int) -> None:
        """ValueError if it is of another shape, or does not have all its bytes."""
        size = os.fstat(self.file.fileno()).st_size
        if self.shape != shape or size != self.start + math.prod(shape):
            raise ValueError(f"{Path(self.file.name).name} has {size} bytes and the shape {self.shape}, expected {shape}")

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
    """The readable photos of one split. Its files stay open: whatever becomes of the cache, they can be read, by forked processes too."""

    folder: Path  # the cache's
    images: Images | Array  # index it with `rows`
    rows: Ints  # (n,) rows of `images` that hold a photo
    labels: Ints  # (n,)
    hashes: Array  # (n, HASH_SIZE) uint8, of the photos' contents
    skipped: dict[Path, str]  # {photo: why it was not read}
    all_signatures: Images | Array  # index it with `rows`

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def signatures(self) -> Array:
        """(n, 256), as `rows`: similar.py."""
        return self.all_signatures[self.rows]

    def where(self, mask: Bools) -> "Pixels":
        """Those where the mask, (n,), is true."""
        return replace(self, rows=self.rows[mask], labels=self.labels[mask], hashes=self.hashes[mask])

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
        folder = place(split, size, cache_dir, limits)
        passing = ensure(folder, split, size, processes, on_photos, meanwhile, limits, part)
        return cls.within(folder, split, part, passing)

    @classmethod
    def at_hand(cls, split: Split, size: int, cache_dir: Path, limits: Limits) -> "Pixels | None":
        """The split's pixels if the cache has them; nothing is decoded."""
        folder = place(split, size, cache_dir, limits)
        return cls.within(folder, split) if is_complete(folder, split, size, WHOLE) else None

    @classmethod
    def within(cls, folder: Path, split: Split, part: slice = WHOLE, passing: dict[int, str] | None = None) -> "Pixels":
        """Those in a cache folder, without those that could not be read this time. Raises as `open`."""
        wanted = np.arange(len(split))[part]
        skipped = reasons(folder) | split.contents.unread | (passing or {})
        skipped = {row: skipped[row] for row in wanted.tolist() if row in skipped}
        rows = np.setdiff1d(wanted, list(skipped))
        labels = split.labels[rows]
        if part == WHOLE and len(emptied := np.setdiff1d(split.labels, labels)):
            row = next(i for i in skipped if split.labels[i] in emptied)
            photo = split.paths[row]
            raise BadInput(f"{photo.parent}: no readable photo in this class ({photo.name}: {skipped[row]})")
        named = {split.paths[i]: why for i, why in skipped.items()}
        return cls(folder, Images(folder / PIXELS), rows, labels, split.contents.hashes[rows], named, Images(folder / SIGNATURES))


def place(split: Split, size: int, cache_dir: Path, limits: Limits) -> Path:
    """Where the cache of these contents is, or else belongs."""
    recipe = hashlib.sha256(f"{CACHE_VERSION} {size} {limits}".encode()).hexdigest()[:8]
    key = hashlib.sha256(split.contents.hashes.tobytes()).hexdigest()[:24]
    slot = hashlib.sha256(os.fsencode(split.root.resolve())).hexdigest()[:12]
    folder = cache_dir / "pixels" / f"{split.name}-{size}-{slot}" / f"{recipe}-{key}"
    return folder if folder.exists() else next((cache_dir / "pixels").glob(f"*/{folder.name}"), folder)  # of a data folder that has moved


def ensure(
    folder: Path,
    split: Split,
    size: int,
    processes: int,
    on_photos: Callable[[int], object],
    meanwhile: Callable[[], object],
    limits: Limits,
    part: slice,
) -> dict[int, str]:
    """Have this part in the cache folder; one process at a time decodes into it. {row: why} of photos that the system did not let us read."""
    parent = folder.parent
    if is_complete(folder, split, size, part):
        return {}
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / "lock").open("w") as lock:
        while not locked(lock):
            on_photos(0)
        if is_complete(folder, split, size, part):
            return {}
        others = [entry for entry in parent.iterdir() if entry.is_dir() and entry != folder]
        try:
            with naming(folder):
                passing = fill(folder, split, size, processes, on_photos, meanwhile, limits, part)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)  # half a cache would keep a full disk full
            raise
        for other in others:  # of photos as they were
            shutil.rmtree(other, ignore_errors=True)
    return passing


def locked(file: IO[str], wait: float = 0.2) -> bool:
    """Whether it is ours, after so many seconds at the most. Not flock: forked workers would hold it too, and may outlive us by seconds."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        time.sleep(wait)
        return False
    return True


def done(folder: Path, count: int, size: int) -> Bools:
    """Which rows a cache has, (count,). Raises one of DAMAGE where it is none."""
    for name, row in {PIXELS: (size, size, 3), SIGNATURES: (similar.LENGTH,), HASHES: (HASH_SIZE,)}.items():
        Images(folder / name).require(count, *row)
    reasons(folder)
    try:
        rows: Bools = np.load(folder / DONE)
    except FileNotFoundError:
        return np.ones(count, bool)
    if rows.shape != (count,) or rows.dtype != bool:
        raise ValueError(f"{DONE} is of another shape")
    return rows


def is_complete(folder: Path, split: Split, size: int, part: slice) -> bool:
    """Whether a cache has all of a part that can be read."""
    try:
        return not missing(split, done(folder, len(split), size), part).any()
    except DAMAGE:
        return False


def missing(split: Split, ready: Bools, part: slice) -> Bools:
    """Which rows of a part can be read and are not ready, (N,)."""
    wanted = np.zeros(len(split), bool)
    wanted[part] = split.contents.hashes[part].any(axis=1)
    return wanted & ~ready


def reasons(folder: Path) -> dict[int, str]:
    """{row: why it is skipped}. Raises one of DAMAGE."""
    return {int(row): str(why) for row, why in json.loads((folder / SKIPPED).read_text()).items()}


def leaked(train: Pixels, held_out: Pixels) -> int:
    """How many photos of `held_out` are in `train`, too, exactly or nearly; kept beside them, for it takes 6 s with 200,000.

    Another process looks: the memory that takes is then free again.
    """
    key = hashlib.sha256(train.hashes.tobytes() + held_out.hashes.tobytes()).hexdigest()[:16]
    known = held_out.folder / f"leaked-{key}.json"
    try:
        return int(known.read_text())
    except (OSError, ValueError):
        with Workers(1, lambda rank: {"look": lambda item: similar.leaked(train.signatures, held_out.signatures)}) as workers:
            [(_, count)] = workers.run("look", [0])
        if held_out.folder.exists():
            write_atomically(known, str(count).encode())
        return int(count)


class Earlier:
    """A cache of the photos as they were."""

    def __init__(self, folder: Path, size: int, hashes: Array) -> None:
        """Raises one of DAMAGE where it is none, or of another size."""
        self.hashes = np.load(folder / HASHES)
        ready = done(folder, len(self.hashes), size) & self.hashes.any(axis=1)
        self.images, self.signatures, self.skipped = Images(folder / PIXELS), Images(folder / SIGNATURES), reasons(folder)
        keys, wanted = as_keys(self.hashes[ready]), as_keys(hashes)
        order = np.argsort(keys)
        self.rows = np.full(len(hashes), -1)  # (N,) where each photo is, or -1
        if len(keys):
            at = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
            self.rows[keys[at] == wanted] = np.flatnonzero(ready)[at[keys[at] == wanted]]


def earlier(folder: Path, size: int, hashes: Array) -> Iterator[Earlier]:
    """The caches beside this one that were made by the same recipe."""
    recipe = folder.name.partition("-")[0]
    for other in folder.parent.glob(f"{recipe}-*"):
        if other != folder:
            with suppress(*DAMAGE):
                yield Earlier(other, size, hashes)


def fill(
    folder: Path,
    split: Split,
    size: int,
    processes: int,
    on_photos: Callable[[int], object],
    meanwhile: Callable[[], object],
    limits: Limits,
    part: slice,
) -> dict[int, str]:
    """Decode those photos of a part into `folder` that are not there yet. {row: why} of those that the system did not let us read."""
    hashes = split.contents.hashes
    try:
        ready = done(folder, len(split), size)
    except DAMAGE as error:
        if folder.exists():
            print(f"Warning: the cache {folder} is damaged ({error}); its photos are decoded again", file=sys.stderr)
            shutil.rmtree(folder)
        begin(folder, hashes, size)
        ready = done(folder, len(split), size)
    skipped, passing = {row: why for row, why in reasons(folder).items() if ready[row]}, dict[int, str]()
    rows_missing = np.flatnonzero(missing(split, ready, part))
    on_photos(len(range(len(split))[part]) - len(rows_missing))
    images, signatures = Images(folder / PIXELS, "r+b"), Images(folder / SIGNATURES, "r+b")
    known = list(earlier(folder, size, hashes))
    guard = Guard(split.paths, size, limits, processes, within=[split.root])
    chunk = max(1, min(LARGEST_CHUNK, -(-len(rows_missing) // (QUEUED * processes))))

    def decode_chunk(start: int) -> dict[int, str]:
        """In a worker: the photos that are not decoded, and why."""
        skipped = {}
        for row in rows_missing[start : start + chunk].tolist():
            old = next((old for old in known if old.rows[row] >= 0), None)
            if old is not None:
                at = old.rows[[row]]
                image = old.skipped.get(int(at[0])) or old.images[at][0]
            else:
                image = guard.call(row, partial(decoding.decode_known, known=hashes[row].tobytes()))
            if isinstance(image, str):
                skipped[row] = image
            else:
                images[row] = image
                signatures[row] = similar.signature(image) if old is None else old.signatures[at][0]
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
        for start, more in workers.run("decode", range(0, len(rows_missing), chunk), meanwhile=meanwhile):
            rows = rows_missing[start : start + chunk]
            ready[rows] = True
            for row, why in more.items():
                if isinstance(why, Passing):
                    ready[row], passing[row] = False, why
                else:
                    skipped[row] = why
            on_photos(len(rows))
            if time.monotonic() - noted > NOTED_EVERY:
                note()
                noted = time.monotonic()
    note()
    if (ready | ~hashes.any(axis=1)).all():
        (folder / DONE).unlink()
    return passing


def begin(folder: Path, hashes: Array, size: int) -> None:
    """A cache with no row yet. What is written last makes it one."""
    folder.mkdir(exist_ok=True)
    count = len(hashes)
    np.save(folder / HASHES, hashes)
    np.lib.format.open_memmap(folder / PIXELS, "w+", np.uint8, (count, size, size, 3))  # header and holes
    np.lib.format.open_memmap(folder / SIGNATURES, "w+", np.uint8, (count, similar.LENGTH))
    np.save(folder / DONE, np.zeros(count, bool))
    write_atomically(folder / SKIPPED, b"{}")
