"""The doctor: every planted problem is found under its heading, and nothing else is."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from helpers import FASHION5, ROOT, Call, at
from PIL import Image, ImageFilter

from hogwear.commands import doctor
from hogwear.training import label_check

LISTS = (
    "leaked",
    "conflicting",
    "duplicates",
    "near_duplicates",
    "unreadable",
    "tiny",
    "misnamed",
    "rotated",
    "blurred",
    "dark",
    "odd_shape",
    "near_empty",
    "divided_products",
)


@pytest.fixture
def examine(call: Call, tmp_path: Path) -> Callable[[Path], tuple[dict[str, Any], str]]:
    """examine(folder) -> doctor.json, and what was printed."""

    def examine(folder: Path) -> tuple[dict[str, Any], str]:
        answer = call(doctor, *at(folder, tmp_path / "model", tmp_path / "cache"))
        assert answer.code == 0 and answer.stderr == "", answer
        return json.loads((tmp_path / "model" / "doctor.json").read_text()), answer.stdout

    return examine


Examine = Callable[[Path], tuple[dict[str, Any], str]]


@pytest.fixture
def unlabelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are not checked, which takes a second."""
    nothing = dict.fromkeys(("contradicted", "expected", "confusions"))
    monkeypatch.setattr(doctor, "check_labels", lambda photos, settings: nothing)


def nth(data: Path, folder: str, n: int) -> Path:
    return sorted((data / folder).iterdir())[n]


def names(entries: list[Any]) -> list[set[str]]:
    """The files of each entry, or of each group."""
    groups = [entry if isinstance(entry, list) else [entry] for entry in entries]
    return [{"/".join(Path(e["file"]).parts[-3:]) for e in group} for group in groups]


@pytest.mark.usefixtures("trusting")
def test_clean_photos_have_no_problems(clean: Path, examine: Examine) -> None:
    report, text = examine(clean)
    assert {name: report[name] for name in LISTS} == {name: [] for name in LISTS}
    assert (
        report["schema"] == 2
        and report["missing_classes"] == {}
        and report["under_represented"] == []
    )
    assert report["counts"] == {
        split: {"bottomwear": 8, "handbag": 8, "topwear": 8} for split in ("train", "val", "test")
    }
    assert report["expected"]["accuracy"] > 0.8 and report["contradicted"] == []
    assert "No problems found.\n" in text and "LEAKAGE" not in text and "(train," not in text


@pytest.mark.usefixtures("unlabelled")
def test_every_planted_problem_is_found_under_its_heading_and_nothing_else(
    planted: Path, examine: Examine
) -> None:
    shutil.copy(nth(planted, "train/topwear", 0), planted / "test/topwear/same.jpg")
    with Image.open(nth(planted, "train/topwear", 1)) as image:
        image.convert("RGB").resize((100, 100)).save(
            planted / "val/topwear/smaller.jpg", quality=50
        )
    shutil.copy(nth(planted, "val/handbag", 2), planted / "val/bottomwear/flipped.jpg")
    with Image.open(nth(planted, "train/handbag", 3)) as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.convert("RGB").save(nth(planted, "train/handbag", 3), exif=exif)
    Image.new("RGB", (1, 1), "red").save(planted / "train/handbag/pixel.png")
    broken = nth(planted, "train/bottomwear", 0)
    broken.write_bytes(broken.read_bytes()[:2000])
    with Image.open(nth(planted, "train/bottomwear", 1)) as image:
        image.convert("RGB").save(nth(planted, "train/bottomwear", 1), "PNG")
    Image.new("RGB", (200, 150), "white").save(planted / "train/topwear/white.jpg")
    with Image.open(nth(planted, "train/handbag", 5)) as image:
        photo = image.convert("RGB")
        photo.filter(ImageFilter.GaussianBlur(5)).save(planted / "train/handbag/soft.jpg")
        photo.point(lambda value: 0.2 * value).save(planted / "val/handbag/night.jpg")
        middle = photo.width // 2
        strip = photo.crop(
            (middle - photo.height // 8, 0, middle + photo.height // 8, photo.height)
        )
        strip.save(planted / "train/topwear/strip.jpg")
    shutil.rmtree(planted / "test/bottomwear")
    report, text = examine(planted)

    def inside(path: Path) -> str:
        return str(path.relative_to(planted))

    first, second = (inside(nth(planted, "train/topwear", n)) for n in (0, 1))
    flipped = {inside(nth(planted, "val/handbag", 2)), "val/bottomwear/flipped.jpg"}
    assert {name: names(report[name]) for name in LISTS} == {
        "leaked": [{"val/topwear/smaller.jpg"}, {"test/topwear/same.jpg"}],
        "conflicting": [flipped],
        "duplicates": [{first, "test/topwear/same.jpg"}, flipped],
        "near_duplicates": [{second, "val/topwear/smaller.jpg"}],
        "unreadable": [{inside(broken)}],
        "tiny": [{"train/handbag/pixel.png"}],
        "misnamed": [{inside(nth(planted, "train/bottomwear", 1))}],
        "rotated": [{inside(nth(planted, "train/handbag", 3))}],
        "blurred": [{"train/handbag/soft.jpg"}],
        "dark": [{"val/handbag/night.jpg"}],
        "odd_shape": [{"train/topwear/strip.jpg"}],
        "near_empty": [{"train/handbag/pixel.png"}, {"train/topwear/white.jpg"}],
        "divided_products": [],
    }
    assert [(e["exact"], names([e["in_train"]])) for e in report["leaked"]] == [
        (False, [{second}]),
        (True, [{first}]),
    ]
    assert report["missing_classes"] == {"test": ["bottomwear"]}
    assert (
        "truncated" in report["unreadable"][0]["reason"]
        and report["misnamed"][0]["format"] == "PNG"
    )
    assert text.startswith("LEAKAGE: photos of val (1) and test (1) are in train, too")
    assert "MISSING from test: bottomwear." in text and "No problems" not in text
    headings = [
        line.partition(" (")[0]
        for line in text.splitlines()
        if line[:1].isupper() and "): " in line
    ]
    assert headings == [
        "CONFLICTING",
        "UNREADABLE",
        "DUPLICATES",
        "NEAR DUPLICATES",
        "TINY",
        "BLURRED",
        "DARK",
        "ODD SHAPE",
        "NEAR EMPTY",
        "MISNAMED",
        "ROTATED",
    ]


@pytest.mark.usefixtures("unlabelled")
def test_a_class_with_few_photos_is_under_represented(planted: Path, examine: Examine) -> None:
    for photo in sorted((planted / "train/handbag").iterdir())[1:]:
        photo.unlink()
    report, text = examine(planted)
    assert (
        report["under_represented"] == ["handbag"]
        and "UNDER-REPRESENTED" in text
        and ": handbag." in text
    )


@pytest.mark.usefixtures("unlabelled")
def test_products_in_two_splits_are_listed_with_a_photo_in_each(
    planted: Path, call: Call, tmp_path: Path
) -> None:
    for file in sorted(planted.glob("train/topwear/*")):
        (file.parent / file.stem).mkdir()
        file.rename(file.parent / file.stem / file.name)
    products = sorted((planted / "train/topwear").iterdir())
    for split, product in ("val", products[2]), ("test", products[2]), ("test", products[5]):
        target = planted / split / "topwear" / product.name
        target.mkdir()
        photo = min(path for path in target.parent.iterdir() if path.is_file())
        photo.rename(target / f"{split}.jpg")
    where = at(planted, tmp_path / "model", tmp_path / "cache")
    answer = call(doctor, *where, "--group-by", "folder")
    report = json.loads((tmp_path / "model" / "doctor.json").read_text())
    assert answer.code == 0 and answer.stderr == ""
    two, three = sorted(report["divided_products"], key=len)
    assert [(entry["split"], Path(entry["file"]).parent.name) for entry in three] == [
        (split, products[2].name) for split in ("train", "val", "test")
    ]
    assert [entry["split"] for entry in two] == ["train", "test"]
    assert "\nDIVIDED PRODUCTS (2): " in answer.stdout and "No problems" not in answer.stdout
    assert "  and  ".join(f"{entry['file']} ({entry['split']}, topwear)" for entry in two) in (
        answer.stdout
    )
    without = call(doctor, *where)
    assert "PRODUCTS" not in without.stdout, "eight subfolders do not look like products"


@pytest.mark.usefixtures("unlabelled")
def test_file_names_of_any_bytes_are_printed_and_written(planted: Path, examine: Examine) -> None:
    odd = planted / "train/topwear" / "\udcff\n.jpg"
    odd.write_bytes(b"")
    report, text = examine(planted)
    assert (
        report["unreadable"][0]["file"] == str(odd)
        and "\\udcff\\n.jpg (train, topwear): empty file" in text
    )


def plant_flips(folder: Path, share: float) -> set[str]:
    """Move this share of all photos to a random other class: where they are now."""
    random, moved = Random(0), set()
    photos = sorted(folder.glob("*/*/*"))
    for photo in random.sample(photos, round(share * len(photos))):
        others = [each for each in photo.parents[1].iterdir() if each != photo.parent]
        target = random.choice(sorted(others)) / photo.name
        photo.rename(target)
        moved.add(str(target))
    return moved


def count_found(report: dict[str, Any], planted: set[str], share: float) -> int:
    """How many of the planted photos are in the first share of all, by doctor.json."""
    total = sum(sum(of_split.values()) for of_split in report["counts"].values())
    first = report["contradicted"][: round(share * total)]
    return len(planted & {entry["file"] for entry in first})


@pytest.fixture
def some(tmp_path: Path) -> Path:
    """40 photos of each class of fashion5, in their own size."""
    if not FASHION5.is_dir():
        pytest.skip("NO PHOTOS of fashion5")
    folder = tmp_path / "some"
    for of_class in sorted((FASHION5 / "train").iterdir()):
        for number, photo in enumerate(sorted(of_class.iterdir())[:120:3]):
            split = "val" if number % 4 == 3 else "train"
            (folder / split / of_class.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, folder / split / of_class.name)
    return folder


def test_flipped_labels_come_first_and_lower_the_accuracy_to_expect(
    some: Path, examine: Examine
) -> None:
    moved = plant_flips(some, 0.05)
    report, text = examine(some)
    assert len(moved) == 10 and count_found(report, moved, 0.07) >= 8
    expected = report["expected"]
    assert expected["photos"] == 200 and 0.8 < expected["accuracy"] <= 0.96
    assert 0.2 <= expected["chance"] < 0.25
    margins = [e["probability"] - e["own_probability"] for e in report["contradicted"]]
    assert margins == sorted(margins, reverse=True)
    for entry in report["contradicted"]:
        assert entry["probability"] > label_check.CONTRADICTED * entry["own_probability"]
        assert entry["predicted"] != entry["class"]
    assert "CONTRADICTED" in text and "Expected accuracy before training: 0." in text
    confused = report["confusions"]
    wrong = 200 - round(200 * report["expected"]["accuracy"])
    assert sum(each["photos"] for each in confused) == wrong >= 8
    assert confused == sorted(confused, key=lambda each: -each["photos"])
    assert f"Most frequent confusions: {confused[0]['class']} taken for" in text


@pytest.mark.long
@pytest.mark.parametrize(("name", "least"), [("fashion5", 0.9), ("clothing10", 0.6)])
def test_most_of_the_flipped_labels_of_real_photos_come_first(
    name: str, least: float, examine: Examine, tmp_path: Path
) -> None:
    if not (FASHION5.parent / name).is_dir():
        pytest.skip(f"NO PHOTOS of {name}")
    folder = Path(shutil.copytree(FASHION5.parent / name, tmp_path / "data"))
    moved = plant_flips(folder, 0.05)
    report, _ = examine(folder)
    assert count_found(report, moved, 0.07) >= least * len(moved)


def test_with_very_few_photos_it_says_so(planted: Path, examine: Examine) -> None:
    """No photo of a class can be left out: they are near duplicates, or the only ones."""
    for split in "train", "val", "test":
        for folder in (planted / split).iterdir():
            first, *others = sorted(folder.iterdir())
            for photo in others:
                photo.unlink()
            if split != "train":
                shutil.copy(nth(planted, f"train/{folder.name}", 0), first)
    report, text = examine(planted)
    assert report["expected"] is report["contradicted"] is report["confusions"] is None
    assert "There are too few photos to say what accuracy to expect" in text


def test_the_doctor_runs_as_a_module(clean: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hogwear.commands.doctor", *map(str, at(clean, tmp_path, tmp_path))],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "Expected accuracy" in done.stdout and done.stderr == ""
    assert (tmp_path / "doctor.json").exists()
