"""Random changes to the photos of a batch, so that no epoch shows the same pixels twice."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hogwear.pixels import Array


def augment(images: Array, random: np.random.Generator) -> Tensor:
    """(B, S, S, 3) uint8 -> the same, float32: half of them mirrored, cropped to 0.8-1.0 of the side.

    The crop's size is one for the batch, so that one call resizes all of it; its place is drawn for each photo.
    Brightness stays: it would turn the white behind a product grey (docs/decisions/augmentation.md).
    """
    count, size = images.shape[:2]
    side = random.integers(round(0.8 * size), size + 1)
    places = random.integers(0, size - side + 1, (count, 2))
    mirrored = random.integers(0, 2, (count, 1))
    cropped = np.empty((count, side, side, 3), np.uint8)
    for i, (y, x) in enumerate(places):
        crop = images[i, y : y + side, x : x + side]
        cropped[i] = crop[:, ::-1] if mirrored[i, 0] else crop
    pixels = torch.from_numpy(cropped).permute(0, 3, 1, 2).float()
    return F.interpolate(pixels, size=(size, size), mode="bilinear").permute(0, 2, 3, 1)
