"""Heads in closed form: the first classifier of a run, and another one for every validation.

The trunk of the network is frozen, so what it computes from the training photos is kept in the
cache: each head after the first one takes a pass through the tail alone.
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
from hogwear.system.workers import Jobs, Workers
from hogwear.training.closed_form import Problem
from hogwear.training.discriminant import Classifier
from hogwear.training.passes import Pass, TrunkOutputs, hash_weights

Read = Callable[[Int64Array], Float32Array]
# The training head is weaker than the other one, or it would have nothing left to learn
TRAINING_RIDGE, TRAINING_SCALE = 0.6, 0.03  # the latter of its logits


class HeadFitter:
    """Solves the heads of a pretrained network for the training photos of all machines.

    `jobs` are for the workers that each pass takes. What is in the cache is not computed again.
    """

    def __init__(
        self, net: Network, photos: Pixels, cluster: SingleMachine, stop: Stop, is_new: bool
    ) -> None:
        """Only a run that `is_new` can `fit_heads`.

        Raises OSError, with the file's name, where the disk is full.
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
        """What workers do in the passes."""
        return {each.name: each.job for each in (self.trunk.computing, self.first, self.later)}

    def compute_features(self, index: Int64Array) -> Tensor:
        return self.net.tail(self.trunk[index])

    def fit_heads(self, workers: Workers) -> tuple[Classifier, float] | None:
        """Solve both heads for the features of the network as it is.

        Returns the classifier, and the photos per second of this machine; None if a stop was
        requested before: the heads are then as they were.
        """
        started = time.monotonic()
        if not (self.run(workers, self.trunk.computing) and self.run(workers, self.first)):
            return None
        features = self.first.file
        classifier = self.solve(self.net.head, lambda index: as_float(features[index]), None)
        width = self.net.training_head.in_features

        def read_means(index: Int64Array) -> Float32Array:
            """The means of the last activations: the first features are their square roots."""
            return np.square(as_float(features[index][:, :width]))

        self.solve(self.net.training_head, read_means, TRAINING_RIDGE)
        scale_head(self.net.training_head, TRAINING_SCALE)
        return classifier, len(self.photos) / (time.monotonic() - started)

    def refit_head(self, workers: Workers, ridge: float) -> bool:
        """Solve the head for the features as they are now, by the ridge of the first one.

        False if a stop was requested before. The photos left out cannot choose the ridge any more:
        the tail was trained on all of them.
        """
        features = self.later.file
        features.done[:] = False
        if not (self.run(workers, self.trunk.computing) and self.run(workers, self.later)):
            return False
        self.solve(self.net.head, lambda index: as_float(features[index]), ridge)
        return True

    def run(self, workers: Workers, one: Pass) -> bool:
        """Whether nothing is missing after a pass; otherwise, a stop was requested."""
        return one.run(workers, self.cluster, lambda: self.stop.requested)

    def solve(self, head: nn.Linear, read: Read, ridge: float | None) -> Classifier:
        """Solve a head, the same on all machines."""
        problem = Problem(read, head.in_features, self.photos, head.out_features)
        classifier = problem.solve(self.cluster, ridge)
        values = np.concatenate([classifier.weight.ravel(), classifier.bias])
        values = np.frombuffer(self.cluster.broadcast_bytes(0, values.tobytes()), np.float32)
        size = head.weight.numel()
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(values[:size].copy()).view(head.weight.shape))
            head.bias.copy_(torch.from_numpy(values[size:].copy()))
        return classifier


def as_float(features: Float16Array) -> Float32Array:
    return features.astype(np.float32)


def scale_head(head: nn.Linear, factor: float) -> None:
    """Multiply its logits."""
    with torch.no_grad():
        head.weight.mul_(factor)
        head.bias.mul_(factor)
