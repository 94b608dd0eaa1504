"""Passes over photos: all workers compute features or activations, and write them to files."""

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
# The dtype of a tensor -> the dtype of its file. NumPy has no bfloat16, so its bits are stored.
STORED_AS = {torch.bfloat16: np.int16, torch.float32: np.float32}


@dataclass(frozen=True)
class Pass:
    """Computes a row of `file` for each photo in `todo`, in batches, as a job of the workers.

    Photos are given by their index in the split, 0 to n - 1. `todo` must not change once the
    workers have been forked, because each of them has its own copy.
    """

    name: str  # of the job
    file: FeatureFile
    compute: Callable[[Int64Array], Tensor]  # indices of photos, (B,) -> their rows, (B, ...)
    todo: Int64Array  # (k,) indices of photos

    def job(self, start: int) -> None:
        """In a worker: compute and write the rows of a batch, the photos from todo[start] on."""
        index = self.todo[start : start + BATCH_SIZE]
        with torch.inference_mode():
            self.file.write(index, to_array(self.compute(index)))

    def run(self, workers: Workers, cluster: SingleMachine, pause: Callable[[], bool]) -> bool:
        """Compute the missing rows, until `pause()` becomes true. True if none is missing then."""
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
    """The activations of the frozen trunk for the photos of a split, kept in the cache."""

    def __init__(self, net: Network, photos: Pixels, name: str) -> None:
        """`name` is that of the workers' job that computes them. Raises OSError as FeatureFile."""
        self.dtype = net.dtype
        shape = net.trunk_shape(photos.images.shape[1])
        key = f"trunk-{hash_weights(net, frozen=True)}"
        self.file = FeatureFile(photos, key, shape, STORED_AS[net.dtype])

        def compute(index: Int64Array) -> Tensor:
            return net.trunk(torch.from_numpy(photos.images[photos.rows[index]]))

        self.computing = Pass(name, self.file, compute, self.file.missing)

    def __getitem__(self, index: Int64Array) -> Tensor:
        """The activations for some photos, (k, H, W, C) in the network's dtype, by index, (k,)."""
        return torch.from_numpy(self.file[index]).view(self.dtype)


def to_array(x: Tensor) -> AnyArray:
    """A tensor's values as an array; those of a bfloat16 tensor as int16, bit by bit."""
    array: AnyArray = (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()
    return array


def hash_weights(net: Network, frozen: bool) -> str:
    """A key for what the network computes from photos: a hash of its dtype and weights, in hex.

    With `frozen`, only weights that are never trained count; otherwise, all but those of the heads.
    """
    digest = hashlib.sha256(str(net.dtype).encode())
    heads = {id(p) for head in (net.head, net.training_head) for p in head.parameters()}
    for p in net.parameters():
        if id(p) not in heads and not (frozen and p.requires_grad):
            digest.update(p.detach().numpy().tobytes())
    return digest.hexdigest()[:16]
