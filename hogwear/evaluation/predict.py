"""Computes logits from pixels, for validation in training and for all commands."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hogwear.data.array_file import ArrayFile
from hogwear.networks.network import Network
from hogwear.system.arrays import Float32Array, Int64Array, UInt8Array
from hogwear.system.errors import BadInput
from hogwear.system.workers import Workers

BATCH_SIZE = 32


class Outputs(NamedTuple):
    """What a network computes from n photos."""

    logits: Float32Array  # (n, classes)
    features: Float32Array  # (n, D), the input of the head


def prediction_job(
    net: Network, images: ArrayFile | UInt8Array, rows: Int64Array
) -> Callable[[int], Float32Array]:
    """A job for `Workers`: the logits of the BATCH_SIZE photos that begin at rows[start]."""

    def predict(start: int) -> Float32Array:
        with torch.inference_mode():
            pixels = torch.from_numpy(images[rows[start : start + BATCH_SIZE]])
            return net(pixels).numpy()

    return predict


def tail_job(
    net: Network, read: Callable[[Int64Array], Tensor], count: int
) -> Callable[[int], Float32Array]:
    """The same for `count` photos whose activations after the trunk have been computed.

    `read` returns those of the photos with these indices, (k,): (k, H, W, C).
    """

    def predict(start: int) -> Float32Array:
        with torch.inference_mode():
            index = np.arange(start, min(start + BATCH_SIZE, count))
            return net.head(net.tail(read(index))).numpy()

    return predict


def collect_logits(
    workers: Workers, count: int, on_batch: Callable[[], object] = lambda: None
) -> Float32Array:
    """The logits of all `count` photos, in order, from workers with a `prediction_job` "predict".

    The batches do not depend on the number of workers, so neither does any bit of the result.
    """
    parts: dict[int, Float32Array] = {}
    for start, logits in workers.run("predict", range(0, count, BATCH_SIZE)):
        parts[start] = logits
        on_batch()
    return np.concatenate([parts[start] for start in sorted(parts)])


def predict_logits(
    net: Network,
    images: ArrayFile | UInt8Array,
    rows: Int64Array,
    processes: int,
    on_batch: Callable[[], object] = lambda: None,
) -> Float32Array:
    """Logits of images[rows], (N, S, S, 3) uint8, in order. BadInput for NaN or infinite logits."""
    batches = -(-len(rows) // BATCH_SIZE)
    jobs = {"predict": prediction_job(net, images, rows)}
    with Workers(min(processes, batches), lambda rank: jobs) as workers:
        logits = collect_logits(workers, len(rows), on_batch)
    require_finite(logits)
    return logits


def predict_with_features(net: Network, images: UInt8Array, processes: int) -> Outputs:
    """Logits and features of all images, (N, S, S, 3) with N > 0, in order; raises the same."""

    def predict(start: int) -> Outputs:
        with torch.inference_mode():
            features = net.features(torch.from_numpy(images[start : start + BATCH_SIZE]))
            return Outputs(net.head(features).numpy(), features.numpy())

    starts = range(0, len(images), BATCH_SIZE)
    with Workers(min(processes, len(starts)), lambda rank: {"predict": predict}) as workers:
        parts = dict(workers.run("predict", starts))
    outputs = Outputs(*map(np.concatenate, zip(*(parts[start] for start in starts), strict=True)))
    require_finite(outputs.logits)
    return outputs


def require_finite(logits: Float32Array) -> None:
    """BadInput for NaN or infinite logits."""
    if not np.isfinite(logits).all():
        raise BadInput(
            "the network's outputs are NaN or infinite: its weights are unusable; "
            "restore another checkpoint, or train with --fresh"
        )
