"""Folders -> splits and labels, and the messages about unusable folders."""

import hashlib
import json
import os
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import eval
import infer
import train
from hogwear.commands import doctor
from hogwear.data import dataset
from hogwear.data.folders import DataFolder
from hogwear.data.photos import Photos, Split
from hogwear.data.sample import generate
from hogwear.data.split_assignments import SplitAssignments
from hogwear.data.splitting import Splitter
from hogwear.system import flags
from hogwear.system.errors import BadInput
from hogwear.system.files import Manifest
from hogwear.system.paths import Paths


def make(folder: Path, counts: dict[str, int], start: int = 0) -> Path:
    """Files folder/KEY/NNN.jpg, so many for each key, all different. That they are no photos is none of dataset's business."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(start, start + count):
            (folder / name / f"{i:03d}.jpg").write_text(f"{name} {i}")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def names(split: Split) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path in split.paths]


def find(data: Path, cache: Path) -> Photos:
    """As train finds photos, with a model folder beside the cache."""
    splitter = Splitter(SplitAssignments.read(cache.parent))
    photos = dataset.find_photos(data, cache, splitter=splitter)
    splitter.assignments.write(cache.parent)
    return photos


def splits(photos: Photos) -> dict[str, set[str]]:
    assert photos.test
    return {split.name: set(names(split)) for split in (photos.train, photos.val, photos.test)}


def listed(photos: Photos) -> list[tuple[str, Path, int]]:
    """Every photo with its split and label, in order."""
    found = photos.splits
    return [
        (s.name, path, label)
        for s in found
        for path, label in zip(s.paths, s.labels.tolist(), strict=True)
    ]


def per_class(split: Split | None) -> dict[str, int]:
    assert split
    return dict(Counter(path.parent.name for path in split.paths))


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_folders_are_used_as_they_are(data: Path, cache: Path, val: str) -> None:
    make(data, {"train/b": 3, "train/a": 2, f"{val}/a": 1, f"{val}/b": 1, "test/a": 1, "test/b": 2})
    photos = dataset.find_photos(data, cache)
    assert photos.class_names == ("a", "b") and photos.folder == data and not photos.is_sample
    assert names(photos.train) == ["a/000.jpg", "a/001.jpg", "b/000.jpg", "b/001.jpg", "b/002.jpg"]
    assert photos.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert names(photos.val) == ["a/000.jpg", "b/000.jpg"]
    assert all(path.is_relative_to(data / val) for path in photos.val.paths)
    assert photos.evaluated is photos.test and names(photos.evaluated) == [
        "a/000.jpg",
        "b/000.jpg",
        "b/001.jpg",
    ]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Training", "Valid", "Testing"),
        ("TRAIN", "VALIDATION", "TEST"),
        ("training", "Val", "Test"),
    ],
)
def test_split_folders_are_recognised_in_any_case(
    data: Path, cache: Path, train: str, val: str, test: str
) -> None:
    make(data, {f"{split}/{name}": 2 for split in (train, val, test) for name in "ab"})
    photos = dataset.find_photos(data, cache)
    assert photos.class_names == ("a", "b") and photos.test
    for split, name in (photos.train, train), (photos.val, val), (photos.test, test):
        assert {path.parent.parent for path in split.paths} == {data / name} and len(split) == 4


def test_folders_beside_the_splits_are_ignored_with_a_note(data: Path, cache: Path) -> None:
    photos = dataset.find_photos(
        make(data, {"Train/a": 2, "Train/b": 2, "val/a": 1, "val/b": 1, "boots": 3, "dev/a": 2}),
        cache,
    )
    assert photos.class_names == ("a", "b") and photos.notes == (
        "Not used: 2 folders beside Train, val (boots, dev).",
    )


def test_folders_that_hogwear_writes_to_are_not_classes(data: Path, cache: Path) -> None:
    make(data, {"a": 4, "b": 4, "weights": 1, "cache/pixels": 1, "earlier": 0, "out": 0})
    (data / "earlier" / "checkpoint.pt").touch()
    Manifest(data / "out").write(data / "out" / "contact_sheet.png", b"")
    (data / "results").mkdir()
    Manifest(data).write(data / "results" / "1.png", b"")
    (data / "link").symlink_to("weights")
    photos = dataset.find_photos(
        data, cache, output_folders=(Path(os.path.relpath(data / "weights")), data / "cache")
    )
    assert photos.class_names == ("a", "b")
    assert photos.notes == (
        "Not used: 6 folders that Hogwear writes to (cache, earlier, link and 3 more).",
    )


@pytest.mark.parametrize("script", [train, eval, infer, doctor], ids=lambda script: script.__name__)
def test_every_command_ignores_its_own_folders_in_the_data_folder(
    script: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make(data, {"a": 4, "b": 4, "model": 1, "cache/pixels": 1}))
    assert flags.parse(script.Settings, ["--data-dir", ".", "--cache-dir", "cache"]).photos(
        Splitter()
    ).class_names == ("a", "b")


def test_a_data_folder_with_only_output_folders_is_empty(
    data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val", "test"):
        monkeypatch.setitem(generate.PHOTOS_PER_CLASS, split, 2)
    assert dataset.find_photos(
        make(data, {"model": 1}), cache, output_folders=(data / "model",)
    ).is_sample


def test_a_class_may_have_the_name_of_an_output_folder(
    data: Path, cache: Path, tmp_path: Path
) -> None:
    make(tmp_path, {"model": 1})
    photos = dataset.find_photos(
        make(data, {"model": 4, "responses": 4}), cache, output_folders=(tmp_path / "model",)
    )
    assert photos.class_names == ("model", "responses") and photos.notes == ()


@pytest.mark.parametrize("layout", ["", "train/"])
def test_a_class_in_two_unicode_forms_is_one(data: Path, cache: Path, layout: str) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    photos = dataset.find_photos(
        make(data, {f"{layout}{composed}": 5, f"{layout}{decomposed}": 5, f"{layout}b": 4}), cache
    )
    assert photos.class_names == ("b", composed)
    found = {path: photos.class_names[label] for _, path, label in listed(photos)}
    assert (
        found
        == {path: "b" if path.parent.name == "b" else composed for path in data.glob("**/*.jpg")}
        and len(found) == 14
    )
    assert listed(dataset.find_photos(data, cache)) == listed(photos), (
        "and its photos stay where they are"
    )


def test_splits_may_write_a_class_in_different_unicode_forms(data: Path, cache: Path) -> None:
    photos = dataset.find_photos(
        make(data, {"train/cafe\u0301": 2, "train/b": 2, "val/caf\u00e9": 1, "val/b": 1}), cache
    )
    assert photos.class_names == ("b", "caf\u00e9") and photos.train.labels.tolist() == [0, 0, 1, 1]
    assert all(path.exists() for path in (*photos.train.paths, *photos.val.paths))


def test_class_names_may_have_joiners_and_non_breaking_spaces(data: Path, cache: Path) -> None:
    names = (
        "top\u00a0wear",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0915\u094d\u200d\u0937",
    )
    assert set(dataset.find_photos(make(data, dict.fromkeys(names, 4)), cache).class_names) == set(
        names
    )


def test_similar_class_names_are_noted_and_stay_separate(data: Path, cache: Path) -> None:
    photos = dataset.find_photos(make(data, {"eyewear": 4, "EYEWEAR": 4, "boots": 4}), cache)
    assert photos.class_names == ("EYEWEAR", "boots", "eyewear")
    assert photos.notes == (
        "Similar class names: 'EYEWEAR' and 'eyewear'. They count as different classes; if they are the same, give them one name.",
    )


def test_without_a_test_folder_val_is_evaluated(data: Path, cache: Path) -> None:
    photos = dataset.find_photos(
        make(data, {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1}), cache
    )
    assert photos.test is None and photos.evaluated is photos.val


def test_without_a_val_folder_some_of_train_is_set_aside_the_same_way_every_time(
    data: Path, cache: Path
) -> None:
    make(data, {"train/a": 20, "train/b": 2, "test/a": 1, "test/b": 1})
    photos = dataset.find_photos(data, cache)
    assert (per_class(photos.train), per_class(photos.val)) == ({"a": 17, "b": 1}, {"a": 3, "b": 1})
    assert not set(photos.train.paths) & set(photos.val.paths)
    assert listed(dataset.find_photos(data, cache)) == listed(photos)


def test_class_folders_are_split_by_class(data: Path, cache: Path) -> None:
    photos = dataset.find_photos(make(data, {"a": 100, "b": 20, "c": 3}), cache)
    assert per_class(photos.train) == {"a": 70, "b": 14, "c": 1}
    assert per_class(photos.val) == per_class(photos.test) == {"a": 15, "b": 3, "c": 1}
    assert len(set().union(*splits(photos).values())) == 123
    assert [photos.class_names[label] for label in photos.val.labels] == [
        path.parent.name for path in photos.val.paths
    ]


def test_the_split_of_class_folders_is_saved_and_reused(data: Path, cache: Path) -> None:
    photos = find(make(data, {"a": 20, "b": 20}), cache)
    file, known = cache.parent / "split.json", splits(photos)
    told = json.loads(file.read_text())
    moved, kept = min(known["test"]), min(known["train"])
    for name, side in {moved: "train", kept: "test"}.items():
        told["split"][hashlib.blake2b((data / name).read_bytes(), digest_size=16).hexdigest()] = (
            side
        )
    file.write_text(json.dumps(told))
    assert splits(find(data, cache)) == known | {
        "train": known["train"] - {kept} | {moved}, "test": known["test"] - {moved} | {kept},
    }  # fmt: skip


def test_the_saved_split_stays_while_the_photos_stay(data: Path, cache: Path) -> None:
    make(data, {"a": 20, "b": 20})
    first = find(data, cache)
    written = (cache.parent / "split.json").stat()
    assert (
        listed(find(data, cache)) == listed(first)
        and (cache.parent / "split.json").stat() == written
    )


@pytest.mark.parametrize("added", [1, 3, 40])
def test_adding_photos_moves_none_to_another_split(data: Path, cache: Path, added: int) -> None:
    before = splits(find(make(data, {"a": 20, "b": 20}), cache))
    after = splits(find(make(data, {"a": added, "c": 5}, start=20), cache))
    for split, photos in before.items():
        assert photos <= after[split]
    assert sum(map(len, after.values())) == 40 + added + 5
    assert (
        {name.split("/")[0] for name in after["val"]}
        == {name.split("/")[0] for name in after["test"]}
        == {"a", "b", "c"}
    )


@pytest.mark.parametrize(
    "layout", [("train/a", "train/b", "val/a", "val/b"), ("a", "b")], ids=["split", "flat"]
)
def test_names_of_any_bytes_survive(data: Path, cache: Path, layout: tuple[str, ...]) -> None:
    make(data, dict.fromkeys(layout, 2))
    for folder in layout:
        for name in (b"\xff.jpg", "zażółć.jpg".encode(), b"\n.jpg"):
            Path(os.fsdecode(os.fsencode(data / folder) + b"/" + name)).write_bytes(
                name + folder.encode()
            )
    for _ in range(2):  # flat, the second time by split.json
        found = [path for _, path, _ in listed(find(data, cache))]
        assert sorted(found) == sorted(data.glob("**/*.jpg")) and len(found) == 5 * len(layout)


def test_a_hundred_thousand_photos_take_ten_megabytes(data: Path) -> None:
    files = [
        Paths(f"{name}/{i:06d}-a-name-as-cameras-give-it.jpg" for i in range(50_000))
        for name in "ab"
    ]
    folder = Path("/data/photos/of/somebody")
    tracemalloc.start()
    paths, labels = dataset.label_photos(folder, files)
    assert sum(1 for _ in paths.strings()) == 100_000
    taken, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(labels) == 100_000 and taken < 10e6 and most < 20e6, "never all of them as objects"
    assert str(paths[99_999]) == "/data/photos/of/somebody/b/049999-a-name-as-cameras-give-it.jpg"


def test_a_class_whose_photos_to_train_on_were_deleted_is_refused(data: Path, cache: Path) -> None:
    photos = find(make(data, {"a": 10, "b": 3}), cache)
    for path in photos.train.paths:
        if path.parent.name == "b":
            path.unlink()
    with pytest.raises(BadInput, match="data/b: all its photos to train on are gone"):
        find(data, cache)


def test_hidden_entries_are_ignored_and_loose_files_are_counted(data: Path, cache: Path) -> None:
    make(data, {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1, "train/.hidden": 1, ".git": 1})
    for name in ("README.md", "train/notes.txt", "train/a/.DS_Store", "val/\x1b[31m.jpg", "9.jpg"):
        (data / name).touch()
    photos = dataset.find_photos(data, cache)
    assert photos.class_names == ("a", "b") and len(photos.train) == 4
    assert photos.notes == (
        "Not used: 4 files in no class folder (9.jpg, README.md, train/notes.txt and 1 more).",
    )
    for name in ("README.md", "9.jpg"):
        (data / name).unlink()
    assert dataset.find_photos(data, cache).notes == (
        r"Not used: 2 files in no class folder (train/notes.txt, val/\x1b[31m.jpg).",
    )


@pytest.mark.parametrize("layout", ["", "train/"])
def test_subfolders_of_classes_are_read_at_any_depth(data: Path, cache: Path, layout: str) -> None:
    counts = {"a": 2, "a/2024": 3, "a/2024/may/day": 2, "a/2025": 1, "b/only/deep": 4, "b-c": 4}
    make(data, {f"{layout}{name}": count for name, count in counts.items()})
    photos = dataset.find_photos(data, cache)
    assert photos.class_names == ("a", "b", "b-c")
    assert photos.notes == (
        "Plain folders, not products: the subfolders of a (2), b (1); "
        "--group-by folder makes them products.",
    )
    found = {str(path): photos.class_names[label] for _, path, label in listed(photos)}
    assert found == {
        str(path): path.relative_to(data / layout).parts[0] for path in data.rglob("*.jpg")
    }
    assert len(found) == sum(counts.values())
    assert listed(dataset.find_photos(data, cache)) == listed(photos)


def test_hidden_folders_outputs_and_links_in_a_class_are_not_followed(
    data: Path, cache: Path, tmp_path: Path
) -> None:
    make(
        data, {"a": 4, "b": 4, "b/.thumbs": 1, "b/x/.git/y": 1, "b/x/model": 1, "b/earlier/old": 1}
    )
    make(data, {"b/x/responses/results": 1, "b/x/deep": 1})
    make(tmp_path, {"outside": 2})
    (data / "b" / "earlier" / "checkpoint.pt").touch()
    (data / "b" / "x" / "responses" / ".hogwear.sha256").touch()
    for link, target in ("in", "../a"), ("up", ".."), ("x/out", str(tmp_path / "outside")):
        (data / "b" / link).symlink_to(target)
    photos = dataset.find_photos(data, cache, output_folders=[data / "b" / "x" / "model"])
    names = {str(path.relative_to(data)) for _, path, _ in listed(photos)}
    assert names == {
        *(f"{name}/{i:03d}.jpg" for name in "ab" for i in range(4)),
        "b/x/deep/000.jpg",
    }
    note = photos.notes[-1]
    assert set(note.removeprefix("Not used: ").removesuffix(".").split("; ")) == {
        "3 folders that Hogwear writes to (b/earlier, b/x/model, b/x/responses)",
        "3 links to folders in a class (b/in, b/up, b/x/out)",
    }


def test_a_class_with_nothing_but_empty_subfolders_is_refused(data: Path, cache: Path) -> None:
    make(data, {"a": 4, "b/2024": 0, "b/2025/may": 0})
    with pytest.raises(BadInput, match="data/b: no photos in this class; add some or"):
        dataset.find_photos(data, cache)


def test_a_path_that_is_too_long_for_the_system_is_named(
    data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(data, {"a": 4, "b": 4})
    with monkeypatch.context() as patch:  # one by one: the whole path cannot be given
        patch.chdir(data / "b")
        for _ in range(25):
            Path("d" * 200).mkdir()
            os.chdir("d" * 200)
        Path("lost.jpg").touch()
    photos = dataset.find_photos(data, cache)
    assert len(listed(photos)) == 8
    assert photos.notes == (f"Not used: 1 folder with too long a path (b/{'d' * 57}…).",)


def test_a_folder_costs_one_look(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, and nothing else is asked for, of the folder or of its photos."""
    make(data, {"a": 4, **{f"b/{i:03d}/{j}": 1 for i in range(20) for j in range(2)}})
    asked = Counter[str]()

    def count(name: str) -> None:
        ask = getattr(os, name)

        def counting(*arguments: Any, **options: Any) -> Any:
            asked[name] += 1
            return ask(*arguments, **options)

        monkeypatch.setattr(os, name, counting)

    folder = DataFolder(data, [data / "model"])
    for name in ("stat", "lstat", "scandir", "readlink"):
        count(name)
    assert len(folder.list_files(data / "a")) == 4
    few = Counter(asked)
    assert len(folder.list_files(data / "b")) == 40
    assert asked - few == few + Counter(scandir=60), "of 20 folders with two each"


@pytest.mark.parametrize("hidden", [[], [".gitkeep"]])
def test_an_empty_folder_means_the_built_in_sample(
    data: Path, cache: Path, hidden: Iterable[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, count in {"train": 2, "val": 1, "test": 1}.items():
        monkeypatch.setitem(generate.PHOTOS_PER_CLASS, split, count)
    data.mkdir()
    for name in hidden:
        (data / name).touch()
    photos = dataset.find_photos(data, cache)
    assert (
        photos.is_sample
        and photos.folder == cache / "sample"
        and photos.class_names == generate.CLASS_NAMES
    )
    assert [len(split) for split in (photos.train, photos.val, photos.evaluated)] == [10, 5, 5]


REFUSED = {
    "one class only": ({"train/a": 3, "val/a": 1}, "data: only one class (a); a classifier needs at least two"),
    "one class only, flat": ({"a": 9}, "data: only one class (a); a classifier needs at least two"),
    "empty class": ({"train/a": 3, "train/b": 0, "val/a": 1}, "data/train/b: no photos in this class; add some or"),
    "empty class in val": ({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 0}, "data/val/b: no photos in this class"),
    "empty class, flat": ({"a": 3, "b": 0}, "data/b: no photos in this class"),
    "unknown class in test": (
        {"train/a": 3, "train/b": 3, "val/a": 1, "test/c": 1},
        "data/test: class c is not in train; the classes there are a, b",
    ),
    "no class folders": ({"train": 3}, "data/train: no class folders in it; expected "),
    "no train": ({"val/a": 3, "test/a": 3}, "data: found val, test but no train; expected train/CLASS/*"),
    "a class called train": (
        {"train": 3, "plane": 3, "boat": 3},
        "data/train: a class cannot be called train, because folders with one of these names are splits: train, training, val, valid, validation, "
        "test, testing; rename it, for example to train_photos",
    ),
    "a class called Testing": ({"Testing": 3, "plane": 3}, "data/Testing: a class cannot be called Testing, because"),
    "two train folders": ({"train/a": 3, "Train/a": 3, "val/a": 1}, "data: found both Train and train; keep only one of them, as the train split"),
    "valid beside Val": ({"train/a": 3, "Val/a": 1, "valid/a": 1}, "data: found both Val and valid; keep only one of them, as the val split"),
    "a bidirectional control": ({"a": 3, "b\u202e": 3}, "data: the name of the class folder 'b\\u202e' cannot be printed; rename it"),
    "two val folders": (
        {"train/a": 3, "train/b": 3, "val/a": 1, "valid/a": 1},
        "data: found both val and valid; keep only one of them, as the val split",
    ),
    "too few to set aside": ({"train/a": 3, "train/b": 1}, "data/train/b: too few photos (1, not counting copies); each of train, val needs at least one"),
    "too few, flat": ({"a": 9, "b": 2}, "data/b: too few photos (2, not counting copies); each of train, val, test needs at least one"),
    "files only": ({".": 3}, "data: 3 files but no folders; expected one folder per class: "),
}  # fmt: skip


@pytest.mark.parametrize(("counts", "said"), REFUSED.values(), ids=list(REFUSED))
def test_a_folder_that_cannot_be_used_is_named_with_the_fix(
    data: Path, cache: Path, counts: dict[str, int], said: str
) -> None:
    with pytest.raises(BadInput) as error:
        dataset.find_photos(make(data, counts), cache)
    assert str(error.value).startswith(f"{data.parent}/{said}") and "\n" not in str(error.value)


def test_a_missing_folder_is_named_with_the_fix(data: Path, cache: Path) -> None:
    with pytest.raises(
        BadInput, match=r"data: no such folder; make it and put photos in .*data/CLASS/"
    ):
        dataset.find_photos(data, cache)


def test_a_photo_in_two_classes_is_noted(data: Path, cache: Path) -> None:
    make(data, {"train/a": 3, "train/b": 3, "val/a": 2, "val/b": 2})
    for number, file in enumerate(sorted(data.rglob("*.jpg"))):
        file.write_bytes(bytes([number]))
    first, second = (next((data / place).iterdir()) for place in ("train/a", "val/b"))
    shutil.copy(first, first.with_name("again.jpg"))
    for place in "train/a", "train/b":
        (data / place / "empty.jpg").touch()
    assert not dataset.find_photos(data, cache).notes
    shutil.copy(first, second)
    names = f"{first.relative_to(data).with_name('again.jpg')} and {second.relative_to(data)}"
    assert dataset.find_photos(data, cache).notes == (
        f"In two classes: 1 photo, for example {names}; the doctor lists all of them.",
    )
