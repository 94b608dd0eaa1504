"""How the decoded photos of one split lie on the disk.

A folder pixels/<split>-<size>-<slot>/<recipe>-<key>/ holds N photos at one size:

    pixels.npy      (N, S, S, 3) uint8
    signatures.npy  (N, SIGNATURE_SIZE) uint8, for near duplicates
    hashes.npy      (N, HASH_SIZE) uint8, of the photos' contents
    skipped.json    {row: reason}
    done.npy        (N,) bool, only while rows are missing: decoding was interrupted, other machines
                    have them, or the system did not let them be read

Missing rows are holes in the files, which take no disk space. The slot is a hash of the data
folder, the recipe of size and limits, the key of the contents: photos that were renamed, copied or
moved are not decoded again, and of changed photos only the changed ones are.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hogwear.data import near_duplicates
from hogwear.data.array_file import ArrayFile
from hogwear.data.decoding import HASH_SIZE, Limits
from hogwear.data.photos import Split
from hogwear.data.pixels import ALL_ROWS, Pixels
from hogwear.system.arrays import BoolArray, Int64Array
from hogwear.system.errors import BadInput
from hogwear.system.files import write_atomically

CACHE_VERSION = 4  # part of the recipe; raise it when pixels or signatures change
PIXELS, SIGNATURES, HASHES = "pixels.npy", "signatures.npy", "hashes.npy"
SKIPPED, DONE = "skipped.json", "done.npy"
# What reading a damaged file may raise
DAMAGE = (OSError, ValueError, EOFError, TypeError, AttributeError)


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

    def missing_rows(self, decoded: BoolArray, part: slice) -> Int64Array:
        """The rows of a part that can be read and are not decoded, (k,)."""
        wanted = np.zeros(len(self.split), bool)
        wanted[part] = self.split.hashes[part].any(axis=1)
        return np.flatnonzero(wanted & ~decoded)

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
            photo = split.paths[row]
            raise BadInput(
                f"{photo.parent}: no readable photo in this class ({photo.name}: {skipped[row]})"
            )
        return Pixels(
            self.path,
            ArrayFile(self.path / PIXELS),
            rows,
            labels,
            split.hashes[rows],
            {split.paths[row]: why for row, why in skipped.items()},
            ArrayFile(self.path / SIGNATURES),
        )

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
        return [
            entry for entry in self.path.parent.iterdir() if entry.is_dir() and entry != self.path
        ]


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
        ArrayFile(path / name).require_shape(count, *row_shape)
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
