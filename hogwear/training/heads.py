"""Heads in closed form: the first classifier of a run, and another one for every validation.

The trunk of the network is frozen, so what it computes from the training photos is kept in the
cache: each head after the first one takes a pass through the tail alone.
"""

import hashlib
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from hogwear.cluster.peers import SingleMachine
from hogwear.data.feature_file import FeatureFile
from hogwear.data.pixels import Pixels
from hogwear.data.safe_decoder import show_progress
from hogwear.networks.network import Network
from hogwear.system.arrays import Float16Array, Float32Array, Int64Array
from hogwear.system.signals import Stop
from hogwear.system.workers import Jobs, Workers
from hogwear.training.closed_form import Problem
from hogwear.training.discriminant import Classifier

BATCH_SIZE = 32
Compute = Callable[[Int64Array], Tensor]
Read = Callable[[Int64Array], Float32Array]
# The training head is weaker than the other one, or it would have nothing left to learn
TRAINING_RIDGE, TRAINING_SCALE = 0.6, 0.03  # the latter of its logits


class HeadSolver:
    """Solves the heads of a pretrained network for the training photos of all machines.

    `jobs` are for the workers that each pass takes. What is in the cache is not computed again.
    """

    def __init__(
        self, net: Network, photos: Pixels, cluster: SingleMachine, stop: Stop, is_new: bool
    ) -> None:
        """Only a run that `is_new` can `solve_first`.

        Raises OSError, with the file's name, where the disk is full.
        """
        self.net, self.photos, self.cluster, self.stop = net, photos, cluster, stop
        shape, width = net.trunk_shape(photos.images.shape[1]), (net.head.in_features,)
        self.trunk = FeatureFile(photos, f"trunk-{hash_weights(net, frozen=True)}", shape)
        name = f"features-{hash_weights(net, frozen=False)}" if is_new else None
        self.first = FeatureFile(photos, name, width)
        self.later = FeatureFile(photos, None, width) if is_new else self.first

    @property
    def jobs(self) -> Jobs:
        """Each computes BATCH_SIZE photos, given the place of the first of them."""
        net, images, rows = self.net, self.photos.images, self.photos.rows
        dtype: torch.dtype = getattr(net, "dtype", torch.float32)

        def compute_trunk(index: Int64Array) -> Tensor:
            return net.trunk(torch.from_numpy(images[rows[index]]))

        def compute_features(index: Int64Array) -> Tensor:
            return net.tail(torch.from_numpy(self.trunk[index]).to(dtype))

        def job(
            file: FeatureFile, compute: Callable[[Int64Array], Tensor]
        ) -> Callable[[int], None]:
            def write(start: int) -> None:
                index = batch(start, len(rows))
                with torch.inference_mode():
                    file.write(index, compute(index).float().numpy())

            return write

        return {
            "trunk": job(self.trunk, compute_trunk),
            "first features": job(self.first, compute_features),
            "later features": job(self.later, compute_features),
        }

    def solve_first(self, workers: Workers) -> tuple[Classifier, float] | None:
        """Solve both heads for the features of the network as it is.

        Returns the classifier, and the photos per second of this machine; None if a stop was
        requested before: the heads are then as they were.
        """
        started = time.monotonic()
        if not self.compute(workers, "trunk", self.trunk, "computing features"):
            return None
        if not self.compute(workers, "first features", self.first, "computing features"):
            return None
        classifier = self.solve(self.net.head, lambda index: as_float(self.first[index]), None)
        width = self.net.training_head.in_features

        def read_means(index: Int64Array) -> Float32Array:
            """The means of the last activations: the first features are their square roots."""
            return np.square(as_float(self.first[index][:, :width]))

        self.solve(self.net.training_head, read_means, TRAINING_RIDGE)
        scale_head(self.net.training_head, TRAINING_SCALE)
        return classifier, len(self.photos) / (time.monotonic() - started)

    def solve_again(self, workers: Workers, ridge: float) -> bool:
        """Solve the head for the features as they are now, by the ridge of the first one.

        False if a stop was requested before. The photos left out cannot choose the ridge any more:
        the tail was trained on all of them.
        """
        self.later.done[:] = False
        if not self.compute(workers, "trunk", self.trunk, "computing features"):
            return False
        if not self.compute(workers, "later features", self.later, "computing the head"):
            return False
        self.solve(self.net.head, lambda index: as_float(self.later[index]), ridge)
        return True

    def compute(self, workers: Workers, job: str, file: FeatureFile, what: str) -> bool:
        """Write the missing rows of a file. False if a stop was requested before the end."""
        missing = np.unique(file.missing // BATCH_SIZE) * BATCH_SIZE
        with show_progress(len(file.missing), what, True if self.cluster.rank else None) as bar:
            for start, _ in workers.run(job, missing.tolist(), lambda: self.stop.requested):
                index = batch(start, len(self.photos))
                file.note(index)
                bar.update(len(index))
                self.cluster.heartbeat()
        file.save_progress()
        return not self.stop.requested

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


def batch(start: int, count: int) -> Int64Array:
    return np.arange(start, min(start + BATCH_SIZE, count))


def hash_weights(net: Network, frozen: bool) -> str:
    """What the trunk's output, or the features, depend on: weights, and how they compute."""
    digest = hashlib.sha256(str(getattr(net, "dtype", "")).encode())
    heads = {id(p) for head in (net.head, net.training_head) for p in head.parameters()}
    for p in net.parameters():
        if id(p) not in heads and not (frozen and p.requires_grad):
            digest.update(p.detach().numpy().tobytes())
    return digest.hexdigest()[:16]
