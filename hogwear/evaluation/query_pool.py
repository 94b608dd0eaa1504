"""Chooses the photos whose labels would teach the network most: pool-based active learning.

They are uncertain, and unlike each other. Uncertainty is 1 minus the margin between the two largest
probabilities (Scheffer 2001); among the most uncertain photos, a greedy version of weighted
k-means++ picks them one by one. What else was measured: docs/decisions/label-next.md.
"""

from collections.abc import Sequence

import numpy as np

from hogwear.data.contents import shorten_hashes
from hogwear.data.decoding import HASH_SIZE
from hogwear.data.near_duplicates import SIGNATURE_SIZE, compute_signature, find_pairs
from hogwear.evaluation.prediction import Prediction
from hogwear.system.arrays import BoolArray, Float32Array, Float64Array, Int64Array, UInt8Array
from hogwear.system.text import plural
from hogwear.system.workers import call_in_worker

POOL = 5  # photos in the pool per photo to choose
SAME = 1e-6  # squared distance of unit vectors below which two photos are the same to the network


class QueryPool:
    """The most uncertain photos so far, without near duplicates of each other.

    pool = QueryPool(50, trained.trained_on)
    for predictions, features in chunks:
        pool.add(predictions, features)
    predictions = pool.choose()

    Memory does not grow with the number of photos that are added.
    """

    def __init__(self, count: int, trained_on: Int64Array) -> None:
        """To choose `count` photos, but none of `trained_on`: (k,), shortened hashes."""
        self.count, self.trained_on = count, trained_on
        self.predictions: list[Prediction] = []  # the most uncertain first, without images
        self.features = np.empty((0, 0), np.float32)  # (n, D)
        self.signatures = np.empty((0, SIGNATURE_SIZE), np.uint8)
        self.labelled = self.near_duplicates = 0  # photos that were left out

    def add(self, predictions: Sequence[Prediction], features: Float32Array) -> None:
        """Add photos that could be read, with images and content hashes; `features` is (n, D)."""
        hashes = np.frombuffer(b"".join(p.photo.content_hash for p in predictions), np.uint8)
        is_new = ~np.isin(shorten_hashes(hashes.reshape(-1, HASH_SIZE)), self.trained_on)
        self.labelled += int((~is_new).sum())
        if not is_new.any():
            return
        added = [prediction for prediction, new in zip(predictions, is_new, strict=True) if new]
        candidates = [*self.predictions, *(prediction.without_image() for prediction in added)]
        images = (prediction.photo.image for prediction in added)
        signatures = np.concatenate(
            [self.signatures, [compute_signature(image) for image in images if image is not None]]
        )
        order = np.argsort(-measure_uncertainty(candidates), kind="stable")
        is_similar = find_later_duplicates(signatures[order])
        self.near_duplicates += int(is_similar.sum())
        kept = order[~is_similar][: POOL * self.count]
        old = self.features.reshape(-1, features.shape[1])
        self.predictions = [candidates[row] for row in kept]
        self.features = np.concatenate([old, features[is_new]])[kept]
        self.signatures = signatures[kept]

    def choose(self) -> list[Prediction]:
        """The photos to label, the most useful first; fewer than `count` if there are no more."""
        if not self.predictions:
            return []
        uncertainty = measure_uncertainty(self.predictions)
        chosen = call_in_worker(lambda: choose_diverse(self.features, uncertainty, self.count))
        return [self.predictions[row] for row in chosen]

    def describe_left_out(self) -> str:
        """One line for people; empty if no photo was left out."""
        parts = []
        if self.labelled:
            parts.append(f"{plural(self.labelled, 'photo')} that the network was trained on")
        if self.near_duplicates:
            parts.append(f"{plural(self.near_duplicates, 'near duplicate')} of other photos")
        return f"Not listed: {' and '.join(parts)}." if parts else ""


def measure_uncertainty(predictions: Sequence[Prediction]) -> Float64Array:
    """1 minus the margin between the two largest probabilities: (n,), in 0..1."""
    top = [[share for _, share in prediction.top_classes()[:2]] for prediction in predictions]
    return np.array([1 - first + second for first, second in top])


def find_later_duplicates(signatures: UInt8Array) -> BoolArray:
    """(n, SIGNATURE_SIZE) -> whether each is a near duplicate of one before it that stays, (n,)."""
    is_similar = np.zeros(len(signatures), bool)
    for first, second in find_pairs(signatures).tolist():  # by the first row, so that it is decided
        is_similar[second] |= not is_similar[first]
    return is_similar


def choose_diverse(features: Float32Array, uncertainty: Float64Array, count: int) -> list[int]:
    """At most `count` rows of (n, D) features, by greedy k-means++ (Arthur and Vassilvitskii 2007).

    It begins with the most uncertain photo. The next one has the largest product of uncertainty and
    squared distance to the nearest of those before it, between directions from the mean.
    """
    directions = features - features.mean(axis=0)
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    distance = np.full(len(features), np.inf)
    row, chosen = int(uncertainty.argmax()), list[int]()
    while len(chosen) < min(count, len(features)) and distance[row] > SAME:
        chosen.append(row)
        distance = np.minimum(distance, 2 - 2 * (directions @ directions[row]))
        distance[row] = 0
        row = int(((uncertainty + 1e-12) * distance).argmax())
    return chosen
