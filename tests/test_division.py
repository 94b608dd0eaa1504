"""Photos without a split: near duplicates on one side, whatever else there is."""

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from hogwear import dataset, similar
from hogwear.dataset import Photos
from hogwear.division import SHARES, assigned
from hogwear.pixels import Pixels

A_DOZEN = 12


def split_of(photos: Photos) -> dict[str, str]:
    """{CLASS/NAME: split}"""
    assert photos.test
    return {f"{path.parent.name}/{path.name}": split.name for split in (photos.train, photos.val, photos.test) for path in split.paths}


def copy(photo: Path, target: Path, quality: int = 60, side: int = 10_000) -> None:
    """The photo once more, but of another quality and size."""
    image = Image.open(photo).convert("RGB")
    image.thumbnail((side, side))
    image.save(target, quality=quality)


@pytest.fixture
def folder(tmp_path: Path, photo_files: list[Path]) -> Path:
    """CLASS/i.jpg, different photos, and i-worse.jpg and i-small.jpg of each."""
    for name in ("footwear", "handbag"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i, photo in enumerate([p for p in photo_files if p.parent.name == name and p.name.startswith(name)][:A_DOZEN]):
            copy(photo, tmp_path / "data" / name / f"{i}.jpg", 95)
            copy(photo, tmp_path / "data" / name / f"{i}-worse.jpg", 40)
            copy(photo, tmp_path / "data" / name / f"{i}-small.jpg", 80, 90)
    return tmp_path / "data"


def test_near_duplicates_are_on_one_side(folder: Path, tmp_path: Path) -> None:
    photos = dataset.find(folder, tmp_path / "cache")
    sides = split_of(photos)
    assert all(sides[f"{name}/{i}.jpg"] == sides[f"{name}/{i}-worse.jpg"] == sides[f"{name}/{i}-small.jpg"] for name in photos.class_names for i in range(A_DOZEN))
    assert Counter(sides.values()) == {"train": 2 * (36 - 2 * 3), "val": 2 * 3, "test": 2 * 3}, "of 36 photos, 15 per cent are 5: one group of three"
    assert photos.notes == ("Split: 72 photos are nearly the same as others; 24 of their 24 groups are on one side.",)
    train, val, test = (Pixels.open(split, 160, tmp_path / "cache", 2).signatures for split in (photos.train, photos.val, photos.evaluated))
    assert similar.leaked(train, val) == similar.leaked(train, test) == similar.leaked(val, test) == 0


def test_a_photo_that_comes_later_goes_where_its_likes_are(folder: Path, tmp_path: Path) -> None:
    before = split_of(dataset.find(folder, tmp_path / "cache"))
    for i in range(A_DOZEN):
        copy(folder / "handbag" / f"{i}.jpg", folder / "footwear" / f"{i}-of-a-handbag.jpg", 50)
    after = split_of(dataset.find(folder, tmp_path / "cache"))
    assert before.items() < after.items()
    assert all(after[f"footwear/{i}-of-a-handbag.jpg"] == before[f"handbag/{i}.jpg"] for i in range(A_DOZEN)), "in whatever class"


def test_val_is_taken_out_of_train_by_groups_too(folder: Path, tmp_path: Path) -> None:
    whole = folder.rename(tmp_path / "train")
    (tmp_path / "data").mkdir()
    photos = dataset.find(whole.rename(tmp_path / "data" / "train").parent, tmp_path / "cache")
    val = {f"{path.parent.name}/{path.name.removesuffix('.jpg').split('-')[0]}" for path in photos.val.paths}
    assert len(photos.val) == 3 * len(val) == 2 * 3 and photos.test is None


def put(groups: list[tuple[str, ...]], **counts: int) -> dict[str, Counter[str]]:
    """{class: photos in each split} of classes with so many photos: a/0, a/1, ..."""
    found = {name: [str(i) for i in range(count)] for name, count in counts.items()}
    splits = assigned(found, {}, groups, SHARES)
    return {name: Counter(splits[f"{name}/{file}"] for file in files) for name, files in found.items()}


def group(name: str, *numbers: int) -> tuple[str, ...]:
    return tuple(f"{name}/{i}" for i in numbers)


def test_a_large_group_is_to_train_on() -> None:
    assert put([group("a", *range(60))], a=100) == {"a": {"train": 70, "val": 15, "test": 15}}


def test_every_split_gets_a_photo_of_each_class_even_of_very_few_groups() -> None:
    assert put([group("a", 0, 1), group("a", 2, 3), group("a", 4, 5)], a=6) == {"a": {"train": 2, "val": 2, "test": 2}}
    assert put([group("a", 0, 1, 2)], a=3) == {"a": {"train": 1, "val": 1, "test": 1}}, "one group, broken up"
    assert put([group("a", 0, 1)], a=3) == {"a": {"train": 1, "val": 1, "test": 1}}
    assert put([group("a", *range(50))], a=50)["a"].keys() == {"train", "val", "test"}
    both = put([("a/0", "b/0"), ("a/1", "b/1"), ("a/2", "b/2")], a=20, b=3)
    assert 14 <= both["a"]["train"] <= 16 and both["b"].keys() == {"train", "val", "test"}


def test_without_near_duplicates_the_shares_are_exact() -> None:
    assert put([], a=100, b=20, c=3) == {
        "a": {"train": 70, "val": 15, "test": 15},
        "b": {"train": 14, "val": 3, "test": 3},
        "c": {"train": 1, "val": 1, "test": 1},
    }
