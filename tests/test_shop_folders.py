"""Photos as shops have them, by real processes: classes with subfolders, and products."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Start, at

ONCE = ("--arch", "tinyvgg", "--image-size", 32, "--workers", 1, "--epochs", 1)


def copy_photos(
    photo_files: list[Path], data: Path, count: int, subfolder: Callable[[int], str]
) -> Path:
    """data/CLASS/SUBFOLDER/*.jpg: `count` photos of each of two classes. Returns `data`."""
    for name in ("footwear", "handbag"):
        files = [photo for photo in photo_files if photo.name.startswith(name)][:count]
        for i, photo in enumerate(files):
            folder = data / name / subfolder(i)
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, folder / photo.name)
    return data


@pytest.fixture
def shop(tmp_path: Path, photo_files: list[Path]) -> Path:
    """20 photos of each class, a third of them in its folder itself."""
    subfolders = ("", "2024", "2025/spring")
    return copy_photos(photo_files, tmp_path / "data", 20, lambda i: subfolders[i % 3])


def test_train_and_eval_use_the_photos_in_subfolders_and_name_what_is_not_used(
    shop: Path, start: Start, tmp_path: Path
) -> None:
    (shop / "price list.txt").touch()
    (shop / "handbag" / "more").symlink_to("../footwear")
    where = at(shop, tmp_path / "model", tmp_path / "cache")
    trained = start("train.py", *ONCE, *where).ok()
    assert "28 training, 6 validation photos in 2 classes." in trained.stdout
    assert (
        "\nNot used: 1 file in no class folder (price list.txt); "
        "1 link to a folder in a class (handbag/more).\n"
    ) in trained.stdout
    assert trained.stderr == ""
    evaluated = start("eval.py", *where).ok()
    assert "of 6 photos)" in evaluated.stdout and evaluated.stderr == ""


@pytest.fixture
def products(tmp_path: Path, photo_files: list[Path]) -> Path:
    """Two photos of each of twelve products of each class."""
    return copy_photos(photo_files, tmp_path / "data", 24, lambda i: f"item {i // 2}")


def test_train_keeps_products_together_and_eval_follows(
    products: Path, start: Start, tmp_path: Path
) -> None:
    where = at(products, tmp_path / "model", tmp_path / "cache")
    trained = start("train.py", *ONCE, *where).ok()
    assert (
        "\nProducts: 48 photos of 24 products, the subfolders of footwear, handbag.\n"
    ) in trained.stdout
    assert trained.stderr == ""
    told = json.loads((tmp_path / "model" / "split.json").read_text())
    splits: dict[str, set[str]] = {}
    for photo, product in told["product"].items():
        splits.setdefault(product, set()).add(told["split"][photo])
    assert len(splits) == 24 and set(map(len, splits.values())) == {1}
    evaluated = start("eval.py", *where).ok()
    assert "of 8 photos)" in evaluated.stdout and evaluated.stderr == ""
    plain = start("train.py", *ONCE, *where, "--group-by", "none").ok()
    assert "Products: " not in plain.stdout and plain.stderr == "", "the split stays as it was"
    assert json.loads((tmp_path / "model" / "split.json").read_text()) == told


def test_train_warns_about_products_that_the_user_has_divided(
    products: Path, start: Start, tmp_path: Path
) -> None:
    for name in ("footwear", "handbag"):
        for split, items in {"train": range(2, 12), "val": range(2)}.items():
            for i in items:
                target = tmp_path / "shop" / split / name / f"item {i}"
                shutil.copytree(products / name / f"item {i}", target)
    divided = tmp_path / "shop" / "val" / "handbag" / "item 7"
    divided.mkdir()
    moved = min((tmp_path / "shop" / "train" / "handbag" / "item 7").iterdir())
    moved.rename(divided / moved.name)
    where = at(tmp_path / "shop", tmp_path / "model", tmp_path / "cache")
    trained = start("train.py", *ONCE, *where).ok()
    assert trained.stderr.count("\n") == 1
    assert trained.stderr.startswith(
        "Warning: leakage: 1 product has photos in several splits, for example train/handbag/item 7/"
    )
