"""Leakage: photos of val and test that are in train, too, are counted, and people are warned."""

from pathlib import Path

import numpy as np
import pytest
from helpers import open_pixels
from PIL import Image

from hogwear.data import near_duplicates
from hogwear.data.cache import PhotoCache
from hogwear.data.dataset import find_photos
from hogwear.data.leakage import count_leaked, warn_about_leakage


def test_leakage_is_warned_about_in_one_line_and_only_if_there_is_some(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    for n, photo in enumerate(sorted((planted / "train/topwear").iterdir())[:2]):
        with Image.open(photo) as image:
            half = image.convert("RGB").resize((image.width // 2, image.height // 2))
        half.save(planted / f"test/topwear/{n}.jpg", quality=60)
    (planted / "train/topwear/0.jpg").write_bytes(b"no photo, and the first row")
    photos = find_photos(planted, cache)
    assert photos.test and PhotoCache(cache).open_if_complete(photos.train, 64) is None
    train, val, test = (PhotoCache(cache, processes=2).open(split, 64) for split in photos.splits)
    again = PhotoCache(cache).open_if_complete(photos.train, 64)
    assert again and np.array_equal(again.signatures, train.signatures)
    signatures = [near_duplicates.compute_signature(image) for image in train.images[train.rows]]
    assert np.array_equal(train.signatures, signatures)
    warn_about_leakage(train, val, "val")
    assert capsys.readouterr().err == ""
    for _ in range(2):  # the second time, the count comes from the cache
        warn_about_leakage(train, test, "test")
        warning = capsys.readouterr().err
        assert warning.startswith("Warning: leakage: test shares 2 of its 26 photos with train")
        assert warning.count("\n") == 1
    assert len(list(test.folder.glob("leaked-*.json"))) == 1


def test_a_damaged_count_is_counted_again(copies: list[Path], tmp_path: Path) -> None:
    pixels = open_pixels(copies, tmp_path / "cache")
    assert count_leaked(pixels, pixels) == 9
    [count] = pixels.folder.glob("leaked-*.json")
    count.write_bytes(b"")
    assert count_leaked(pixels, pixels) == 9 and count.read_text() == "9"
