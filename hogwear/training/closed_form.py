"""The classifier in closed form, from one pass over the training photos.

All workers compute the features of the photos and write them to the cache. Discriminant analysis of
them (discriminant.py) gives the head of the network, and predictions for photos that were left out
give the accuracy to expect. Fine-tuning that starts from a good classifier does not first distort
the features to make up for a random one (LP-FT, arXiv 2202.10054). Measurements:
docs/decisions/closed-form-head.md.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from hogwear.cluster.peers import SingleMachine
from hogwear.data.feature_file import FeatureFile
from hogwear.data.near_duplicates import find_pairs, group_pairs
from hogwear.data.pixels import Pixels
from hogwear.networks.network import Network
from hogwear.system.arrays import Float32Array, Float64Array, Int64Array
from hogwear.system.workers import Workers, call_in_worker
from hogwear.training.discriminant import ByFeatures, ByPhotos, Classifier, LeftOut, solve

BATCH_SIZE = 32
ROWS_AT_ONCE = 1024  # of the features, in memory
MAX_LEFT_OUT = 5000  # photos; their accuracy has a standard error of at most 0.7 points


@dataclass(frozen=True)
class Features:
    """The features, (n, D) float16, of the training photos of this machine.

    features = Features.open(net, photos, keep=True)
    with Workers(2, lambda rank: {"features": features.job(net)}) as workers:
        for count in features.compute(workers, pause): ...
    classifier = features.fit(cluster)
    """

    file: FeatureFile
    photos: Pixels
    num_classes: int

    @classmethod
    def open(cls, net: Network, photos: Pixels, keep: bool) -> "Features":
        """With `keep`, in the cache, where some or all may be already. Raises as FeatureFile."""
        key = fingerprint(net) if keep else None
        return cls(FeatureFile(photos, key, net.head.in_features), photos, net.head.out_features)

    @property
    def missing(self) -> Int64Array:
        """Rows of photos without features, (k,)."""
        return self.file.missing

    def job(self, net: Network) -> Callable[[int], None]:
        """A job for `Workers`: write the features of BATCH_SIZE photos, from `missing[start]` on.

        Create it before any of them is computed.
        """
        missing, images = self.missing, self.photos.images

        def write(start: int) -> None:
            rows = missing[start : start + BATCH_SIZE]
            with torch.inference_mode():
                self.file.write(rows, net.features(torch.from_numpy(images[rows])).numpy())

        return write

    def compute(self, workers: Workers, pause: Callable[[], bool]) -> Iterator[int]:
        """Write what is missing, unless `pause()` becomes true. The number of photos, by batch."""
        missing = self.missing
        for start, _ in workers.run("features", range(0, len(missing), BATCH_SIZE), pause):
            rows = missing[start : start + BATCH_SIZE]
            self.file.note(rows)
            yield len(rows)
        self.file.save_progress()

    def fit(self, cluster: SingleMachine) -> Classifier:
        """The classifier for the photos of all machines, computed in processes of their own."""
        labels = self.photos.labels
        sums, counts = cluster.all_reduce(call_in_worker(self.sum_classes))
        means = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        residuals = Residuals(self.file, labels, means)

        def solve_by_photos() -> Classifier:
            left_out = LeftOut.group(labels, group_near_duplicates(self.photos), counts)
            return solve(ByPhotos(residuals[np.arange(len(labels))], means), left_out)

        if cluster.machines == 1 and len(labels) <= means.shape[1]:
            return call_in_worker(solve_by_photos)
        [scatter] = cluster.all_reduce([call_in_worker(residuals.scatter)])

        def solve_by_features() -> Classifier:
            groups = group_near_duplicates(self.photos)
            some = choose_groups(groups, MAX_LEFT_OUT)
            left_out = LeftOut.group(labels[some], groups[some], counts)
            solver = ByFeatures(scatter, int(counts.sum()), means, residuals[some])
            return solve(solver, left_out)

        return call_in_worker(solve_by_features)

    def sum_classes(self) -> tuple[Float64Array, Int64Array]:
        """By class: the sum of the features, (classes, D), and the number of photos, (classes,)."""
        labels = self.photos.labels
        sums = np.zeros((self.num_classes, self.file.shape[1]))
        for index in blocks(len(labels)):
            np.add.at(sums, labels[index], self.file[index])
        return sums, np.bincount(labels, minlength=self.num_classes)


@dataclass(frozen=True)
class Residuals:
    """The features minus the means of their classes, (classes, D)."""

    file: FeatureFile
    labels: Int64Array  # (n,)
    means: Float32Array

    def __getitem__(self, index: Int64Array) -> Float32Array:
        """Those of some photos, (k, D)."""
        return self.file[index] - self.means[self.labels[index]]

    def scatter(self) -> Float32Array:
        """The sum of their outer products, (D, D)."""
        width = self.means.shape[1]
        scatter = torch.zeros(width, width)
        for index in blocks(len(self.labels)):
            residuals = torch.from_numpy(self[index])
            scatter.addmm_(residuals.T, residuals)
        return scatter.numpy()


def blocks(count: int) -> list[Int64Array]:
    """The numbers below `count`, in parts of ROWS_AT_ONCE."""
    return np.split(np.arange(count), range(ROWS_AT_ONCE, count, ROWS_AT_ONCE))


def group_near_duplicates(photos: Pixels) -> Int64Array:
    """The group of each photo, (n,); most are alone in theirs."""
    groups = np.arange(len(photos))
    for rows in group_pairs(len(photos), find_pairs(photos.signatures)):
        groups[rows] = rows[0]
    return groups


def choose_groups(groups: Int64Array, most: int) -> Int64Array:
    """About `most` photos, (k,) sorted: whole groups, chosen at random, the same every time."""
    names = np.unique(groups)
    shuffled = np.random.default_rng(0).permutation(len(names))
    place = np.empty_like(shuffled)
    place[shuffled] = np.arange(len(names))
    order = np.argsort(place[np.searchsorted(names, groups)], kind="stable")
    return np.sort(order[:most])


def fingerprint(net: Network) -> str:
    """What the features depend on: the weights before the head, and how they are computed."""
    digest = hashlib.sha256(str(getattr(net, "dtype", "")).encode())
    for name, p in net.named_parameters():
        if not name.startswith("head."):
            digest.update(p.detach().numpy().tobytes())
    return digest.hexdigest()[:16]
