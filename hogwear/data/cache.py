"""Photos are decoded once, by all CPUs, into a cache.

A split at a size is a folder pixels/<split>-<size>-<slot>/<recipe>-<key>/ with pixels.npy, (N, S, S, 3) uint8, signatures.npy, (N, 256) uint8, which
tell near duplicates (similar.py), hashes.npy, (N, 16) uint8, of the photos' contents, and skipped.json, {row: reason}. As long as rows are missing,
because decoding was interrupted, because other machines have them, or because the system let nobody read them, there is done.npy, (N,) bool; in the
files they are holes, which take no room. The recipe is a hash of the size and the limits, the key one of the contents: photos that are renamed, copied
or moved are not decoded again, and where some have changed only those are; the old folder is then removed.
"""

import fcntl
import hashlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from hogwear.data import decoding, near_duplicates
from hogwear.data.contents import as_keys
from hogwear.data.decoding import HASH_SIZE, LIMITS, Limits, Passing, SafeDecoder
from hogwear.data.photos import Split
from hogwear.data.pixels import ALL_ROWS, ArrayFile, Pixels
from hogwear.system import machine
from hogwear.system.arrays import BoolArray, Int64Array, UInt8Array
from hogwear.system.errors import BadInput, naming
from hogwear.system.files import write_atomically
from hogwear.system.text import escape
from hogwear.system.workers import MAX_IN_FLIGHT

CACHE_VERSION = (
    4  # part of the recipe: raise it when `decode` gives other pixels, or `signature` others
)
LARGEST_CHUNK = 512  # photos in one order to a worker: with this few orders, it need not be answered for seconds

PIXELS, SIGNATURES, HASHES, SKIPPED = "pixels.npy", "signatures.npy", "hashes.npy", "skipped.json"
DONE, NOTED_EVERY = "done.npy", 20.0  # seconds; what an interruption costs at the most
DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    AttributeError,
)  # what reading a file raises that is not as it was written


@dataclass(frozen=True)
class PhotoCache:
    """All decoded photos; those that are missing are decoded within the limits, by so many processes."""

    folder: Path
    limits: Limits = LIMITS
    processes: int = field(default_factory=lambda: machine.cpus())

    def open(
        self, split: Split, size: int, part: slice = ALL_ROWS,
        on_photos: Callable[[int], object] = lambda count: None, meanwhile: Callable[[], object] = lambda: None,
    ) -> Pixels:  # fmt: skip
        """The split's pixels, or those of a part of its rows, decoded now unless they are there.

        `on_photos` is told how many more are done; `meanwhile` is called once while the processes decode, if they do.
        Raises BadInput for a class without one readable photo, where it is the whole split.
        """
        stored = self.stored(split, size)
        if stored.is_complete(part):
            return stored.pixels(part)
        slot = stored.folder.parent
        slot.mkdir(parents=True, exist_ok=True)
        with (slot / "lock").open("a") as lock:  # one process at a time decodes
            while not locked(lock):
                on_photos(0)
            if stored.is_complete(part):
                return stored.pixels(part)
            old = [entry for entry in slot.iterdir() if entry.is_dir() and entry != stored.folder]
            try:
                with naming(stored.folder):
                    unread = self.decode_missing(stored, part, on_photos, meanwhile)
            except OSError:
                shutil.rmtree(
                    stored.folder, ignore_errors=True
                )  # half a cache would keep a full disk full
                raise
            for folder in old:  # of photos as they were
                shutil.rmtree(folder, ignore_errors=True)
        return stored.pixels(part, unread)

    def open_if_complete(self, split: Split, size: int) -> Pixels | None:
        """The split's pixels if all are there; nothing is decoded."""
        stored = self.stored(split, size)
        return stored.pixels() if stored.is_complete(ALL_ROWS) else None

    def stored(self, split: Split, size: int) -> "StoredSplit":
        """Where these contents are, also those of a data folder that has moved, or else belong."""
        recipe = hashlib.sha256(f"{CACHE_VERSION} {size} {self.limits}".encode()).hexdigest()[:8]
        key = hashlib.sha256(split.contents.hashes.tobytes()).hexdigest()[:24]
        slot = hashlib.sha256(os.fsencode(split.root.resolve())).hexdigest()[:12]
        folder = self.folder / "pixels" / f"{split.name}-{size}-{slot}" / f"{recipe}-{key}"
        return StoredSplit(
            folder
            if folder.exists()
            else next((self.folder / "pixels").glob(f"*/{folder.name}"), folder),
            split,
            size,
        )

    def decode_missing(
        self,
        stored: "StoredSplit",
        part: slice,
        on_photos: Callable[[int], object],
        meanwhile: Callable[[], object],
    ) -> dict[int, str]:
        """Decode what is missing of a part. {row: why} of the photos that the system did not let us read."""
        split, filling = stored.split, Filling(stored)
        rows = stored.missing(filling.ready, part)
        on_photos(len(range(len(split))[part]) - len(rows))
        decoder = SafeDecoder(
            split.paths, stored.size, self.limits, self.processes, within=[split.root]
        )
        chunk = max(1, min(LARGEST_CHUNK, -(-len(rows) // (MAX_IN_FLIGHT * self.processes))))

        def decode_chunk(start: int) -> dict[int, str]:
            reasons = {
                row: filling.decode(row, decoder) for row in rows[start : start + chunk].tolist()
            }
            return {row: why for row, why in reasons.items() if why is not None}

        with decoder.workers({"decode": decode_chunk}) as workers:
            for start, skipped in workers.run(
                "decode", range(0, len(rows), chunk), meanwhile=meanwhile
            ):
                on_photos(len(rows[start : start + chunk]))
                filling.add(rows[start : start + chunk], skipped)
        filling.finish()
        return filling.unread


@dataclass(frozen=True, eq=False)
class StoredSplit:
    """The folder of a split at a size."""

    folder: Path
    split: Split
    size: int

    def ready(self) -> BoolArray:
        """Which rows are there, (N,). Raises one of DAMAGE where the folder is not as it was written."""
        return ready_rows(self.folder, len(self.split), self.size)

    def missing(self, ready: BoolArray, part: slice) -> Int64Array:
        """Rows of a part that can be read and are not ready, (k,)."""
        wanted = np.zeros(len(self.split), bool)
        wanted[part] = self.split.contents.hashes[part].any(axis=1)
        return np.flatnonzero(wanted & ~ready)

    def is_complete(self, part: slice) -> bool:
        """Whether all of a part that can be read is there."""
        try:
            return not len(self.missing(self.ready(), part))
        except DAMAGE:
            return False

    def pixels(self, part: slice = ALL_ROWS, unread: dict[int, str] | None = None) -> Pixels:
        """What is there, without those that the system did not let us read. Raises as PhotoCache.open."""
        split, wanted = self.split, np.arange(len(self.split))[part]
        reasons = read_reasons(self.folder) | split.contents.unread | (unread or {})
        skipped = {row: reasons[row] for row in wanted.tolist() if row in reasons}
        rows = np.setdiff1d(wanted, list(skipped))
        labels = split.labels[rows]
        if part == ALL_ROWS and len(emptied := np.setdiff1d(split.labels, labels)):
            row = next(i for i in skipped if split.labels[i] in emptied)
            photo = split.paths[row]
            raise BadInput(
                f"{photo.parent}: no readable photo in this class ({photo.name}: {skipped[row]})"
            )
        named = {split.paths[i]: why for i, why in skipped.items()}
        return Pixels(
            self.folder,
            ArrayFile(self.folder / PIXELS),
            rows,
            labels,
            split.contents.hashes[rows],
            named,
            ArrayFile(self.folder / SIGNATURES),
        )

    def create(self) -> None:
        """With no row yet. What is written last makes it one of ours."""
        self.folder.mkdir(exist_ok=True)
        count = len(self.split)
        np.save(self.folder / HASHES, self.split.contents.hashes)
        np.lib.format.open_memmap(
            self.folder / PIXELS, "w+", np.uint8, (count, self.size, self.size, 3)
        )  # header and holes
        np.lib.format.open_memmap(
            self.folder / SIGNATURES, "w+", np.uint8, (count, near_duplicates.SIGNATURE_SIZE)
        )
        np.save(self.folder / DONE, np.zeros(count, bool))
        write_atomically(self.folder / SKIPPED, b"{}")

    def earlier(self) -> Iterator["Earlier"]:
        """The folders beside it that were made by the same recipe."""
        recipe = self.folder.name.partition("-")[0]
        for other in self.folder.parent.glob(f"{recipe}-*"):
            if other != self.folder:
                with suppress(*DAMAGE):
                    yield Earlier(other, self.size, self.split.contents.hashes)


class Filling:
    """Fills a folder: workers decode into its files, their parent notes what is there."""

    def __init__(self, stored: StoredSplit) -> None:
        self.stored, self.hashes = stored, stored.split.contents.hashes
        self.ready = self.start()  # (N,)
        self.skipped = {
            row: why for row, why in read_reasons(stored.folder).items() if self.ready[row]
        }
        self.unread: dict[int, str] = {}  # for a reason that may be gone the next time
        self.images, self.signatures = (
            ArrayFile(stored.folder / name, "r+b") for name in (PIXELS, SIGNATURES)
        )
        self.earlier = list(stored.earlier())
        self.noted = time.monotonic()

    def start(self) -> BoolArray:
        """Which rows are there; none, in a new folder, where there was no good one."""
        folder = self.stored.folder
        try:
            return self.stored.ready()
        except DAMAGE as error:
            if folder.exists():
                print(
                    escape(
                        f"Warning: the cache {folder} is damaged ({error}); its photos are decoded again"
                    ),
                    file=sys.stderr,
                )
                shutil.rmtree(folder)
            self.stored.create()
            return self.stored.ready()

    def decode(self, row: int, decoder: SafeDecoder) -> str | None:
        """In a worker: write a photo's pixels and signature, copied where they were decoded before. Why not, if not."""
        for old in self.earlier:
            if (at := int(old.rows[row])) >= 0:
                if at in old.skipped:
                    return old.skipped[at]
                self.images[row], self.signatures[row] = (
                    file[old.rows[[row]]][0] for file in (old.images, old.signatures)
                )
                return None
        image = decoder.call(
            row, partial(decoding.decode_verified, known=self.hashes[row].tobytes())
        )
        if isinstance(image, str):
            return image
        self.images[row], self.signatures[row] = image, near_duplicates.compute_signature(image)
        return None

    def add(self, rows: Int64Array, skipped: dict[int, str]) -> None:
        """What a worker has done with these rows; noted on the disk now and then."""
        self.ready[rows] = True
        for row, why in skipped.items():
            if isinstance(why, Passing):
                self.ready[row], self.unread[row] = False, why
            else:
                self.skipped[row] = why
        if time.monotonic() - self.noted > NOTED_EVERY:
            self.note()
            self.noted = time.monotonic()

    def note(self) -> None:
        """On the disk first the pixels, then that they are there."""
        for written in self.images, self.signatures:
            os.fsync(written.file.fileno())
        write_atomically(self.stored.folder / SKIPPED, json.dumps(self.skipped).encode())
        np.save(content := io.BytesIO(), self.ready)
        write_atomically(self.stored.folder / DONE, content.getvalue())

    def finish(self) -> None:
        self.note()
        if (self.ready | ~self.hashes.any(axis=1)).all():
            (self.stored.folder / DONE).unlink()


class Earlier:
    """A folder of the photos as they were."""

    def __init__(self, folder: Path, size: int, hashes: UInt8Array) -> None:
        """Raises one of DAMAGE where it is none, or of another size."""
        self.hashes = np.load(folder / HASHES)
        ready = ready_rows(folder, len(self.hashes), size) & self.hashes.any(axis=1)
        self.images, self.signatures, self.skipped = (
            ArrayFile(folder / PIXELS),
            ArrayFile(folder / SIGNATURES),
            read_reasons(folder),
        )
        keys, wanted = as_keys(self.hashes[ready]), as_keys(hashes)
        order = np.argsort(keys)
        self.rows = np.full(len(hashes), -1)  # (N,) where each of the new split's photos is, or -1
        if len(keys):
            at = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
            self.rows[keys[at] == wanted] = np.flatnonzero(ready)[at[keys[at] == wanted]]


def ready_rows(folder: Path, count: int, size: int) -> BoolArray:
    """Which rows a folder has, (count,). Raises one of DAMAGE where it is not as it was written."""
    for name, row in {
        PIXELS: (size, size, 3),
        SIGNATURES: (near_duplicates.SIGNATURE_SIZE,),
        HASHES: (HASH_SIZE,),
    }.items():
        ArrayFile(folder / name).require(count, *row)
    read_reasons(folder)
    try:
        rows: BoolArray = np.load(folder / DONE)
    except FileNotFoundError:
        return np.ones(count, bool)
    if rows.shape != (count,) or rows.dtype != bool:
        raise ValueError(f"{DONE} is of another shape")
    return rows


def read_reasons(folder: Path) -> dict[int, str]:
    """{row: why it is skipped}. Raises one of DAMAGE."""
    return {int(row): str(why) for row, why in json.loads((folder / SKIPPED).read_text()).items()}


def locked(file: IO[str], wait: float = 0.2) -> bool:
    """Whether it is ours, after so many seconds at the most. Not flock: forked workers would hold it too, and may outlive us by seconds."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        time.sleep(wait)
        return False
    return True
