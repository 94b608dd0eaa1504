"""Splitting: near duplicates stay together, and every photo keeps its split."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from split_folders import copy, find

from hogwear.data import dataset, near_duplicates
from hogwear.data.cache import PhotoCache
from hogwear.data.photos import Photos
from hogwear.data.splitting import SHARES, Assigner
from hogwear.system.artifacts import SPLIT
from hogwear.system.errors import BadInput

A_DOZEN = 12


def split_of(photos: Photos) -> dict[str, str]:
    """{CLASS/NAME: split}"""
    assert photos.test
    return {
        f"{path.parent.name}/{path.name}": split.name
        for split in (photos.train, photos.val, photos.test)
        for path in split.paths
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.fixture
def folder(tmp_path: Path, photo_files: list[Path]) -> Path:
    """CLASS/i.jpg, different photos, and i-worse.jpg and i-small.jpg of each."""
    for name in ("footwear", "handbag"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i, photo in enumerate(
            [p for p in photo_files if p.parent.name == name and p.name.startswith(name)][:A_DOZEN]
        ):
            copy(photo, tmp_path / "data" / name / f"{i}.jpg", 95)
            copy(photo, tmp_path / "data" / name / f"{i}-worse.jpg", 40)
            copy(photo, tmp_path / "data" / name / f"{i}-small.jpg", 80, 90)
    return tmp_path / "data"


def test_near_duplicates_are_in_one_split(folder: Path, model: Path, tmp_path: Path) -> None:
    photos = find(folder, model)
    sides = split_of(photos)
    assert all(
        sides[f"{name}/{i}.jpg"] == sides[f"{name}/{i}-worse.jpg"] == sides[f"{name}/{i}-small.jpg"]
        for name in photos.class_names
        for i in range(A_DOZEN)
    )
    assert Counter(sides.values()) == {"train": 2 * (36 - 2 * 3), "val": 2 * 3, "test": 2 * 3}, (
        "of 36 photos, 15 per cent are 5: one group of three"
    )
    assert photos.notes == (
        "Near duplicates: 72 photos in 24 groups, 24 of them in one split each.",
    )
    train, val, test = (
        PhotoCache(tmp_path / "cache", processes=2).open(split, 160).signatures
        for split in (photos.train, photos.val, photos.evaluated)
    )
    assert (
        near_duplicates.count_leaked(train, val)
        == near_duplicates.count_leaked(train, test)
        == near_duplicates.count_leaked(val, test)
        == 0
    )
    groups = json.loads((model / SPLIT).read_text())["group"]
    assert Counter(Counter(groups.values()).values()) == {3: 24}, "whose key is written down, too"


def test_a_later_near_duplicate_joins_the_split_of_its_group(folder: Path, model: Path) -> None:
    before = split_of(find(folder, model))
    for i in range(A_DOZEN):
        copy(folder / "handbag" / f"{i}.jpg", folder / "footwear" / f"{i}-of-a-handbag.jpg", 50)
    after = split_of(find(folder, model))
    assert before.items() < after.items()
    assert all(
        after[f"footwear/{i}-of-a-handbag.jpg"] == before[f"handbag/{i}.jpg"]
        for i in range(A_DOZEN)
    ), "in whatever class"
    assert Counter(Counter(json.loads((model / SPLIT).read_text())["group"].values()).values()) == {
        4: 12,
        3: 12,
    }


def test_a_near_duplicate_of_photos_in_two_splits_goes_to_train_with_a_note(
    tens: Path, model: Path
) -> None:
    file = model / SPLIT
    copy(tens / "handbag" / "0.jpg", tens / "handbag" / "0-worse.jpg", 50)
    before = find(tens, model)
    told = json.loads(file.read_text())
    of_group = list(told["group"])
    assert len(of_group) == 2
    told["split"].update(zip(of_group, ("test", "train"), strict=True))
    file.write_text(json.dumps(told))
    copy(tens / "handbag" / "0.jpg", tens / "handbag" / "0-worst\x1b[31m.jpg", 30)
    after = find(tens, model)
    assert (
        after.train
        and split_of(after)["handbag/0-worst\x1b[31m.jpg"] == "train"
        and len(after.train) + len(after.val) + len(after.evaluated) == 22
    )
    assert (
        after.notes[-1]
        == f"New photos whose near duplicates or products are in two splits go to train: 1 photo, {tens}/handbag/0-worst\\x1b[31m.jpg."
    )
    assert before.notes != after.notes


def test_val_is_taken_from_train_in_whole_groups(folder: Path, model: Path, tmp_path: Path) -> None:
    whole = folder.rename(tmp_path / "train")
    (tmp_path / "data").mkdir()
    photos = find(whole.rename(tmp_path / "data" / "train").parent, model)
    val = {
        f"{path.parent.name}/{path.name.removesuffix('.jpg').split('-')[0]}"
        for path in photos.val.paths
    }
    assert len(photos.val) == 3 * len(val) == 2 * 3 and photos.test is None


def test_the_split_survives_new_photos_and_a_deleted_cache(
    tens: Path, model: Path, photo_files: list[Path], tmp_path: Path
) -> None:
    before = split_of(find(tens, model))
    for i, photo in enumerate(
        [p for p in photo_files if p.name.startswith(("eyewear", "topwear"))][:6]
    ):
        shutil.copy(photo, tens / "footwear" / f"more-{i}.jpg")
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        assert before.items() <= split_of(find(tens, model)).items()


def test_renamed_relabelled_copied_and_moved_photos_keep_their_split(
    tens: Path, model: Path, tmp_path: Path
) -> None:
    before = split_of(find(tens, model))
    written = (model / SPLIT).read_bytes()
    (tens / "footwear").rename(tens / "boots")
    for i in range(10):
        (tens / "handbag" / f"{i}.jpg").rename(tens / "handbag" / f"renamed-{i}.jpg")
        shutil.copy(tens / "handbag" / f"renamed-{i}.jpg", tens / "handbag" / f"copy-{i}.jpg")
    (tens / "boots" / "0.jpg").rename(tens / "handbag" / "relabelled.jpg")
    after = split_of(find(tens.rename(tmp_path / "moved"), model))
    expected = {f"boots/{i}.jpg": before[f"footwear/{i}.jpg"] for i in range(1, 10)} | {
        "handbag/relabelled.jpg": before["footwear/0.jpg"]
    }
    for i in range(10):
        expected |= dict.fromkeys(
            (f"handbag/renamed-{i}.jpg", f"handbag/copy-{i}.jpg"), before[f"handbag/{i}.jpg"]
        )
    assert after == expected and (model / SPLIT).read_bytes() == written


def test_copies_of_a_photo_are_in_one_split_and_count_once(tens: Path, model: Path) -> None:
    for i in range(30):
        shutil.copy(tens / "handbag" / "3.jpg", tens / "handbag" / f"copy-{i}.jpg")
    sides = split_of(find(tens, model))
    assert len({sides[name] for name in sides if "copy" in name} | {sides["handbag/3.jpg"]}) == 1
    assert Counter(sides[f"handbag/{i}.jpg"] for i in range(10)) == {
        "train": 6,
        "val": 2,
        "test": 2,
    }
    for photo in (tens / "footwear").iterdir():
        photo.write_bytes((tens / "footwear" / "0.jpg").read_bytes())
    with pytest.raises(BadInput, match=r"footwear: too few photos \(1, not counting copies\)"):
        dataset.find_photos(tens, model.parent / "cache")


def test_an_unreadable_photo_is_not_assigned_until_it_can_be_read(
    tens: Path, model: Path, photo_files: list[Path]
) -> None:
    shutil.copy(photo_files[0], tens / "outside.jpg")
    (tens / "handbag" / "new.jpg").symlink_to("missing.jpg")
    photos = find(tens, model)
    assert (
        split_of(photos)["handbag/new.jpg"] == "train"
        and len(json.loads((model / SPLIT).read_text())["split"]) == 20
    )
    pixels = PhotoCache(model.parent / "cache", processes=1).open(photos.train, 32)
    assert {path.name: why for path, why in pixels.skipped.items()} == {
        "new.jpg": "No such file or directory"
    }
    (tens / "outside.jpg").rename(tens / "handbag" / "missing.jpg")
    sides = split_of(find(tens, model))
    assert (
        sides["handbag/new.jpg"] == sides["handbag/missing.jpg"]
        and len(json.loads((model / SPLIT).read_text())["split"]) == 21
    )


def test_only_train_assigns_new_photos(
    tens: Path, model: Path, photo_files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        BadInput, match=r"20 of 20 photos in .* not in .*split\.json yet; run train"
    ):
        find(tens, model, assigns_new=False)
    before = split_of(find(tens, model))
    assert split_of(find(tens, model, assigns_new=False)) == before
    written = (model / SPLIT).read_bytes()
    for i, photo in enumerate(p for p in photo_files if p.name.startswith("eyewear")):
        shutil.copy(photo, tens / "footwear" / f"new-{i}.jpg")
    assert (
        split_of(find(tens, model, assigns_new=False)) == before
        and (model / SPLIT).read_bytes() == written
    )
    count = len(list(tens.glob("*/new-*")))
    assert (
        capsys.readouterr().err
        == f"Warning: {count} of {20 + count} photos in {tens} not in {model / SPLIT} yet, ignored; run train to assign them to a split\n"
    )
    after = find(tens, model)
    assert before.items() < split_of(after).items() and len(split_of(after)) == 20 + count


def put(groups: list[tuple[str, ...]], **counts: int) -> dict[str, Counter[str]]:
    """{class: photos in each split} of classes with so many photos: a/0, a/1, ..."""
    found = {name: [f"{name}/{i}" for i in range(count)] for name, count in counts.items()}
    splits = Assigner({}, groups, SHARES).assign_all(list(found.values()))
    return {name: Counter(splits[file] for file in files) for name, files in found.items()}


def group(name: str, *numbers: int) -> tuple[str, ...]:
    return tuple(f"{name}/{i}" for i in numbers)


def test_a_large_group_goes_to_train() -> None:
    assert put([group("a", *range(60))], a=100) == {"a": {"train": 70, "val": 15, "test": 15}}


def test_every_split_gets_a_photo_of_each_class_even_with_very_few_groups() -> None:
    assert put([group("a", 0, 1), group("a", 2, 3), group("a", 4, 5)], a=6) == {
        "a": {"train": 2, "val": 2, "test": 2}
    }
    assert put([group("a", 0, 1, 2)], a=3) == {"a": {"train": 1, "val": 1, "test": 1}}, (
        "one group, broken up"
    )
    assert put([group("a", 0, 1)], a=3) == {"a": {"train": 1, "val": 1, "test": 1}}
    assert put([group("a", *range(50))], a=50)["a"].keys() == {"train", "val", "test"}
    both = put([("a/0", "b/0"), ("a/1", "b/1"), ("a/2", "b/2")], a=20, b=3)
    assert 13 <= both["a"]["train"] <= 16, (
        "a group may have to move for the sake of the other class"
    )
    assert both["b"].keys() == {"train", "val", "test"}


def test_without_near_duplicates_the_shares_are_exact() -> None:
    assert put([], a=100, b=20, c=3) == {
        "a": {"train": 70, "val": 15, "test": 15},
        "b": {"train": 14, "val": 3, "test": 3},
        "c": {"train": 1, "val": 1, "test": 1},
    }


def test_a_photo_in_two_classes_has_one_split_and_takes_none_from_the_other_class() -> None:
    found = {"a": [str(i) for i in range(3)], "b": [str(i) for i in range(2, 5)]}
    splits = Assigner({}, [], SHARES).assign_all(list(found.values()))
    assert (
        {splits[photo] for photo in found["a"]}
        == {splits[photo] for photo in found["b"]}
        == {"train", "val", "test"}
    )
