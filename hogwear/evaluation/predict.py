"""From pixels to logits: the one way, shared by training's validation, eval and infer."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hogwear.data.pixels import Array, Images
from hogwear.system.errors import BadInput
from hogwear.system.workers import Workers

Logits = npt.NDArray[np.float32]  # (n, classes)
BATCH = 32


def job(
    net: nn.Module, images: Images | Array, rows: npt.NDArray[np.int64]
) -> Callable[[int], Logits]:
    """Work for `Workers`: the logits of the BATCH photos from rows[start] on."""

    def predict(start: int) -> Logits:
        with torch.inference_mode():
            logits: Logits = net(torch.from_numpy(images[rows[start : start + BATCH]])).numpy()
        return logits

    return predict


def gather(workers: Workers, count: int, on_batch: Callable[[], object] = lambda: None) -> Logits:
    """The answers of all `count` photos, in order, from workers whose job "predict" is a `job`.

    The batches are the same for any number of workers, and so is every bit of the result.
    """
    parts: dict[int, Any] = {}
    for start, logits in workers.run("predict", range(0, count, BATCH)):
        parts[start] = logits
        on_batch()
    return np.concatenate([parts[start] for start in sorted(parts)])


def predict(
    net: nn.Module,
    images: Images | Array,
    rows: npt.NDArray[np.int64],
    processes: int,
    on_batch: Callable[[], object] = lambda: None,
) -> Logits:
    """Logits of images[rows], (N, S, S, 3) uint8: every photo counts, in its order. BadInput where they are no numbers."""
    needed = -(-len(rows) // BATCH)
    with Workers(
        min(processes, needed), lambda rank: {"predict": job(net, images, rows)}
    ) as workers:
        logits = gather(workers, len(rows), on_batch)
    if not np.isfinite(logits).all():
        raise BadInput(
            "the network's answers are no finite numbers: its weights are useless; restore another checkpoint, or train with --fresh"
        )
    return logits
