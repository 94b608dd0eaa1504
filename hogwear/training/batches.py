"""The batches of a run: random crops of photos, mirrored at random, so that no two are equal."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hogwear.data.pixels import Pixels
from hogwear.system.arrays import UInt8Array
from hogwear.training.schedule import Schedule


@dataclass(frozen=True)
class Batches:
    """The augmented training batches of a run, by step.

    Scaling crops down takes less time than decoding the photos once more, at a smaller size.
    """

    photos: Pixels  # their file is open before workers are forked, for later it may be gone
    side: int  # of the crops, in pixels of the photos
    crop_size: int  # to which they are scaled down
    schedule: Schedule
    mirrors: bool = True  # half of the photos

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Pixels, (B, crop_size, crop_size, 3) uint8, and labels, (B,) int64."""
        chosen = self.schedule.photos_at(step)
        images = self.photos.images[self.photos.rows[chosen]]
        crops = augment(images, self.side, self.schedule.random_at(step), self.mirrors)
        return scale_down(crops, self.crop_size), torch.from_numpy(self.photos.labels[chosen])


def augment(
    images: UInt8Array, side: int, random: np.random.Generator, mirrors: bool = True
) -> Tensor:
    """A random crop of each photo, half of them mirrored: (B, S, S, 3) -> (B, side, side, 3) uint8.

    Crops are never enlarged to S again, which would make objects larger than in the whole photos
    that are predicted (arXiv 1906.06423). Brightness is not changed
    (docs/decisions/augmentation.md).
    """
    count, size = images.shape[:2]
    corners = random.integers(0, size - side + 1, (count, 2))
    mirrored = random.integers(0, 1 + mirrors, (count,))
    cropped = np.empty((count, side, side, 3), np.uint8)
    for i, (y, x) in enumerate(corners):
        crop = images[i, y : y + side, x : x + side]
        cropped[i] = crop[:, ::-1] if mirrored[i] else crop
    return torch.from_numpy(cropped)


def scale_down(pixels: Tensor, side: int) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, side, side, 3) uint8, with the filter of decoding."""
    if pixels.shape[1] == side:
        return pixels
    channels_first = pixels.permute(0, 3, 1, 2)
    scaled = F.interpolate(channels_first, (side, side), mode="bilinear", antialias=True)
    return scaled.permute(0, 2, 3, 1).contiguous()
