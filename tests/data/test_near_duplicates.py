"""Near duplicates: changed copies are found, among very many photos, and nothing else is."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from hogwear.data import near_duplicates
from hogwear.data.decoding import decode
from hogwear.data.near_duplicates import find_pairs


def changed(photo: Path, how: str, file: Path) -> Path:
    with Image.open(photo) as opened:
        image = opened.convert("RGB")
    if how == "half":
        image = image.resize((image.width // 2, image.height // 2))
    if how == "darker":
        image = ImageEnhance.Brightness(image).enhance(0.9)
    image.save(file, "WEBP" if how == "webp" else "JPEG", quality=60)
    return file


@pytest.mark.parametrize("how", ["half", "darker", "webp"])
def test_a_changed_copy_is_found_and_no_other_photo(clean: Path, tmp_path: Path, how: str) -> None:
    photos = sorted(clean.glob("*/*/*"))
    copies = [changed(photo, how, tmp_path / str(i)) for i, photo in enumerate(photos)]
    pairs = find_pairs(
        np.stack([near_duplicates.compute_signature(decode(path, 160)) for path in photos + copies])
    )
    expected = {(i, i + len(photos)) for i in range(len(photos))}
    assert len(set(map(tuple, pairs.tolist())) & expected) >= 0.95 * len(photos)
    assert set(map(tuple, pairs.tolist())) <= expected


def test_the_pairs_among_many_signatures_are_those_of_a_brute_force_search() -> None:
    rng = np.random.default_rng(0)
    signatures = rng.integers(0, 256, (3000, near_duplicates.SIGNATURE_SIZE), np.uint8)
    for row in range(200):  # copies with so many bits changed, some just too many
        signatures[1000 + row] = signatures[row]
        bits = rng.choice(8 * near_duplicates.HASH_BYTES, int(rng.integers(20, 40)), replace=False)
        np.bitwise_xor.at(signatures[1000 + row], bits // 8, (1 << bits % 8).astype(np.uint8))
    unpacked = np.unpackbits(signatures[:, : near_duplicates.HASH_BYTES], axis=1).astype(np.float32)
    differing = (
        unpacked[:1000, None].sum(2) + unpacked[None].sum(2) - 2 * unpacked[:1000] @ unpacked.T
    ).astype(int)
    expected = [
        [one, other]
        for one, other in np.argwhere(differing <= near_duplicates.MAX_DISTANCE).tolist()
        if one < other
    ]
    assert find_pairs(signatures).tolist() == expected and 80 < len(expected) < 200
    assert find_pairs(signatures, border=1050).tolist() == [
        pair for pair in expected if pair[1] >= 1050
    ]


def test_identical_photos_form_one_group_with_comparisons_linear_in_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: Counter[int] = Counter()  # pairs, by the number of photos
    distances, have_similar_colours = (
        near_duplicates.count_differing_bits,
        near_duplicates.have_similar_colours,
    )

    def counted_distances(one: Any, other: Any) -> Any:
        compared[count] += len(one)
        return distances(one, other)

    def counted_colours(colours: Any, one: Any, other: Any) -> Any:
        compared[count] += len(one)
        return have_similar_colours(colours, one, other)

    monkeypatch.setattr(near_duplicates, "count_differing_bits", counted_distances)
    monkeypatch.setattr(near_duplicates, "have_similar_colours", counted_colours)
    signature = np.random.default_rng(0).integers(0, 256, near_duplicates.SIGNATURE_SIZE, np.uint8)
    for count in (200, 400, 800):
        [group] = near_duplicates.group_pairs(count, find_pairs(np.tile(signature, (count, 1))))
        assert group == list(range(count))
    assert compared[400] / compared[200] == pytest.approx(2, rel=0.05)
    assert compared[800] / compared[400] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("count", [0, 1])
def test_one_photo_or_none_has_no_near_duplicate(count: int) -> None:
    assert find_pairs(np.zeros((count, near_duplicates.SIGNATURE_SIZE), np.uint8)).shape == (0, 2)


def test_pairs_are_connected_to_groups() -> None:
    assert near_duplicates.group_pairs(9, np.array([[5, 7], [0, 3], [3, 8], [7, 6]])) == [
        [0, 3, 8],
        [5, 6, 7],
    ]
    assert near_duplicates.group_pairs(3, np.empty((0, 2), np.int64)) == []
