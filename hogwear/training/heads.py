"""Fits the heads of a pretrained network in closed form: at the start, and at each validation.

The trunk is frozen, so its activations for the training photos are kept in the cache: refitting the
head takes a pass through the tail only.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from hogwear.cluster.peers import SingleMachine
from hogwear.data.feature_file import FeatureFile
from hogwear.data.pixels import Pixels
from hogwear.networks.network import Network
from hogwear.system.arrays import Float16Array, Float32Array, Int64Array
from hogwear.system.signals import Stop
from hogwear.system.workers import Jobs, Workers, call_in_worker
from hogwear.training import unknown_classes
from hogwear.training.closed_form import Problem, group_photos
from hogwear.training.discriminant import Classifier
from hogwear.training.passes import Pass, TrunkOutputs, hash_weights

Read = Callable[[Int64Array], Float32Array]
# The training head starts with small logits: a head that fits its photos leaves no gradient
TRAINING_RIDGE = 0.6  # in units of the mean within-class variance
TRAINING_SCALE = 0.03  # factor of its logits


class HeadFitter:
    """Fits the heads of a pretrained network to the training photos of all machines.

    Workers compute the features, with these `jobs`. What is in the cache is not computed again.
    """

    def __init__(
        self, net: Network, photos: Pixels, cluster: SingleMachine, stop: Stop, is_new: bool
    ) -> None:
        """The first features of a run that `is_new` are kept in the cache.

        Raises OSError, with the file's name, on a full disk.
        """
        self.net, self.photos, self.cluster, self.stop = net, photos, cluster, stop
        self.trunk = TrunkOutputs(net, photos, "trunk")
        shape = (net.head.in_features,)
        name = f"features-{hash_weights(net, frozen=False)}" if is_new else None
        first = FeatureFile(photos, name, shape)
        later = FeatureFile(photos, None, shape) if is_new else first
        self.first = Pass("first features", first, self.compute_features, first.missing)
        self.later = Pass("later features", later, self.compute_features, np.arange(len(photos)))

    @property
    def jobs(self) -> Jobs:
        """The jobs that workers need for the passes, by name."""
        return {each.name: each.job for each in (self.trunk.computing, self.first, self.later)}

    def compute_features(self, index: Int64Array) -> Tensor:
        return self.net.tail(self.trunk[index])

    def fit_heads(
        self, workers: Workers, ridge: float | None = None
    ) -> tuple[Classifier, float] | None:
        """Fit the head and the training head to the features of the network as it is.

        Once the tail has been trained, it needs the `ridge` of the first classifier (as
        `refit_head` does), and the logits are not calibrated. Returns the classifier, which is now
        the head, and the photos per second of this machine. None if a stop was requested before;
        the heads are then unchanged.
        """
        started = time.monotonic()
        if not (self.run(workers, self.trunk.computing) and self.run(workers, self.first)):
            return None
        features = self.first.file
        classifier = self.solve_head(features, ridge)
        width = self.net.training_head.in_features

        def read_means(index: Int64Array) -> Float32Array:
            """Means of the last activations, (k, width): these features are their square roots."""
            return np.square(as_float(features[index][:, :width]))

        self.solve(self.net.training_head, read_means, TRAINING_RIDGE)
        scale_head(self.net.training_head, TRAINING_SCALE)
        return classifier, len(self.photos) / (time.monotonic() - started)

    def refit_head(self, workers: Workers, ridge: float) -> bool:
        """Fit the head to the current features, with the `ridge` of the first classifier.

        Its logits are not calibrated. False if a stop was requested before. The ridge is not chosen
        again by cross-validation: the tail was trained on all photos, so none is held out.
        """
        features = self.later.file
        features.done[:] = False
        if not (self.run(workers, self.trunk.computing) and self.run(workers, self.later)):
            return False
        self.solve_head(features, ridge)
        return True

    def measure_novelty(self, ridge: float) -> float | None:
        """How well unknown classes are told from others by the first features, with this ridge.

        See unknown_classes.py. In a cluster, this is measured on the photos of rank 0.
        """
        features = self.first.file
        is_chosen = unknown_classes.choose_sample(self.photos.labels)
        labels, groups, _ = group_photos(self.photos.where(is_chosen))

        def measure() -> float | None:
            of_photos = as_float(features[np.flatnonzero(is_chosen)])
            return unknown_classes.measure_auroc(of_photos, labels, groups, ridge)

        return call_in_worker(measure)

    def run(self, workers: Workers, one: Pass) -> bool:
        """Make a pass. False if a stop was requested before all rows were computed."""
        return one.run(workers, self.cluster, lambda: self.stop.requested)

    def solve_head(self, features: FeatureFile, ridge: float | None) -> Classifier:
        """Fit the head, and with it the score of unlike photos."""
        net = self.net
        classifier = self.solve(net.head, lambda index: as_float(features[index]), ridge)
        self.copy((classifier.novelty.offset, net.novelty.offset))
        self.copy((classifier.novelty.curvature, net.novelty.curvature))
        return classifier

    def solve(self, head: nn.Linear, read: Read, ridge: float | None) -> Classifier:
        """Fit a head to features, which `read` returns, and copy it to all machines.

        Without a `ridge`, cross-validation chooses it, and calibrates the logits.
        """
        problem = Problem(read, head.in_features, self.photos, head.out_features)
        classifier = problem.solve(self.cluster, ridge)
        self.copy((classifier.weight, head.weight), (classifier.bias, head.bias))
        return classifier

    def copy(self, *pairs: tuple[Float32Array, Tensor]) -> None:
        """Copy the arrays of rank 0 to the tensors of all machines."""
        for array, tensor in pairs:
            content = bytearray(self.cluster.broadcast_bytes(0, array.tobytes()))
            tensor.detach().copy_(torch.frombuffer(content, dtype=torch.float32).view_as(tensor))


def as_float(features: Float16Array) -> Float32Array:
    return features.astype(np.float32)


def scale_head(head: nn.Linear, factor: float) -> None:
    """Multiply the logits of a head by a factor, in place."""
    with torch.no_grad():
        head.weight.mul_(factor)
        head.bias.mul_(factor)
