"""The batches of a run: photos, cropped and mirrored at random so that no two epochs are equal."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hogwear.data.pixels import Pixels
from hogwear.system.arrays import UInt8Array
from hogwear.training.schedule import Schedule


@dataclass(frozen=True)
class Batches:
    """The augmented training batches of a run, by step."""

    photos: Pixels  # their file is open before workers are forked, for later it may be gone
    crop_size: int
    schedule: Schedule
    mirrors: bool = True  # half of the photos

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Pixels, (B, crop_size, crop_size, 3) uint8, and labels, (B,) int64."""
        chosen = self.schedule.photos_at(step)
        images = self.photos.images[self.photos.rows[chosen]]
        random = self.schedule.random_at(step)
        pixels = augment(images, self.crop_size, random, self.mirrors)
        return pixels, torch.from_numpy(self.photos.labels[chosen])


def augment(
    images: UInt8Array, side: int, random: np.random.Generator, mirrors: bool = True
) -> Tensor:
    """A random crop of each photo, half of them mirrored: (B, S, S, 3) -> (B, side, side, 3) uint8.

    Crops are not enlarged to S again: objects keep the size that they have when whole photos are
    predicted (arXiv 1906.06423), and training costs less. Brightness is not changed
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
