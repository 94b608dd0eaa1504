"""Photos as pixels: the readable ones of a split."""

from dataclasses import dataclass, replace
from pathlib import Path

from hogwear.data.array_file import ArrayFile
from hogwear.system.arrays import BoolArray, Int64Array, UInt8Array

ALL_ROWS = slice(None)


@dataclass(frozen=True)
class Pixels:
    """The readable photos of one split.

    Its files stay open: they can be read whatever becomes of the cache, by forked processes, too.
    """

    folder: Path  # of the cache
    images: ArrayFile | UInt8Array  # (N, S, S, 3) uint8; index it with `rows`
    rows: Int64Array  # (n,) rows of `images` that hold a readable photo
    labels: Int64Array  # (n,)
    hashes: UInt8Array  # (n, HASH_SIZE), of the photos' contents
    products: UInt8Array  # (n, HASH_SIZE), equal for photos of one product; zeros: of none
    skipped: dict[Path, str]  # {photo: why it could not be read}
    all_signatures: ArrayFile | UInt8Array  # (N, SIGNATURE_SIZE) uint8; index it with `rows`

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def signatures(self) -> UInt8Array:
        """(n, SIGNATURE_SIZE), which tell near duplicates: see near_duplicates.py."""
        return self.all_signatures[self.rows]

    def where(self, mask: BoolArray) -> "Pixels":
        """The photos where the mask, (n,), is true."""
        by_row = {
            name: getattr(self, name)[mask] for name in ("rows", "labels", "hashes", "products")
        }
        return replace(self, **by_row)
