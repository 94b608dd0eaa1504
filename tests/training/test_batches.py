"""Augmentation of real photos, and batches that are the same whichever worker computes them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SIZE, ForkedCall, pixels_of
from PIL import Image

from hogwear.data.decoding import decode
from hogwear.system.arrays import UInt8Array
from hogwear.training.batches import Batches, augment, scale_down
from hogwear.training.schedule import LiveSettings, Schedule


@pytest.fixture(scope="module")
def photos(photo_files: list[Path]) -> UInt8Array:
    return np.stack([decode(path, SIZE) for path in photo_files[:8]])


@pytest.fixture
def schedule() -> Schedule:
    """Of 120 photos; the last batch of each epoch has 8."""
    return Schedule(120, 16, 0.01, 0, 0, LiveSettings.create())


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


def test_photos_stay_as_they_are_where_mirror_images_mean_something_else(
    photos: UInt8Array, schedule: Schedule
) -> None:
    """Crops of the full size, so that only mirroring could change them."""
    images = np.concatenate([photos] * 15)
    batches = Batches(pixels_of(images, np.arange(120) % 5), SIZE, SIZE, schedule)
    assert not np.array_equal(batches.batch(0)[0].numpy(), images[schedule.photos_at(0)])
    pixels, _ = replace(batches, mirrors=False).batch(0)
    assert np.array_equal(pixels.numpy(), images[schedule.photos_at(0)])


def test_crops_come_from_everywhere_up_to_the_edges() -> None:
    ramps = np.zeros((400, 100, 100, 3), np.uint8)
    ramps[:] = np.arange(100)[:, None]
    left = augment(ramps, 90, np.random.default_rng(0)).numpy().min((1, 2, 3))
    assert set(left.tolist()) == set(range(11))


def test_photos_are_scaled_down_as_when_they_are_decoded(photos: UInt8Array) -> None:
    scaled = scale_down(torch.from_numpy(photos), SIZE // 2).numpy()
    for photo, found in zip(photos, scaled, strict=True):
        half = (SIZE // 2, SIZE // 2)
        expected = np.asarray(Image.fromarray(photo).resize(half, Image.Resampling.BILINEAR))
        assert np.abs(found.astype(int) - expected).max() <= 2
    assert np.array_equal(scale_down(torch.from_numpy(photos), SIZE).numpy(), photos)


# --- batches


def test_crops_are_scaled_to_the_size_that_is_trained_on(
    photos: UInt8Array, schedule: Schedule
) -> None:
    batches = Batches(pixels_of(np.concatenate([photos] * 15), np.arange(120)), 24, 16, schedule)
    random = schedule.random_at(3)
    crops = augment(batches.photos.images[schedule.photos_at(3)], 24, random)
    assert torch.equal(batches.batch(3)[0], scale_down(crops, 16))
    assert batches.batch(3)[0].is_contiguous()


def test_labels_stay_with_their_photos(schedule: Schedule) -> None:
    numbered = np.broadcast_to(np.arange(120, dtype=np.uint8)[:, None, None, None], (120, 8, 8, 3))
    batches = Batches(pixels_of(numbered, np.arange(120) // 24), 8, 8, schedule)
    for step in (0, 7, 9):
        pixels, labels = batches.batch(step)
        assert pixels.shape == (8 if step == 7 else 16, 8, 8, 3)
        assert labels.tolist() == [int(photo[0, 0, 0]) // 24 for photo in pixels]


def test_photos_are_read_from_their_rows(schedule: Schedule) -> None:
    """A split has rows that hold no photo."""
    numbered = np.broadcast_to(np.arange(240, dtype=np.uint8)[:, None, None, None], (240, 8, 8, 3))
    photos = pixels_of(numbered, np.zeros(240, np.int64)).where(np.arange(240) % 2 == 1)
    pixels, _ = Batches(photos, 8, 8, schedule).batch(0)
    assert pixels[:, 0, 0, 0].tolist() == [2 * photo + 1 for photo in schedule.photos_at(0)]


def test_a_batch_is_the_same_whoever_computes_it(schedule: Schedule) -> None:
    images = np.random.default_rng(0).integers(0, 256, (120, SIZE, SIZE, 3), dtype=np.uint8)
    batches = Batches(pixels_of(images, np.arange(120) % 5), SIZE - 8, SIZE - 16, schedule)
    first, labels = batches.batch(11)

    def compute() -> tuple[Any, Any]:
        batches.batch(3)
        pixels, labels = batches.batch(11)
        return pixels.numpy(), labels.numpy()

    again, same = ForkedCall(compute).result()
    assert np.array_equal(first.numpy(), again) and np.array_equal(labels.numpy(), same)
    other = replace(batches, schedule=replace(schedule, seed=1))
    assert not torch.equal(first, other.batch(11)[0])
