"""Photos as pixels: decoded once, by all CPUs, into a cache.

A cache is a folder <split>-<size>-<slot>/<key>/ with pixels.npy, (N, S, S, 3) uint8, signatures.npy, (N, 256) uint8, which tell near
duplicates (similar.py), skipped.json, {row: reason}, and leaked-<key>.json, how many of them are in the train of that key, too. The key is a hash of every file's name, size, time and rights, and of the limits, so a changed photo makes a new cache; the old one is then removed.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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

SIGNATURES, SKIPPED = "signatures.npy", "skipped.json"

Ints = npt.NDArray[np.int64]


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
    ) -> "Pixels":
        """The split's pixels, decoded now by so many processes unless the cache has them.

        `on_photos` is told how many more are done; `meanwhile` is called once while the processes decode, if they do.
        Raises BadInput for a class without one readable photo.
        """
        return cls.within(cached(split, size, cache_dir, processes, on_photos, meanwhile, limits), split)

    @classmethod
    def at_hand(cls, split: Split, size: int, cache_dir: Path, limits: Limits) -> "Pixels | None":
        """The split's pixels if the cache has them; nothing is decoded."""
        folder = place(split, size, cache_dir, limits)
        return cls.within(folder, split) if folder.exists() else None

    @classmethod
    def within(cls, folder: Path, split: Split) -> "Pixels":
        """Those in a cache folder. Raises as `open`."""
        skipped = {int(row): why for row, why in json.loads((folder / SKIPPED).read_text()).items()}
        rows = np.delete(np.arange(len(split)), list(skipped))
        labels = split.labels[rows]
        if len(emptied := np.setdiff1d(split.labels, labels)):
            row = next(i for i in skipped if split.labels[i] in emptied)
            photo = split.paths[row]
            raise BadInput(f"{photo.parent}: no readable photo in this class ({photo.name}: {skipped[row]})")
        return cls(folder / "pixels.npy", rows, labels, {split.paths[i]: why for i, why in skipped.items()})


def cached(
    split: Split,
    size: int,
    cache_dir: Path,
    processes: int,
    on_photos: Callable[[int], object],
    meanwhile: Callable[[], object],
    limits: Limits,
) -> Path:
    """The cache folder of this split at this size, made if need be; one process makes it, others wait for that one."""
    folder = place(split, size, cache_dir, limits)
    parent = folder.parent
    if folder.exists():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # not flock: forked workers would hold it too, and may outlive us by seconds
        if not folder.exists():
            others = [entry for entry in parent.iterdir() if entry.is_dir()]
            temporary = Path(tempfile.mkdtemp(dir=parent, prefix="."))
            try:
                with naming(folder):
                    fill(temporary, split, size, processes, on_photos, meanwhile, limits)
                temporary.rename(folder)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)  # half a cache would keep a full disk full
                raise
            for other in others:  # of photos as they were, or of a build that was killed
                shutil.rmtree(other, ignore_errors=True)
    return folder


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
    paths = split.paths.texts()
    key = hashlib.sha256(f"{CACHE_VERSION} {size} {len(split)} {limits} ".encode() + split.paths.encoded)
    key.update(np.fromiter(map(fingerprint, paths), "Q, Q, Q", len(split)).tobytes())
    common = os.path.commonpath({path.rpartition("/")[0] for path in paths})  # of folders, because of 200,000 photos it takes a second
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
) -> None:
    """Decode every photo into `folder`."""
    folder.chmod(0o755)
    np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (len(split), size, size, 3))  # header and holes
    np.lib.format.open_memmap(folder / SIGNATURES, "w+", np.uint8, (len(split), similar.LENGTH))
    images, signatures = Images(folder / "pixels.npy", "r+b"), Images(folder / SIGNATURES, "r+b")
    guard = Guard(split.paths, size, limits, processes, within=[split.root])
    chunk = min(LARGEST_CHUNK, -(-len(split) // (QUEUED * processes)))

    def decode_chunk(start: int) -> dict[int, str]:
        skipped = {}
        for row in range(start, min(start + chunk, len(split))):
            image = guard.decode(row)
            if isinstance(image, str):
                skipped[row] = image
            else:
                images[row] = image
                signatures[row] = similar.signature(image)
        return skipped

    skipped: dict[int, str] = {}
    with guard.workers({"decode": decode_chunk}) as workers:
        for start, missed in workers.run("decode", range(0, len(split), chunk), meanwhile=meanwhile):
            skipped |= missed
            on_photos(min(chunk, len(split) - start))
    for written in images, signatures:
        os.fsync(written.file.fileno())
    (folder / SKIPPED).write_text(json.dumps(skipped))
