"""Products: what is taken for one, and that their photos stay together."""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from split_folders import find
from table_files import make_images, write
from test_splitting import split_of

from hogwear.data import dataset
from hogwear.data.photos import Photos, Split
from hogwear.data.products import hash_names, name_subfolders
from hogwear.data.split_assignments import SplitAssignments
from hogwear.data.splitting import SHARES, Assigner, Splitter, merge_groups
from hogwear.data.tables import Columns
from hogwear.system.errors import BadInput
from hogwear.system.paths import Paths

FOLDER, NOTHING = Columns(group_by="folder"), Columns(group_by="none")


def make(shop: Path, counts: dict[str, int]) -> Path:
    """data/KEY/i.jpg, so many for each key, all different; none of them is a photo."""
    for name, count in counts.items():
        (shop / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (shop / name / f"{i}.jpg").write_text(f"{name!a} {i}")
    return shop


def numbered(folder: str, count: int, photos: int) -> dict[str, int]:
    return {f"{folder}/p{i}": photos for i in range(count)}


def products_of(photos: Photos) -> dict[str, bytes]:
    """{path within the folder: key of the product}, of photos with one."""
    return {
        str(path.relative_to(photos.folder)): bytes(key)
        for split in photos.splits
        for path, key in zip(split.paths, split.products, strict=True)
        if key.any()
    }


def splits_by_product(photos: Photos) -> dict[bytes, set[str]]:
    found: dict[bytes, set[str]] = {}
    for split in photos.splits:
        for key in split.products[split.products.any(axis=1)]:
            found.setdefault(bytes(key), set()).add(split.name)
    return found


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tmp_path / "model"


# --- folders


def test_ten_subfolders_are_products_in_one_split_each(shop: Path, cache: Path) -> None:
    make(shop, {"a": 3, **numbered("a", 10, 4), **numbered("b", 25, 3)})
    photos = dataset.find_photos(shop, cache)
    assert photos.notes == (
        "Products: 115 photos of 35 products, the subfolders of a, b; 3 others.",
    )
    keys = products_of(photos)
    assert keys.keys() == {str(file.relative_to(shop)) for file in shop.glob("*/*/*.jpg")}
    by_folder = {str(Path(path).parent): key for path, key in keys.items()}
    assert all(keys[path] == by_folder[str(Path(path).parent)] for path in keys)
    assert len(set(by_folder.values())) == 35, "a/p1 and b/p1 are two"
    assert set(map(len, splits_by_product(photos).values())) == {1} and not photos.warnings
    assert photos.test
    by_class = [split.count_per_class(("a", "b")) for split in (photos.val, photos.test)]
    assert all(4 <= counts["a"] <= 6 and 9 <= counts["b"] <= 11 for counts in by_class)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        (numbered("a", 9, 2), "a (9)"),
        ({**numbered("a", 20, 2), "a/p3": 5}, "a (12% of the photos in p3)"),
        ({"a/2024/p1": 3, "a/2024/p2": 3, "a/2025/p1": 3}, "a (2)"),
    ],
)
def test_few_or_large_subfolders_are_plain_folders(
    counts: dict[str, int], reason: str, shop: Path, cache: Path
) -> None:
    make(shop, {**counts, **numbered("b", 10, 1)})
    photos = dataset.find_photos(shop, cache)
    assert photos.notes == (
        f"Products: 10 photos of 10 products, the subfolders of b; {sum(counts.values())} others.",
        f"Plain folders, not products: the subfolders of {reason}; "
        "--group-by folder makes them products.",
    )
    assert all(path.startswith("b/") for path in products_of(photos))
    everything = dataset.find_photos(shop, cache, FOLDER)
    assert len(products_of(everything)) == sum(counts.values()) + 10
    assert [note[:9] for note in everything.notes] == ["Products:"]
    nothing = dataset.find_photos(shop, cache, NOTHING)
    assert not products_of(nothing) and nothing.notes == ()


def test_a_tenth_of_the_photos_is_not_too_many(shop: Path, cache: Path) -> None:
    """Photos in the class folder itself count, too, and those of all splits together."""
    train = {"train/a": 5, **numbered("train/a", 9, 2), "train/b": 9}
    make(shop, {**train, "val/a/p9": 4, "val/a/p0": 1, "val/a": 13, "val/b": 2, "test/a": 0})
    make(shop, {"test/a": 1, "test/b": 1})
    photos = dataset.find_photos(shop, cache)
    assert photos.notes[0] == (
        "Products: 23 photos of 10 products, the subfolders of a; 31 others."
    )
    (shop / "val/a/more.jpg").touch()
    shutil.move(shop / "train/a/p1/0.jpg", shop / "val/a/p9/9.jpg")
    assert "a (12% of the photos in p9)" in dataset.find_photos(shop, cache).notes[0]


def test_a_subfolder_in_two_unicode_forms_is_one_product(shop: Path, cache: Path) -> None:
    make(shop, {**numbered("a", 10, 2), "b": 9, "a/caf\u00e9": 1, "a/cafe\u0301": 1})
    keys = products_of(dataset.find_photos(shop, cache))
    assert keys["a/caf\u00e9/0.jpg"] == keys["a/cafe\u0301/0.jpg"] != keys["a/p1/0.jpg"]


def test_products_may_have_names_of_any_bytes(shop: Path, cache: Path) -> None:
    odd = os.fsdecode(b"\xff\n\x1b[31m")
    make(shop, {**numbered("a", 10, 2), "b": 9, f"a/{odd}": 2})
    photos = dataset.find_photos(shop, cache)
    assert len({key for path, key in products_of(photos).items() if odd in path}) == 1
    (shop / "a" / odd / "x").mkdir()
    for i in range(9):
        (shop / "a" / odd / "x" / f"{i}.jpg").write_text(f"more {i}")
    assert r"35% of the photos in \udcff\n\x1b[31m" in dataset.find_photos(shop, cache).notes[0]


def test_folder_is_refused_where_there_are_no_subfolders(shop: Path, cache: Path) -> None:
    with pytest.raises(BadInput, match="--group-by folder: no class has subfolders"):
        dataset.find_photos(make(shop, {"a": 4, "b": 4}), cache, FOLDER)


def test_the_first_subfolder_counts() -> None:
    paths = Paths(["a/1.jpg", "a/p/1.jpg", "a/p/q/1.jpg", "a/r/q/s/1.jpg"])
    assert name_subfolders(paths) == ["", "p", "p", "r"]
    assert name_subfolders(Paths(["a/1.jpg", "b/1.jpg"])) == ["", ""]


def test_photos_of_no_product_have_no_key() -> None:
    keys = hash_names(["x", "", "y", "x"])
    assert keys.any(axis=1).tolist() == [True, False, True, True]
    assert np.array_equal(keys[0], keys[3]) and not np.array_equal(keys[0], keys[2])


# --- products that are in several splits


def test_products_that_the_user_has_divided_are_counted_with_an_example(
    shop: Path, cache: Path
) -> None:
    make(shop, {**numbered("train/a", 20, 3), "train/b": 9, "val/b": 2, "val/a/p20": 2})
    make(shop, {"test/a/p21": 1, "test/b": 1})
    assert dataset.find_photos(shop, cache).warnings == ()
    (shop / "test/a/p3").mkdir()
    (shop / "test/a/p3/again.jpg").write_text("again")
    said = (
        "leakage: {} photos in several splits, for example train/a/p3/0.jpg and "
        "test/a/p3/again.jpg, so figures may be too good; put all photos of a product into one "
        "split"
    )
    photos = dataset.find_photos(shop, cache)
    assert photos.warnings == (said.format("1 product has"),)
    (shop / "val/a/p20").rename(shop / "val/a/p7")
    photos = dataset.find_photos(shop, cache)
    assert len(photos.warnings) == 1 and photos.warnings[0].startswith("leakage: 2 products have")
    assert dataset.find_photos(shop, cache, NOTHING).warnings == ()


def test_val_is_taken_from_train_in_whole_products(shop: Path, model: Path) -> None:
    make(shop, {**numbered("train/a", 30, 3), **numbered("train/b", 30, 2), "test/a": 1})
    make(shop, {"test/b/p5": 1})
    photos = find(shop, model)
    found = splits_by_product(photos)
    assert Counter(map(frozenset, found.values())).keys() == {
        frozenset({"train"}), frozenset({"val"}), frozenset({"train", "test"})
    }  # fmt: skip
    assert photos.val.count_per_class(("a", "b")) == {"a": 12, "b": 8}, "of 13.5 and 9"
    [warning] = photos.warnings
    assert "train/b/p5/0.jpg and test/b/p5/0.jpg" in warning


# --- products over time


def test_new_photos_join_their_product_even_if_its_old_photos_are_gone(
    shop: Path, model: Path
) -> None:
    make(shop, {**numbered("a", 20, 2), **numbered("b", 20, 2)})
    before = find(shop, model)
    split_before = {path.parent: split.name for split in before.splits for path in split.paths}
    kept = SplitAssignments.read(model)
    assert kept.products.any(axis=1).all() and not kept.groups.any()
    for product in shop.glob("a/*"):
        for photo in product.iterdir():
            photo.unlink()
        (product / "new.jpg").write_text(f"new {product}")
    for i in range(10):
        (shop / "b" / f"p{i}" / "new.jpg").write_text(f"new {i}")
    after = find(shop, model)
    assert len(after.train) + len(after.val) + len(after.evaluated) == 20 + 40 + 10
    for split in after.splits:
        assert all(split_before[path.parent] == split.name for path in split.paths)
    grown = SplitAssignments.read(model)
    assert len(grown) == 80 + 30 and grown.require(kept.version())
    assert grown.products[80:].any(axis=1).all()


def test_a_renamed_product_is_known_by_the_photos_that_it_still_has(
    shop: Path, model: Path
) -> None:
    before = find(make(shop, {**numbered("a", 20, 2), "b": 9}), model)
    split_before = {path.parent.name: split.name for split in before.splits for path in split.paths}
    for i in range(20):
        folder = (shop / "a" / f"p{i}").rename(shop / "a" / f"renamed-p{i}")
        (folder / "new.jpg").write_text(f"new {i}")
    after = find(shop, model)
    for split in after.splits:
        for path in split.paths:
            if path.parent.name != "b":
                assert split_before[path.parent.name.removeprefix("renamed-")] == split.name


def test_a_kept_split_stays_when_products_are_found_later(shop: Path, model: Path) -> None:
    make(shop, {**numbered("a", 20, 5), "b": 9})
    splitter = Splitter()
    before = dataset.find_photos(shop, model.parent / "cache", NOTHING, splitter)
    splitter.assignments.write(model)
    assert before.warnings == () and not SplitAssignments.read(model).products.any()
    (shop / "a" / "p1" / "new.jpg").write_text("new")
    after = find(shop, model)
    assert split_of(before).items() < split_of(after).items()
    [warning] = after.warnings
    assert warning.startswith("leakage: ") and warning.endswith(
        "a class has too few products, or model/split.json is older than they are: to split all "
        "photos anew, use another --model-dir"
    )
    divided = splits_by_product(after)
    [own] = [key for path, key in products_of(after).items() if path == "a/p1/new.jpg"]
    assert len(divided[own]) > 1 and split_of(after)["p1/new.jpg"] == "train"
    assert after.notes[-1] == (
        "New photos whose near duplicates or products are in two splits go to train: 1 photo, "
        f"{shop}/a/p1/new.jpg."
    )


def test_a_copy_in_two_products_keeps_both_in_one_split(shop: Path, model: Path) -> None:
    make(shop, {**numbered("a", 40, 2), **numbered("b", 40, 2)})
    for i in range(0, 40, 2):
        shutil.copy(shop / "a" / f"p{i}" / "0.jpg", shop / "a" / f"p{i + 1}" / "copy.jpg")
    split_by_folder: dict[str, set[str]] = {}
    for split in find(shop, model).splits:
        for path in split.paths:
            number = int(path.parent.name[1:])
            pair = f"{path.parts[-3]}/{number // 2 if path.parts[-3] == 'a' else number}"
            split_by_folder.setdefault(pair, set()).add(split.name)
    assert set(map(len, split_by_folder.values())) == {1}
    assert {name for names in split_by_folder.values() for name in names} == {
        "train",
        "val",
        "test",
    }


# --- tables


def test_a_column_says_what_the_products_are(
    tmp_path: Path, photo_files: list[Path], cache: Path
) -> None:
    folder = make_images(tmp_path / "shop", photo_files)
    names = ["one", "one", "", "two", "NA", "two", "caf\u00e9", "cafe\u0301", "one", "two"]
    rows = [f"{i},{'ab'[i % 2]},{names[i]}" for i in range(10)]
    columns = Columns(min_count=3, group="item")
    photos = dataset.find_photos(write(folder, "id,label,item", *rows), cache, columns)
    assert photos.notes[1] == (
        "Products: 8 photos of 3 products, the values of column item; 2 others."
    )
    keys = products_of(photos)
    assert {path: names[int(Path(path).stem)] for path in keys} == {
        f"images/{i}.jpg": name for i, name in enumerate(names) if name not in ("", "NA")
    }
    assert keys["images/0.jpg"] == keys["images/1.jpg"] == keys["images/8.jpg"], "of two classes"
    assert keys["images/6.jpg"] == keys["images/7.jpg"]
    without = dataset.find_photos(folder, cache, Columns(min_count=3))
    assert not products_of(without) and "Products" not in " ".join(without.notes)


def test_a_product_in_two_splits_of_a_table_is_warned_about(
    tmp_path: Path, photo_files: list[Path], cache: Path
) -> None:
    folder = make_images(tmp_path / "shop", photo_files)
    rows = [f"{i},{'ab'[i % 2]},{('train', 'val')[i > 13]},{i // 5}" for i in range(20)]
    write(folder, "id,label,split,item", *rows)
    [warning] = dataset.find_photos(folder, cache, Columns(group="item")).warnings
    assert warning.startswith(
        "leakage: 1 product has photos in several splits, for example images/10.jpg and "
        "images/14.jpg"
    )
    assert dataset.find_photos(folder, cache).warnings == ()


REFUSED = {
    "another column": (Columns(group="nope"), "/table.csv: no column 'nope'; choose one with --group-column: id, label"),
    "folders": (Columns(group_by="folder"), "/table.csv: --group-by folder is about folders, and this is a table; use"),
    "both": (Columns(group="label", group_by="none"), "/table.csv: --group-by none is about folders, and this is a table; use"),
}  # fmt: skip


@pytest.mark.parametrize(("columns", "said"), REFUSED.values(), ids=list(REFUSED))
def test_products_that_a_table_cannot_have_are_refused(
    columns: Columns, said: str, tmp_path: Path, photo_files: list[Path], cache: Path
) -> None:
    folder = write(make_images(tmp_path / "shop", photo_files), "id,label", "0,a", "1,b")
    with pytest.raises(BadInput) as error:
        dataset.find_photos(folder, cache, columns)
    assert str(error.value).startswith(f"{folder}{said}") and "\n" not in str(error.value)


def test_a_column_without_a_table_is_refused(shop: Path, cache: Path) -> None:
    with pytest.raises(
        BadInput, match=r"no table \(\*\.csv\), so there is no column 'item'; leave"
    ):
        dataset.find_photos(make(shop, {"a": 4, "b": 4}), cache, Columns(group="item"))


# --- how groups are assigned


def assign(groups: Sequence[tuple[str, ...]], classes: list[list[str]]) -> dict[str, str]:
    return Assigner({}, groups, SHARES).assign_all(classes)


def test_a_group_of_two_classes_is_in_one_split_and_counts_in_both() -> None:
    groups = [(f"a{i}", f"b{i}", f"b{i + 100}") for i in range(100)]
    classes = [[f"a{i}" for i in range(100)], [f"b{i}" for i in range(200)]]
    splits = assign(groups, classes)
    assert all(len({splits[photo] for photo in group}) == 1 for group in groups)
    for photos in classes:
        counts = Counter(splits[photo] for photo in photos)
        assert counts["val"] == counts["test"] == 0.15 * len(photos)


@pytest.mark.parametrize("member", range(20))
def test_a_group_does_not_overfill_a_split_of_another_class(member: int) -> None:
    group = (f"a{member}", *(f"b{i}" for i in range(60)))
    splits = assign([group], [[f"a{i}" for i in range(20)], [f"b{i}" for i in range(100)]])
    assert {splits[photo] for photo in group} == {"train"}


def test_a_class_without_a_photo_in_a_split_gets_a_whole_group() -> None:
    """Photos on their own fill the splits of the first class; all groups go to train with it."""
    groups = [(*(f"a{20 * i + j}" for j in range(20)), f"b{i}") for i in range(5)]
    splits = assign(groups, [[f"a{i}" for i in range(120)], [f"b{i}" for i in range(5)]])
    assert all(len({splits[photo] for photo in group}) == 1 for group in groups)
    assert Counter(splits[f"b{i}"] for i in range(5)) == {"train": 3, "val": 1, "test": 1}
    assert {splits[f"a{i}"] for i in range(100, 120)} == {"val", "test"}


def test_groups_with_a_common_photo_become_one() -> None:
    merged = merge_groups([("a", "b"), ("c", "d"), ("e", "f"), ("d", "a")])
    assert sorted(map(sorted, merged)) == [["a", "b", "c", "d"], ["e", "f"]]
    assert merge_groups([]) == []


def test_rows_keep_their_product_in_every_part(shop: Path, cache: Path) -> None:
    photos = dataset.find_photos(make(shop, {**numbered("a", 12, 2), "b": 9}), cache)
    split: Split = photos.train
    mask = np.arange(len(split)) % 2 == 0
    assert np.array_equal(split.where(mask, "some").products, split.products[mask])
