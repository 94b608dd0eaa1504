"""Near duplicates: a signature for each photo, and the similar pairs among very many photos.

A signature has 512 bits that say where the photo becomes brighter, by which pairs are found
quickly, and the colours at 8 x 8, which distinguish equal outlines (the same sunglasses in two
colours). The thresholds are measured: docs/decisions/near-duplicates.md.
"""

import numpy as np
from PIL import Image

from hogwear.system.arrays import BoolArray, Int64Array, UInt8Array, UInt64Array

GRID = 16  # one bit per step to the right and per step down
MIN_RISE = 3  # of 255: a smaller step is JPEG noise
COLOUR_GRID = 8
HASH_BYTES = 2 * GRID * GRID // 8
SIGNATURE_SIZE = HASH_BYTES + 3 * COLOUR_GRID * COLOUR_GRID  # bytes
BANDS = HASH_BYTES // 2  # of 16 bits
MAX_DISTANCE = BANDS - 1  # differing bits: with so few, at least one band is equal
MIN_CORRELATION = 0.995  # of the colours ...
WHITE_LEVEL = 250  # ... in cells where a channel of either photo is below: white is no likeness
PAIRS_AT_ONCE = 1 << 14  # whose colours are compared
# With so many photos of an equal band each one is compared: larger groups have too little contrast
NEIGHBOURS = 16
# A band has bits from the whole photo; otherwise all bands at white edges would be equal
BIT_ORDER = np.random.default_rng(0).permutation(8 * HASH_BYTES)


def compute_signature(image: UInt8Array) -> UInt8Array:
    """(S, S, 3) uint8 RGB -> (SIGNATURE_SIZE,) uint8."""
    photo = Image.fromarray(image).resize((GRID + 1, GRID + 1), Image.Resampling.BOX)
    grey = np.asarray(photo.convert("L"), np.int16)
    rises = [np.diff(grey[:-1], axis=1) > MIN_RISE, np.diff(grey[:, :-1], axis=0) > MIN_RISE]
    bits = np.packbits(np.concatenate(rises, axis=None)[BIT_ORDER])
    colours = np.asarray(photo.resize((COLOUR_GRID, COLOUR_GRID), Image.Resampling.BOX))
    return np.concatenate([bits, colours.ravel()])


def find_pairs(signatures: UInt8Array, border: int = 0) -> Int64Array:
    """(n, SIGNATURE_SIZE) -> (k, 2) rows of near duplicates: each pair once, the smaller row first.

    With a `border`, only pairs of a row before it and a row from it on, which takes less time. Time
    and memory grow with n, not with its square: photos are compared only if at least one band of
    their bits is equal.
    """
    count = max(1, len(signatures))
    bits = np.ascontiguousarray(signatures[:, :HASH_BYTES])
    words, bands = bits.view(np.uint64), bits.view(">u2").astype(np.uint64)
    checked, found = np.empty(0, np.int64), np.empty(0, np.int64)  # a pair is row * count + row
    for band in range(BANDS):
        key = np.zeros(len(bits), np.uint64)
        # Sorted by the next bands, too, the most similar of many with an equal band are neighbours
        for column in range(band, band + 4):
            key = key << np.uint64(16) | bands[:, column % BANDS]
        order = np.argsort(key, kind="stable")  # stable: of equal photos always the same pairs
        close = find_close_neighbours(words[order], key[order] >> np.uint64(48), order, border)
        pairs = np.minimum(*close) * count + np.maximum(*close)
        new = np.setdiff1d(pairs, checked)
        checked = np.union1d(checked, new)
        for some in np.split(new, range(PAIRS_AT_ONCE, len(new), PAIRS_AT_ONCE)):
            is_similar = have_similar_colours(signatures[:, HASH_BYTES:], *np.divmod(some, count))
            found = np.append(found, some[is_similar])
    return np.stack(np.divmod(np.sort(found), count), axis=1)


def find_close_neighbours(
    words: UInt64Array, band: UInt64Array, order: Int64Array, border: int
) -> Int64Array:
    """(2, k) rows with an equal band and few differing bits.

    Photos are sorted by the `band`, (n,), and their other bits `words`, (n, 8); `order`, (n,), has
    their rows.
    """
    close = [np.empty((2, 0), np.int64)]
    for offset in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
        at = np.flatnonzero(band[offset:] == band[:-offset])
        if not len(at):
            break
        if border:
            at = at[(order[at] < border) != (order[at + offset] < border)]
        at = at[count_differing_bits(words[at], words[at + offset]) <= MAX_DISTANCE]
        close.append(np.stack([order[at], order[at + offset]]))
    return np.concatenate(close, axis=1)


def count_differing_bits(one: UInt64Array, other: UInt64Array) -> Int64Array:
    """(m, 8), (m, 8) -> (m,)"""
    differing = np.bitwise_count(one ^ other)
    return sum(
        (differing[:, word] for word in range(differing.shape[1])),
        start=np.zeros(len(one), np.int64),
    )


def have_similar_colours(colours: UInt8Array, one: Int64Array, other: Int64Array) -> BoolArray:
    """Whether the colours of two rows correlate, (m,); those of photos in one colour never do."""
    x, y = (colours[rows] for rows in (one, other))
    cells = np.minimum(x, y).reshape(-1, COLOUR_GRID * COLOUR_GRID, 3)
    darkest = np.minimum(np.minimum(cells[..., 0], cells[..., 1]), cells[..., 2])
    counts = np.repeat(darkest < WHITE_LEVEL, 3, axis=1)
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    u, v = (
        (values - (values * counts).sum(axis=1, keepdims=True, dtype=np.float32) / total) * counts
        for values in (x, y)
    )
    # No matrix product: BLAS would start threads, and a process with threads must not fork
    uv, uu, vv = (np.einsum("mc,mc->m", *both) for both in ((u, v), (u, u), (v, v)))
    return (uv > MIN_CORRELATION * np.sqrt(uu * vv)) & (uu * vv > 1)


def group_pairs(count: int, pairs: Int64Array) -> list[list[int]]:
    """The rows, of `count`, that pairs connect (union-find).

    Groups are sorted, each by itself and all by their first rows. Rows without a partner are left
    out.
    """
    parent = list(range(count))

    def find_root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    for one, other in pairs.tolist():
        one, other = sorted((find_root(one), find_root(other)))
        parent[other] = one
    groups: dict[int, list[int]] = {}
    for row in np.unique(pairs).tolist():
        groups.setdefault(find_root(row), []).append(row)
    return list(groups.values())


def count_leaked(train: UInt8Array, held_out: UInt8Array) -> int:
    """How many of the held-out photos with these signatures are nearly in train, too."""
    pairs = find_pairs(np.concatenate([held_out, train]), border=len(held_out))
    return len(np.unique(pairs[:, 0]))
