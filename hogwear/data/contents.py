"""What is in each photo: a hash of its bytes, by which split and cache know it, whatever it is called and wherever it lies.

An index in the cache keeps the hashes, for as long as nothing about a file has changed: contents-<folder>.npy, (n, 32) uint8, sorted;
a row is a key, of the file's path and of what `stat` tells, and the hash. Without it all photos are hashed again, and none is decoded again.
"""

import hashlib
import io
import os
import stat
import struct
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hogwear.data import decoding
from hogwear.data.decoding import HASH_SIZE, Limits
from hogwear.system.arrays import BoolArray, BytesArray, Int64Array, UInt8Array
from hogwear.system.files import Paths, write_atomically
from hogwear.system.text import escape

SETTLED = 2.0  # seconds since a file changed, before its time can tell that it has not changed again: what FAT counts in
KEY = f"S{HASH_SIZE}"


@dataclass(frozen=True, eq=False)
class Contents:
    """Of some photos."""

    hashes: UInt8Array  # (n, HASH_SIZE) uint8; zeros for a photo whose bytes could not be read
    unread: dict[int, str]  # {row: why}, of those

    def where(self, mask: BoolArray) -> "Contents":
        """Of those where the mask, (n,), is true."""
        rows = np.cumsum(mask) - 1
        return Contents(
            self.hashes[mask],
            {int(rows[row]): why for row, why in self.unread.items() if mask[row]},
        )


def read_contents(paths: Paths, root: Path, cache_dir: Path, limits: Limits) -> Contents:
    """Of photos within `root`; those that the cache does not know are read, by all CPUs."""
    index = (
        cache_dir / f"contents-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]}.npy"
    )
    known = read(index)
    keys, is_settled = identities(paths, root)
    hashes = found = np.zeros((len(paths), HASH_SIZE), np.uint8)
    if len(known):
        at = np.searchsorted(as_keys(known[:, :HASH_SIZE]), as_keys(keys)).clip(max=len(known) - 1)
        found = np.where(
            (known[at, :HASH_SIZE] == keys).all(axis=1, keepdims=True),
            known[at, HASH_SIZE:],
            hashes,
        )
    hashes, unread = found.copy(), {}
    is_known: BoolArray = np.asarray(found.any(axis=1))
    missing = np.flatnonzero(~is_known)
    for row, answer in decoding.map_photos(
        paths.where(~is_known), 0, limits, root, decoding.content_hash, "reading"
    ):
        if isinstance(answer, str):
            unread[int(missing[row])] = answer
        else:
            hashes[missing[row]] = np.frombuffer(answer, np.uint8)
    kept = np.concatenate([keys, hashes], axis=1)[is_settled & hashes.any(axis=1)]
    kept = kept[np.argsort(as_keys(kept[:, :HASH_SIZE]))]
    if not np.array_equal(kept, known):
        np.save(content := io.BytesIO(), kept)
        with suppress(
            OSError
        ):  # a cache that may not be written: they are read again the next time
            write_atomically(index, content.getvalue())
    return Contents(hashes, unread)


def short_hashes(hashes: UInt8Array) -> Int64Array:
    """Half of each hash, (n,): enough to tell photos apart, and little enough for a checkpoint to keep those of all that it was trained on."""
    return np.ascontiguousarray(hashes[:, :8]).view(np.int64)[:, 0]


def read(index: Path) -> UInt8Array:
    """Its rows; none, with a warning, where it is damaged."""
    try:
        rows: UInt8Array = np.load(index)
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 2 * HASH_SIZE:
            raise ValueError("of another shape")
    except FileNotFoundError:
        rows = np.empty((0, 2 * HASH_SIZE), np.uint8)
    except (OSError, ValueError, EOFError):
        print(escape(f"Warning: {index} is damaged; the photos are read again"), file=sys.stderr)
        rows = np.empty((0, 2 * HASH_SIZE), np.uint8)
    return rows


def as_keys(rows: UInt8Array) -> BytesArray:
    """(n, HASH_SIZE) uint8 -> (n,), which NumPy can sort and search; equal where all bytes are."""
    return np.ascontiguousarray(rows).view(KEY)[:, 0]


def identities(paths: Paths, root: Path) -> tuple[UInt8Array, BoolArray]:
    """A key for each file, (n, HASH_SIZE), that is another as soon as the file may have other bytes; and whether its time can tell that, (n,)."""
    keys, is_settled, now = bytearray(), np.zeros(len(paths), bool), time.time()
    for row, path in enumerate(paths.strings()):
        told, changed = identity(path)
        keys += hashlib.blake2b(
            os.fsencode(path.removeprefix(f"{root}/")) + told, digest_size=HASH_SIZE
        ).digest()
        is_settled[row] = changed + SETTLED < now
    return np.frombuffer(keys, np.uint8).reshape(-1, HASH_SIZE), is_settled


def identity(path: str) -> tuple[bytes, float]:
    """What changes with a file, and when that was last; nothing for one that is not there."""
    try:
        status = [os.lstat(path)]
        if stat.S_ISLNK(status[0].st_mode):  # changes with its target, and when it gets another
            status.append(Path(path).stat())
    except OSError:
        return b"", 0.0
    told = [
        (s.st_dev, s.st_ino, s.st_size, s.st_mode, s.st_mtime_ns % 2**64, s.st_ctime_ns % 2**64)
        for s in status
    ]  # times may be of 1938 and of 2381
    return b"".join(struct.pack("6Q", *one) for one in told), max(s.st_ctime for s in status)
