"""What to label next: uncertain photos that are unlike each other, none of them labelled."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hogwear.data import decoding
from hogwear.data.contents import shorten_hashes
from hogwear.evaluation.prediction import Photo, Prediction
from hogwear.evaluation.query_pool import POOL, QueryPool, choose_diverse, find_later_duplicates
from hogwear.system.arrays import Float32Array, Int64Array

NOBODY = np.empty(0, np.int64)
SIZE = 64


def predict(file: Path, margin: float, content: bytes | None = None) -> Prediction:
    """A prediction for a real photo, as infer makes it, with this margin between two classes."""
    content = content or file.read_bytes()
    image = decoding.decode(io.BytesIO(content), SIZE)
    photo = Photo(file, None, image, content_hash=decoding.hash_content(content))
    return Prediction(photo, {"hats": (1 + margin) / 2, "socks": (1 - margin) / 2})


@pytest.fixture(scope="module")
def predictions(photo_files: list[Path]) -> list[Prediction]:
    """Of twelve photos, from the most to the least certain."""
    files = photo_files[:: len(photo_files) // 12][:12]
    return [predict(file, 0.95 - 0.08 * i) for i, file in enumerate(files)]


@pytest.fixture(scope="module")
def features() -> Float32Array:
    """Of the twelve photos: no two of them point in the same direction."""
    return np.eye(12, dtype=np.float32) + 1


def names(predictions: list[Prediction]) -> list[str]:
    return [prediction.photo.file.name for prediction in predictions]


def test_the_most_uncertain_photos_are_chosen_and_the_most_uncertain_is_first(
    predictions: list[Prediction], features: Float32Array
) -> None:
    pool = QueryPool(4, NOBODY)
    pool.add(predictions, features)
    assert names(pool.choose()) == names(predictions[:-5:-1])
    assert pool.describe_left_out() == ""


def test_a_photo_like_a_more_uncertain_one_gives_way_to_another(
    predictions: list[Prediction], features: Float32Array
) -> None:
    alike = features.copy()
    alike[10] = alike[11] + 0.01 * alike[10]  # of the two most uncertain photos
    pool = QueryPool(4, NOBODY)
    pool.add(predictions, alike)
    assert names(pool.choose()) == names([predictions[i] for i in (11, 9, 8, 7)])


def test_uncertainty_and_distance_are_weighed_against_each_other() -> None:
    angles = np.array([0.0, 0.1, 2.0, 4.0])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert choose_diverse(features, np.array([1.0, 0.9, 0.5, 0.4]), 3) == [0, 2, 3]
    assert choose_diverse(features, np.array([1.0, 0.9, 1e-4, 1e-4]), 2) == [0, 1]


def test_photos_that_are_the_same_to_the_network_are_listed_once() -> None:
    features = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    assert choose_diverse(features, np.array([0.1, 0.3, 0.9, 0.8]), 4) == [2, 1]


@pytest.mark.parametrize("chunk", [1, 5, 12])
def test_the_choice_is_the_same_however_many_photos_are_added_at_a_time(
    chunk: int, predictions: list[Prediction]
) -> None:
    features = np.random.default_rng(0).standard_normal((12, 8), np.float32)
    once = QueryPool(1, NOBODY)
    once.add(predictions, features)
    pool = QueryPool(1, NOBODY)
    for start in range(0, 12, chunk):
        pool.add(predictions[start : start + chunk], features[start : start + chunk])
        assert len(pool.predictions) <= POOL
    assert (
        names(pool.predictions) == names(once.predictions) == names(predictions[: -POOL - 1 : -1])
    )
    assert np.array_equal(pool.features, features[: -POOL - 1 : -1])
    assert names(pool.choose()) == names(once.choose())


def test_photos_do_not_stay_in_memory(
    predictions: list[Prediction], features: Float32Array
) -> None:
    pool = QueryPool(4, NOBODY)
    pool.add(predictions, features)
    assert all(prediction.photo.image is None for prediction in pool.predictions)


def test_of_near_duplicates_the_most_uncertain_is_listed(
    predictions: list[Prediction], features: Float32Array
) -> None:
    resaved = io.BytesIO()
    with Image.open(predictions[11].photo.file) as photo:
        photo.convert("RGB").save(resaved, "JPEG", quality=70)
    copies = [predict(Path(f"{margin}.jpg"), margin, resaved.getvalue()) for margin in (0.0, 0.5)]
    pool = QueryPool(14, NOBODY)
    pool.add(predictions, features)
    pool.add(copies, -features[:2])  # the network sees something else in them
    assert names(pool.choose())[0] == "0.0.jpg"
    assert sorted(names(pool.choose())) == sorted(["0.0.jpg", *names(predictions[:11])])
    assert pool.describe_left_out() == "Not listed: 2 near duplicates of other photos."


def test_a_near_duplicate_of_one_that_is_left_out_may_stay() -> None:
    one = np.random.default_rng(0).integers(0, 2, 512)
    signatures = [one, np.where(np.arange(512) < 20, 1 - one, one)]
    signatures.append(np.where(np.arange(512) < 40, 1 - one, one))  # near the second only
    colours = np.arange(192)
    rows = np.stack([[*np.packbits(bits), *colours] for bits in signatures]).astype(np.uint8)
    assert find_later_duplicates(rows).tolist() == [False, True, False]


def trained_on(*predictions: Prediction) -> Int64Array:
    hashes = b"".join(prediction.photo.content_hash for prediction in predictions)
    return shorten_hashes(np.frombuffer(hashes, np.uint8).reshape(len(predictions), -1))


def test_photos_that_the_network_was_trained_on_are_counted_and_never_listed(
    predictions: list[Prediction], features: Float32Array
) -> None:
    pool = QueryPool(3, trained_on(predictions[11], predictions[9]))
    pool.add(predictions, features)
    assert names(pool.choose()) == names([predictions[i] for i in (10, 8, 7)])
    left_out = "Not listed: 2 photos that the network was trained on."
    assert pool.describe_left_out() == left_out
    pool = QueryPool(3, trained_on(*predictions))
    pool.add(predictions, features)
    assert pool.choose() == []


def test_a_network_that_is_certain_of_everything_still_has_a_choice(
    predictions: list[Prediction], features: Float32Array
) -> None:
    certain = [replace(each, probabilities={"hats": 1.0, "socks": 0.0}) for each in predictions]
    pool = QueryPool(12, NOBODY)
    pool.add(certain, features)
    assert sorted(names(pool.choose())) == sorted(names(certain))
