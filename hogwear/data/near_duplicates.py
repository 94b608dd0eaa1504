"""Photos that are nearly the same: a signature of each, and the pairs among very many. Pure functions on arrays.

A signature is 512 bits that say where the photo becomes brighter, which make pairs quick to find, and its colours at 8 x 8, which
tell apart what has one outline only (the same sunglasses in two colours). The thresholds are measured: docs/decisions/near-duplicates.md.
"""

import numpy as np
from PIL import Image

from hogwear.system.arrays import BoolArray, Int64Array, UInt8Array, UInt64Array

GRID, RISE = (
    16,
    3,
)  # a bit is set where the next cell of the grid, of 0..255, is brighter by more than that: less is noise of JPEG
COLOURS = 8
HASH_BYTES, SIGNATURE_SIZE = (
    2 * GRID * GRID // 8,
    2 * GRID * GRID // 8 + 3 * COLOURS * COLOURS,
)  # bytes
BANDS = HASH_BYTES // 2  # of 16 bits
MAX_DISTANCE = BANDS - 1  # differing bits: of two photos with that few, at least one band is equal
ALIKE = 0.995  # correlation of the colours ...
PAPER = (
    250  # ... where at least one of the two photos has a channel below that: white is no likeness
)
AT_ONCE = 1 << 14  # pairs whose colours are compared
NEIGHBOURS = 16  # photos with an equal band that each is compared with; more have too little in their bands to tell
SPREAD = np.random.default_rng(0).permutation(
    8 * HASH_BYTES
)  # which bits are a band: from all over, or the bands of white edges are all equal


def compute_signature(image: UInt8Array) -> UInt8Array:
    """(S, S, 3) uint8 RGB -> (SIGNATURE_SIZE,) uint8."""
    photo = Image.fromarray(image).resize((GRID + 1, GRID + 1), Image.Resampling.BOX)
    grey = np.asarray(photo.convert("L"), np.int16)
    rises = [np.diff(grey[:-1], axis=1) > RISE, np.diff(grey[:, :-1], axis=0) > RISE]
    colours = np.asarray(photo.resize((COLOURS, COLOURS), Image.Resampling.BOX))
    return np.concatenate([np.packbits(np.concatenate(rises, axis=None)[SPREAD]), colours.ravel()])


def find_pairs(signatures: UInt8Array, border: int = 0) -> Int64Array:
    """(n, SIGNATURE_SIZE) -> (k, 2) rows of near duplicates, each pair once, the smaller row first.

    With a `border`, only pairs of a row before it and one from it on: the rest is not looked at, which takes less time.

    Time and memory grow with n, not with its square: photos are compared only where at least one band of their bits is equal.
    """
    bits = np.ascontiguousarray(signatures[:, :HASH_BYTES])
    words, bands = bits.view(np.uint64), bits.view(">u2").astype(np.uint64)
    checked, found = np.empty(0, np.int64), np.empty(0, np.int64)  # pairs as one number
    for band in range(BANDS):
        key = np.zeros(len(bits), np.uint64)
        for column in range(
            band, band + 4
        ):  # the bands after it bring the most alike together where many have this one
            key = key << np.uint64(16) | bands[:, column % BANDS]
        order = np.argsort(
            key, kind="stable"
        )  # where all are the same, the same pairs come up in every band
        same, ordered = key[order] >> np.uint64(48), words[order]
        close = [checked[:0]]
        for offset in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
            at = np.flatnonzero(same[offset:] == same[:-offset])
            if not len(at):
                break
            if border:
                at = at[(order[at] < border) != (order[at + offset] < border)]
            at = at[count_differing_bits(ordered[at], ordered[at + offset]) <= MAX_DISTANCE]
            one, other = order[at], order[at + offset]
            close.append(np.minimum(one, other) * len(bits) + np.maximum(one, other))
        new = np.setdiff1d(np.concatenate(close), checked)
        checked = np.union1d(checked, new)
        for some in np.split(new, range(AT_ONCE, len(new), AT_ONCE)):
            found = np.append(
                found,
                some[
                    have_similar_colours(
                        signatures[:, HASH_BYTES:], *np.divmod(some, max(1, len(bits)))
                    )
                ],
            )
    return np.stack(np.divmod(np.sort(found), max(1, len(bits))), axis=1)


def count_differing_bits(one: UInt64Array, other: UInt64Array) -> Int64Array:
    """How many bits differ, row by row, (m,)."""
    differing = np.bitwise_count(one ^ other)
    return sum(
        (differing[:, word] for word in range(differing.shape[1])),
        start=np.zeros(len(one), np.int64),
    )


def have_similar_colours(colours: UInt8Array, one: Int64Array, other: Int64Array) -> BoolArray:
    """Whether the colours of rows correlate, (m,); those of photos of one colour never do."""
    x, y = (colours[rows] for rows in (one, other))
    channels = np.minimum(x, y).reshape(-1, COLOURS * COLOURS, 3)
    counts = np.repeat(
        np.minimum(np.minimum(channels[..., 0], channels[..., 1]), channels[..., 2]) < PAPER,
        3,
        axis=1,
    )
    cells = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    u, v = (
        (values - (values * counts).sum(axis=1, keepdims=True, dtype=np.float32) / cells) * counts
        for values in (x, y)
    )
    # No matrix product: BLAS would start threads, and a process with threads must not fork.
    uv, uu, vv = (np.einsum("mc,mc->m", *both) for both in ((u, v), (u, u), (v, v)))
    return (uv > ALIKE * np.sqrt(uu * vv)) & (uu * vv > 1)


def group_pairs(count: int, pairs: Int64Array) -> list[list[int]]:
    """The rows, of `count`, that pairs connect (union-find): each group sorted, by its first row; rows without a partner left out."""
    parent = list(range(count))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    for one, other in pairs.tolist():
        one, other = sorted((root(one), root(other)))
        parent[other] = one
    members: dict[int, list[int]] = {}
    for row in np.unique(pairs).tolist():
        members.setdefault(root(row), []).append(row)
    return list(members.values())


def count_leaked(train: UInt8Array, held_out: UInt8Array) -> int:
    """How many of the photos with these signatures are nearly in train, too."""
    return len(np.unique(find_pairs(np.concatenate([held_out, train]), border=len(held_out))[:, 0]))
