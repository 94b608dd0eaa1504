"""Fill a folder of the cache: workers decode photos into it, and their parent notes progress."""

import io
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from hogwear.data import decoding, near_duplicates
from hogwear.data.array_file import ArrayFile
from hogwear.data.cache_folder import (
    DAMAGE,
    DONE,
    HASHES,
    PIXELS,
    SIGNATURES,
    SKIPPED,
    CacheFolder,
    read_decoded_rows,
    read_reasons,
)
from hogwear.data.contents import find_rows
from hogwear.data.decoding import TransientReason
from hogwear.data.safe_decoder import SafeReader
from hogwear.system.arrays import BoolArray, Int64Array, UInt8Array
from hogwear.system.files import write_atomically
from hogwear.system.text import escape

SECONDS_BETWEEN_NOTES = 20.0  # of progress: an interruption costs at most that much


class CacheWriter:
    """A folder that is being filled."""

    def __init__(self, folder: CacheFolder) -> None:
        self.folder, self.hashes = folder, folder.split.hashes
        self.decoded = self.open_or_create()  # (N,)
        reasons = read_reasons(folder.path)
        self.skipped = {row: why for row, why in reasons.items() if self.decoded[row]}
        self.unread: dict[int, str] = {}  # for reasons that may be gone the next time
        self.pixels, self.signatures = (
            ArrayFile(folder.path / name, "r+b") for name in (PIXELS, SIGNATURES)
        )
        self.earlier_versions = list(find_earlier_versions(folder))
        self.last_note = time.monotonic()

    def open_or_create(self) -> BoolArray:
        """Which rows are decoded: none, in a new folder, if there was no good one."""
        try:
            return self.folder.decoded_rows()
        except DAMAGE as error:
            path = self.folder.path
            if path.exists():
                warning = f"the cache {path} is damaged ({error}); its photos are decoded again"
                print(escape(f"Warning: {warning}"), file=sys.stderr)
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
        image = reader.read(
            row,
            partial(
                decoding.decode_verified,
                size=self.folder.size,
                limits=reader.limits,
                expected_hash=self.hashes[row].tobytes(),
            ),
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
        if (self.decoded | ~self.hashes.any(axis=1)).all():
            (self.folder.path / DONE).unlink()


class EarlierVersion:
    """The folder of a split before some of its photos changed: its rows can be copied."""

    def __init__(self, path: Path, size: int, hashes: UInt8Array) -> None:
        """Raises one of DAMAGE if it is damaged or was made for another size."""
        own_hashes = np.load(path / HASHES)
        decoded = read_decoded_rows(path, len(own_hashes), size) & own_hashes.any(axis=1)
        self.pixels, self.signatures = ArrayFile(path / PIXELS), ArrayFile(path / SIGNATURES)
        self.skipped = read_reasons(path)
        self.rows = find_rows(own_hashes[decoded], hashes)  # (N,), the row of each photo, or -1
        is_here = self.rows >= 0
        self.rows[is_here] = np.flatnonzero(decoded)[self.rows[is_here]]


def find_earlier_versions(folder: CacheFolder) -> Iterator[EarlierVersion]:
    """The folders beside this one that were made with the same recipe."""
    recipe = folder.path.name.partition("-")[0]
    for other in folder.others():
        if other.name.startswith(f"{recipe}-"):
            with suppress(*DAMAGE):
                yield EarlierVersion(other, folder.size, folder.split.hashes)
