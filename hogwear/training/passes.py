"""Passes over photos by all workers, which write what a network computes to the cache."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hogwear.cluster.peers import SingleMachine
from hogwear.data.feature_file import FeatureFile
from hogwear.data.pixels import Pixels
from hogwear.data.safe_decoder import show_progress
from hogwear.networks.network import Network
from hogwear.system.arrays import AnyArray, Int64Array
from hogwear.system.workers import Workers

BATCH_SIZE = 32
# How tensors are kept in files; NumPy has no bfloat16, so its bits are kept
STORED_AS = {torch.bfloat16: np.int16, torch.float32: np.float32}


@dataclass(frozen=True)
class Pass:
    """A job of that name for workers, which computes the rows of some photos, by their place.

    Those in `todo` (k,), which must not change after the workers have been forked.
    """

    name: str
    file: FeatureFile
    compute: Callable[[Int64Array], Tensor]
    todo: Int64Array

    def job(self, start: int) -> None:
        """Compute and write BATCH_SIZE rows, from todo[start] on."""
        index = self.todo[start : start + BATCH_SIZE]
        with torch.inference_mode():
            self.file.write(index, to_array(self.compute(index)))

    def run(self, workers: Workers, cluster: SingleMachine, pause: Callable[[], bool]) -> bool:
        """Compute the rows that are missing, unless `pause()` becomes true. Whether none is now."""
        is_missing = ~self.file.done[self.file.rows[self.todo]]
        starts = [
            i for i in range(0, len(self.todo), BATCH_SIZE) if is_missing[i : i + BATCH_SIZE].any()
        ]
        hide = True if cluster.rank else None
        with show_progress(int(is_missing.sum()), "computing features", hide) as bar:
            for start, _ in workers.run(self.name, starts, pause):
                index = self.todo[start : start + BATCH_SIZE]
                self.file.note(index)
                bar.update(len(index))
                cluster.heartbeat()
        if starts:
            self.file.save_progress()
        return not len(self.file.missing)


class TrunkOutputs:
    """What the frozen trunk of a network computes from photos, in the cache."""

    def __init__(self, net: Network, photos: Pixels, name: str) -> None:
        """The pass that writes it is called `name`. Raises OSError as FeatureFile does."""
        self.dtype = net.dtype
        shape = net.trunk_shape(photos.images.shape[1])
        key = f"trunk-{hash_weights(net, frozen=True)}"
        self.file = FeatureFile(photos, key, shape, STORED_AS[net.dtype])

        def compute(index: Int64Array) -> Tensor:
            return net.trunk(torch.from_numpy(photos.images[photos.rows[index]]))

        self.computing = Pass(name, self.file, compute, self.file.missing)

    def __getitem__(self, index: Int64Array) -> Tensor:
        """The activations of some photos, (k, H, W, C), in the network's dtype."""
        return torch.from_numpy(self.file[index]).view(self.dtype)


def to_array(x: Tensor) -> AnyArray:
    """The values of a tensor, or their bits where NumPy does not have its dtype."""
    array: AnyArray = (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()
    return array


def hash_weights(net: Network, frozen: bool) -> str:
    """What the trunk's output, or the features, depend on: weights, and how they compute."""
    digest = hashlib.sha256(str(net.dtype).encode())
    heads = {id(p) for head in (net.head, net.training_head) for p in head.parameters()}
    for p in net.parameters():
        if id(p) not in heads and not (frozen and p.requires_grad):
            digest.update(p.detach().numpy().tobytes())
    return digest.hexdigest()[:16]
