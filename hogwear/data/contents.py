"""The content hash of each photo, by which the split and the cache recognise it under any name.

The index contents-<folder>.npy in the cache keeps the hashes of files that do not change: (n, 32)
uint8, each row a key (a hash of a file's path and status) and the content hash. Without the index,
all photos are hashed again, but none is decoded again.
"""

import hashlib
import io
import os
import stat
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hogwear.data import decoding, safe_decoder
from hogwear.data.decoding import HASH_SIZE, Limits
from hogwear.system.arrays import BoolArray, BytesArray, Int64Array, UInt8Array
from hogwear.system.files import write_atomically
from hogwear.system.paths import Paths
from hogwear.system.text import warn

# A file's time reveals a second change only this many seconds after the first: FAT's resolution
SETTLED_SECONDS = 2.0


def read_contents(
    paths: Paths, root: Path, cache_dir: Path, limits: Limits
) -> tuple[UInt8Array, dict[int, str]]:
    """Hash the photos in the folder `root`; only those that the index does not know are read.

    Returns the hashes, (n, HASH_SIZE), and {row: why it cannot be read}, where they are zeros.
    """
    folder = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]
    index = cache_dir / f"contents-{folder}.npy"
    known = read_index(index)
    keys, is_settled = compute_keys(paths, root)
    rows = find_rows(known[:, :HASH_SIZE], keys)
    is_known = rows >= 0
    hashes, unread = np.zeros((len(paths), HASH_SIZE), np.uint8), {}
    hashes[is_known] = known[rows[is_known], HASH_SIZE:]
    new, missing = paths.where(~is_known), np.flatnonzero(~is_known)
    for i, result in safe_decoder.read_all(new, root, limits, hash_file, "reading"):
        if isinstance(result, str):
            unread[int(missing[i])] = result
        else:
            hashes[missing[i]] = np.frombuffer(result, np.uint8)
    kept = np.concatenate([keys, hashes], axis=1)[is_settled & hashes.any(axis=1)]
    if not np.array_equal(kept, known):
        np.save(content := io.BytesIO(), kept)
        with suppress(OSError):  # a cache that is not writable: they are read again the next time
            write_atomically(index, content.getvalue())
    return hashes, unread


def hash_file(file: BinaryIO) -> bytes:
    return decoding.hash_content(decoding.read_content(file))


def shorten_hashes(hashes: UInt8Array) -> Int64Array:
    """Half of each hash, (n,): enough to tell photos apart, and small enough for a checkpoint."""
    return np.ascontiguousarray(hashes[:, :8]).view(np.int64)[:, 0]


def view_as_keys(hashes: UInt8Array) -> BytesArray:
    """(n, HASH_SIZE) uint8 -> (n,), which NumPy can sort and search."""
    return np.ascontiguousarray(hashes).view(f"S{HASH_SIZE}")[:, 0]


def find_rows(hashes: UInt8Array, wanted: UInt8Array) -> Int64Array:
    """(m, HASH_SIZE), (n, HASH_SIZE) -> (n,), a row of `hashes` for each wanted hash, or -1."""
    if not len(hashes):
        return np.full(len(wanted), -1)
    keys = view_as_keys(hashes)
    order = np.argsort(keys)
    places = np.searchsorted(keys, view_as_keys(wanted), sorter=order)
    rows = order[places.clip(max=len(keys) - 1)]
    return np.where((hashes[rows] == wanted).all(axis=1), rows, -1)


def read_index(file: Path) -> UInt8Array:
    """The rows of an index; none, with a warning, if it is damaged."""
    try:
        rows: UInt8Array = np.load(file)
        if rows.dtype == np.uint8 and rows.shape[1:] == (2 * HASH_SIZE,):
            return rows
        raise ValueError("another shape")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError):
        warn(f"{file} is damaged; the photos are read again")
    return np.empty((0, 2 * HASH_SIZE), np.uint8)


def compute_keys(paths: Paths, root: Path) -> tuple[UInt8Array, BoolArray]:
    """A key for each file, (n, HASH_SIZE), that changes as soon as the file may have changed.

    Also whether each file has settled, (n,): a change from now on would change its key.
    """
    keys, is_settled, now = bytearray(), np.zeros(len(paths), bool), time.time()
    for row, path in enumerate(paths.strings()):
        status, changed = read_status(path)
        name = os.fsencode(path.removeprefix(f"{root}/"))
        keys += hashlib.blake2b(name + status, digest_size=HASH_SIZE).digest()
        is_settled[row] = changed + SETTLED_SECONDS < now
    return np.frombuffer(keys, np.uint8).reshape(-1, HASH_SIZE), is_settled


def read_status(path: str) -> tuple[bytes, float]:
    """What changes with a file, and when it last changed; nothing for a missing file."""
    try:
        status = [os.lstat(path)]
        if stat.S_ISLNK(status[0].st_mode):  # both the link and its target may change
            status.append(Path(path).stat())
    except OSError:
        return b"", 0.0
    fields: list[int] = []
    for s in status:
        times = s.st_mtime_ns % 2**64, s.st_ctime_ns % 2**64  # may lie before 1970 and after 2500
        fields += s.st_dev, s.st_ino, s.st_size, s.st_mode, *times
    return struct.pack(f"{len(fields)}Q", *fields), max(s.st_ctime for s in status)
