"""Augmentation: random crops and mirroring, so that no epoch shows the same pixels twice."""

import numpy as np
import torch
from torch import Tensor

from hogwear.system.arrays import UInt8Array


def augment(images: UInt8Array, side: int, random: np.random.Generator) -> Tensor:
    """A random crop of each photo, half of them mirrored: (B, S, S, 3) -> (B, side, side, 3) uint8.

    Crops are not enlarged to S again: objects keep the size that they have when whole photos are
    predicted (arXiv 1906.06423), and training costs less. Brightness is not changed
    (docs/decisions/augmentation.md).
    """
    count, size = images.shape[:2]
    corners = random.integers(0, size - side + 1, (count, 2))
    mirrored = random.integers(0, 2, (count,))
    cropped = np.empty((count, side, side, 3), np.uint8)
    for i, (y, x) in enumerate(corners):
        crop = images[i, y : y + side, x : x + side]
        cropped[i] = crop[:, ::-1] if mirrored[i] else crop
    return torch.from_numpy(cropped)
