"""Photos are recognised by content and class, and changes are named."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import CLASSES, pixels_of

from hogwear.data.contents import shorten_hashes
from hogwear.data.photos import Split
from hogwear.data.pixels import Pixels
from hogwear.system.paths import Paths
from hogwear.training.photo_sets import PhotoSet, PhotoSets, add_photos

HASHES = np.random.default_rng(0).integers(1, 256, (6, 16), dtype=np.uint8)


@pytest.fixture
def pixels() -> Pixels:
    """Six photos, two of each of the first three classes."""
    images = np.zeros((6, 32, 32, 3), np.uint8)
    return replace(pixels_of(images, np.arange(6) // 2), hashes=HASHES)


def test_the_order_of_photos_does_not_matter(pixels: Pixels) -> None:
    order = np.array([3, 0, 5, 1, 4, 2])
    shuffled = replace(pixels, labels=pixels.labels[order], hashes=HASHES[order])
    assert PhotoSet.from_pixels(shuffled, CLASSES) == PhotoSet.from_pixels(pixels, CLASSES)


def test_contents_and_classes_matter(pixels: Pixels) -> None:
    exchanged = replace(pixels, labels=np.array([0, 1, 0, 1, 2, 2]))
    changed = replace(pixels, hashes=HASHES + (np.arange(6) == 4)[:, None].astype(np.uint8))
    fewer = pixels.where(np.arange(6) != 3)
    found = [PhotoSet.from_pixels(x, CLASSES) for x in (pixels, exchanged, changed, fewer)]
    assert len(set(found)) == 4 and [photos.count for photos in found] == [6, 6, 6, 5]


def test_changes_are_named_by_split() -> None:
    one, other, fewer = PhotoSet(1200, "1"), PhotoSet(1200, "2"), PhotoSet(40, "3")
    before = PhotoSets(False, one, fewer)
    assert list(before.changes_since(before)) == []
    assert list(PhotoSets(False, other, one).changes_since(before)) == [
        "some of the 1,200 training photos are new or in another class",
        "40 validation photos before, 1,200 now",
    ]


def test_renaming_a_class_changes_no_photos(pixels: Pixels) -> None:
    names, order = ("b", "d", "c"), np.array([0, 2, 1])  # b, c and d before
    now = replace(pixels, labels=order[pixels.labels])
    photo_set = PhotoSet.from_pixels(pixels, ("b", "c", "d"))
    assert PhotoSet.from_pixels(now, names) == photo_set

    fewer = PhotoSet.from_pixels(pixels.where(np.arange(6) != 3), ("b", "c", "d"))
    present, before = PhotoSets(False, *"12"), PhotoSets(False, photo_set, fewer)
    assert present.renamed_from(before, before) == present
    other_val = replace(before, val=photo_set)
    assert present.renamed_from(before, other_val) == replace(present, val=photo_set)
    other_train = replace(before, train=fewer)
    assert present.renamed_from(before, other_train) == replace(present, train=fewer)


def test_photos_trained_on_are_remembered_for_ever_and_unreadable_ones_never() -> None:
    def split_of(hashes: np.ndarray) -> Split:
        labels = np.zeros(len(hashes), np.int64)
        paths = Paths([f"{i}.jpg" for i in range(len(hashes))])
        return Split("train", paths, labels, None, hashes, np.zeros_like(hashes), {})  # type: ignore[arg-type]

    first = split_of(np.concatenate([HASHES[:3], np.zeros((1, 16), np.uint8)]))
    trained_on = add_photos(None, first)
    assert set(trained_on.tolist()) == set(shorten_hashes(HASHES[:3]).tolist())
    trained_on = add_photos(trained_on, split_of(HASHES[2:5]))
    assert set(trained_on.tolist()) == set(shorten_hashes(HASHES[:5]).tolist())
