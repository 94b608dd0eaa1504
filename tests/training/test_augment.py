"""Augmentation of real photos: random crops, half of them mirrored."""

from pathlib import Path

import numpy as np
import pytest
from helpers import SIZE

from hogwear.data.decoding import decode
from hogwear.system.arrays import UInt8Array
from hogwear.training.augment import augment


@pytest.fixture(scope="module")
def photos(photo_files: list[Path]) -> UInt8Array:
    return np.stack([decode(path, SIZE) for path in photo_files[:8]])


def test_augmented_photos_are_crops_of_the_photos_mirrored_or_not(photos: UInt8Array) -> None:
    before, side = photos.copy(), SIZE - 4
    cropped = augment(photos, side, np.random.default_rng(0)).numpy()
    assert cropped.shape == (8, side, side, 3) and cropped.dtype == np.uint8
    for photo, crop in zip(photos, cropped, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(photo, (side, side, 3))
        windows = windows[:, :, 0]  # (5, 5, side, side, 3)
        assert any((windows == view).all((2, 3, 4)).any() for view in (crop, crop[:, ::-1]))
    assert np.array_equal(photos, before), "the originals stay as they are"


def test_the_same_seed_gives_the_same_crops_and_another_seed_others(photos: UInt8Array) -> None:
    first, again, other = (
        augment(photos, SIZE - 4, np.random.default_rng(seed)).numpy() for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert sum(np.array_equal(a, b) for a, b in zip(first, other, strict=True)) <= 1


def test_half_of_the_photos_are_mirrored() -> None:
    darker_on_the_left = np.zeros((400, 32, 32, 3), np.uint8)
    darker_on_the_left[:, :, 16:] = 100
    cropped = augment(darker_on_the_left, 32, np.random.default_rng(0)).numpy()
    mirrored = cropped[:, :, :8].mean((1, 2, 3)) > cropped[:, :, -8:].mean((1, 2, 3))
    assert 140 < mirrored.sum() < 260


def test_crops_come_from_everywhere_up_to_the_edges() -> None:
    ramps = np.zeros((400, 100, 100, 3), np.uint8)
    ramps[:] = np.arange(100)[:, None]
    left = augment(ramps, 90, np.random.default_rng(0)).numpy().min((1, 2, 3))
    assert set(left.tolist()) == set(range(11))
