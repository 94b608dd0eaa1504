"""How the decoded photos of one split lie on the disk, and how they get there.

A folder pixels/<split>-<size>-<slot>/<recipe>-<key>/ holds N photos at one size:

    pixels.npy      (N, S, S, 3) uint8
    signatures.npy  (N, SIGNATURE_SIZE) uint8, for near duplicates
    hashes.npy      (N, HASH_SIZE) uint8, of the photos' contents
    skipped.json    {row: reason}
    done.npy        (N,) bool, only while rows are missing: decoding was interrupted, other machines
                    have them, or the system did not let them be read

Missing rows are holes in the files, which take no disk space. The slot is a hash of the data
folder, the recipe of size and limits, the key of the contents. So photos that were renamed, copied
or moved are not decoded again; when some change, only those are.
"""

import hashlib
import io
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hogwear.data import decoding, near_duplicates
from hogwear.data.array_file import ArrayFile
from hogwear.data.contents import find_rows
from hogwear.data.decoding import HASH_SIZE, Limits, TransientReason
from hogwear.data.photos import Split
from hogwear.data.pixels import ALL_ROWS, Pixels
from hogwear.data.safe_decoder import SafeReader
from hogwear.system.arrays import BoolArray, Int64Array, UInt8Array
from hogwear.system.errors import BadInput
from hogwear.system.files import write_atomically
from hogwear.system.text import warn

# Part of the recipe; raise it when pixels, signatures or features change, or what can be read
CACHE_VERSION = 5
PIXELS, SIGNATURES, HASHES = "pixels.npy", "signatures.npy", "hashes.npy"
SKIPPED, DONE = "skipped.json", "done.npy"
# What reading a damaged file may raise
DAMAGE = (OSError, ValueError, EOFError, TypeError, AttributeError)
SECONDS_BETWEEN_NOTES = 20.0  # of progress: an interruption costs at most that much


@dataclass(frozen=True, eq=False)
class CacheFolder:
    """The decoded photos of one split at one size."""

    path: Path
    split: Split
    size: int

    @classmethod
    def locate(cls, cache_dir: Path, split: Split, size: int, limits: Limits) -> "CacheFolder":
        """The folder with these contents, even if the data folder has moved, or where to put it."""
        recipe = hashlib.sha256(f"{CACHE_VERSION} {size} {limits}".encode()).hexdigest()[:8]
        key = hashlib.sha256(split.hashes.tobytes()).hexdigest()[:24]
        slot = hashlib.sha256(os.fsencode(split.root.resolve())).hexdigest()[:12]
        path = cache_dir / "pixels" / f"{split.name}-{size}-{slot}" / f"{recipe}-{key}"
        if not path.exists():
            path = next((cache_dir / "pixels").glob(f"*/{path.name}"), path)
        return cls(path, split, size)

    def decoded_rows(self) -> BoolArray:
        """Which rows are there, (N,). Raises one of DAMAGE if the folder is damaged."""
        return read_decoded_rows(self.path, len(self.split), self.size)

    def missing_rows(self, decoded: BoolArray, part: slice = ALL_ROWS) -> Int64Array:
        """The rows of a part that can be read and are not decoded, (k,)."""
        is_missing = self.split.is_readable & ~decoded
        return np.arange(len(self.split))[part][is_missing[part]]

    def is_complete(self, part: slice) -> bool:
        """Whether every row of a part that can be read is decoded."""
        try:
            return not len(self.missing_rows(self.decoded_rows(), part))
        except DAMAGE:
            return False

    def open_pixels(self, part: slice = ALL_ROWS, unread: dict[int, str] | None = None) -> Pixels:
        """Open the photos of a part, without the skipped ones and those `unread`, {row: reason}.

        Raises BadInput for a class without a readable photo, if the part is the whole split.
        """
        split, wanted = self.split, np.arange(len(self.split))[part]
        reasons = read_reasons(self.path) | split.unread | (unread or {})
        skipped = {row: reasons[row] for row in wanted.tolist() if row in reasons}
        rows = np.setdiff1d(wanted, list(skipped))
        labels = split.labels[rows]
        if part == ALL_ROWS and len(empty := np.setdiff1d(split.labels, labels)):
            row = next(row for row in skipped if split.labels[row] in empty)
            photo, why = split.paths[row], skipped[row]
            raise BadInput(f"{photo.parent}: no readable photo in this class ({photo.name}: {why})")
        images, signatures = (ArrayFile(self.path / name) for name in (PIXELS, SIGNATURES))
        by_path = {split.paths[row]: why for row, why in skipped.items()}
        hashes, products = split.hashes[rows], split.products[rows]
        return Pixels(self.path, images, rows, labels, hashes, products, by_path, signatures)

    def create_empty(self) -> None:
        """Write the files with no row decoded. The folder counts as ours once the last is there."""
        self.path.mkdir(exist_ok=True)
        count = len(self.split)
        np.save(self.path / HASHES, self.split.hashes)
        for name, row_shape in row_shapes(self.size).items():
            if name != HASHES:  # the header, and holes
                np.lib.format.open_memmap(self.path / name, "w+", np.uint8, (count, *row_shape))
        np.save(self.path / DONE, np.zeros(count, bool))
        write_atomically(self.path / SKIPPED, b"{}")

    def others(self) -> list[Path]:
        """The folders beside it: the split before photos changed, or with other limits."""
        siblings = self.path.parent.iterdir()
        return [folder for folder in siblings if folder.is_dir() and folder != self.path]


class CacheWriter:
    """Fills a folder: workers decode photos into it, and their parent notes progress."""

    def __init__(self, folder: CacheFolder) -> None:
        self.folder, self.hashes = folder, folder.split.hashes
        self.decoded = self.open_or_create()  # (N,)
        reasons = read_reasons(folder.path)
        self.skipped = {row: why for row, why in reasons.items() if self.decoded[row]}
        self.unread: dict[int, str] = {}  # for reasons that may be gone the next time
        self.pixels = ArrayFile(folder.path / PIXELS, "r+b")
        self.signatures = ArrayFile(folder.path / SIGNATURES, "r+b")
        self.earlier_versions: list[EarlierVersion] = []
        recipe = folder.path.name.partition("-")[0]
        for other in folder.others():
            if other.name.startswith(f"{recipe}-"):
                with suppress(*DAMAGE):
                    self.earlier_versions.append(EarlierVersion(other, folder.size, self.hashes))
        self.last_note = time.monotonic()

    def open_or_create(self) -> BoolArray:
        """Which rows are decoded; none in a folder that is new or was damaged."""
        try:
            return self.folder.decoded_rows()
        except DAMAGE as error:
            path = self.folder.path
            if path.exists():
                warn(f"the cache {path} is damaged ({error}); its photos are decoded again")
                shutil.rmtree(path)
            self.folder.create_empty()
            return self.folder.decoded_rows()

    def decode(self, row: int, reader: SafeReader) -> str | None:
        """In a worker: write a photo's pixels and signature. Returns the reason if there are none.

        They are copied if an earlier version of the folder has them.
        """
        for earlier in self.earlier_versions:
            if (old := int(earlier.rows[row])) >= 0:
                if old in earlier.skipped:
                    return earlier.skipped[old]
                self.pixels[row] = earlier.pixels[np.array([old])][0]
                self.signatures[row] = earlier.signatures[np.array([old])][0]
                return None
        size, limits, expected_hash = self.folder.size, reader.limits, self.hashes[row].tobytes()
        image = reader.read(
            row, lambda file: decoding.decode_verified(file, size, limits, expected_hash)
        )
        if isinstance(image, str):
            return image
        self.pixels[row] = image
        self.signatures[row] = near_duplicates.compute_signature(image)
        return None

    def add(self, rows: Int64Array, skipped: dict[int, str]) -> None:
        """Count these rows as decoded, or as skipped; save that now and then."""
        self.decoded[rows] = True
        for row, why in skipped.items():
            if isinstance(why, TransientReason):
                self.decoded[row], self.unread[row] = False, why
            else:
                self.skipped[row] = why
        if time.monotonic() - self.last_note > SECONDS_BETWEEN_NOTES:
            self.save_progress()
            self.last_note = time.monotonic()

    def save_progress(self) -> None:
        """First the pixels reach the disk, then the note that they are there."""
        self.pixels.flush()
        self.signatures.flush()
        write_atomically(self.folder.path / SKIPPED, json.dumps(self.skipped).encode())
        np.save(content := io.BytesIO(), self.decoded)
        write_atomically(self.folder.path / DONE, content.getvalue())

    def finish(self) -> None:
        self.save_progress()
        if not len(self.folder.missing_rows(self.decoded)):
            (self.folder.path / DONE).unlink()


class EarlierVersion:
    """The folder of a split before some of its photos changed: its rows can be copied."""

    def __init__(self, path: Path, size: int, hashes: UInt8Array) -> None:
        """Raises one of DAMAGE if it is damaged or was made for another size."""
        own_hashes = np.load(path / HASHES)
        own_hashes[~read_decoded_rows(path, len(own_hashes), size)] = 0
        self.pixels, self.signatures = ArrayFile(path / PIXELS), ArrayFile(path / SIGNATURES)
        self.skipped = read_reasons(path)
        self.rows = find_rows(own_hashes, hashes)  # (N,), the row of each readable photo, or -1


def row_shapes(size: int) -> dict[str, tuple[int, ...]]:
    """{file: the shape of one of its rows}."""
    return {
        PIXELS: (size, size, 3),
        SIGNATURES: (near_duplicates.SIGNATURE_SIZE,),
        HASHES: (HASH_SIZE,),
    }


def read_decoded_rows(path: Path, count: int, size: int) -> BoolArray:
    """Which rows a folder has, (count,). Raises one of DAMAGE if it is damaged."""
    for name, row_shape in row_shapes(size).items():
        ArrayFile(path / name).require(np.uint8, count, *row_shape)
    read_reasons(path)
    try:
        rows: BoolArray = np.load(path / DONE)
    except FileNotFoundError:
        return np.ones(count, bool)
    if rows.shape != (count,) or rows.dtype != bool:
        raise ValueError(f"{DONE} has another shape")
    return rows


def read_reasons(path: Path) -> dict[int, str]:
    """{row: why it is skipped}. Raises one of DAMAGE."""
    return {int(row): str(why) for row, why in json.loads((path / SKIPPED).read_text()).items()}
