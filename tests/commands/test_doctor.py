"""The doctor: every planted fault is found under its heading, and nothing else is; near duplicates among very many photos."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CLASSES, FASHION5, ROOT, Call, Trained, at
from PIL import Image, ImageEnhance

from hogwear.commands import doctor
from hogwear.data import leakage, near_duplicates
from hogwear.data.cache import PhotoCache
from hogwear.data.decoding import decode
from hogwear.data.near_duplicates import find_pairs
from hogwear.data.sample import generate

LISTS = (
    "leaked",
    "conflicting",
    "duplicates",
    "near_duplicates",
    "unreadable",
    "tiny",
    "misnamed",
    "rotated",
    "near_empty",
)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos of three classes for each split, none like another."""
    folder = tmp_path_factory.mktemp("clean")
    source = FASHION5 if FASHION5.is_dir() else generate.ensure_sample(folder / "sample")
    for name in ("bottomwear", "handbag", "topwear"):
        photos = sorted((source / "train" / name).iterdir())
        photos = photos[:: len(photos) // 24]
        for split, some in {
            "train": photos[:8],
            "val": photos[8:16],
            "test": photos[16:24],
        }.items():
            (folder / "data" / split / name).mkdir(parents=True)
            for photo in some:
                shutil.copy(photo, folder / "data" / split / name / photo.name)
    return folder / "data"


@pytest.fixture
def planted(clean: Path, tmp_path: Path) -> Path:
    """The same, to plant faults in."""
    return Path(shutil.copytree(clean, tmp_path / "data"))


@pytest.fixture
def examine(call: Call, tmp_path: Path) -> Callable[[Path], tuple[dict[str, Any], str]]:
    """examine(folder) -> doctor.json, and what was printed."""

    def examine(folder: Path) -> tuple[dict[str, Any], str]:
        answer = call(doctor, *at(folder, tmp_path / "model", tmp_path / "cache"))
        assert answer.code == 0 and answer.stderr == "", answer
        return json.loads((tmp_path / "model" / "doctor.json").read_text()), answer.stdout

    return examine


Examine = Callable[[Path], tuple[dict[str, Any], str]]


def nth(data: Path, folder: str, n: int) -> Path:
    return sorted((data / folder).iterdir())[n]


def names(entries: list[Any]) -> list[set[str]]:
    """The files of each entry, or of each group."""
    groups = [entry if isinstance(entry, list) else [entry] for entry in entries]
    return [{"/".join(Path(e["file"]).parts[-3:]) for e in group} for group in groups]


def test_a_clean_folder_gets_a_clean_bill(clean: Path, examine: Examine) -> None:
    report, text = examine(clean)
    assert {name: report[name] for name in LISTS} == {name: [] for name in LISTS}
    assert (
        report["schema"] == 1
        and report["missing_classes"] == {}
        and report["under_represented"] == []
    )
    assert report["counts"] == {
        split: {"bottomwear": 8, "handbag": 8, "topwear": 8} for split in ("train", "val", "test")
    }
    assert "No problems found.\n" in text and "LEAKAGE" not in text and "(train," not in text


def test_every_planted_fault_is_found_under_its_heading_and_nothing_else(
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
        "near_empty": [{"train/handbag/pixel.png"}, {"train/topwear/white.jpg"}],
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
        "NEAR EMPTY",
        "MISNAMED",
        "ROTATED",
    ]


def test_a_class_with_few_photos_is_called_under_represented(
    planted: Path, examine: Examine
) -> None:
    for photo in sorted((planted / "train/handbag").iterdir())[1:]:
        photo.unlink()
    report, text = examine(planted)
    assert (
        report["under_represented"] == ["handbag"]
        and "UNDER-REPRESENTED" in text
        and ": handbag." in text
    )


def test_names_of_any_bytes_are_told_and_written(planted: Path, examine: Examine) -> None:
    odd = planted / "train/topwear" / "\udcff\n.jpg"
    odd.write_bytes(b"")
    report, text = examine(planted)
    assert (
        report["unreadable"][0]["file"] == str(odd)
        and "\\udcff\\n.jpg (train, topwear): empty file" in text
    )


def test_a_trained_network_contradicts_a_flipped_label(
    clean: Path,
    planted: Path,
    trained: Trained,
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        doctor, "CONTRADICTED_FROM", 0.5
    )  # the small network of the tests has learnt from wrong classes, too, and is sure of little
    folder = Path(shutil.copytree(trained.model, tmp_path / "model"))
    answer = call(doctor, *at(planted, folder, tmp_path / "cache"))
    report = json.loads((folder / "doctor.json").read_text())
    assert (
        answer.code == 0
        and report["contradicted"] is None
        and "but the checkpoint was trained on" in report["network"]
        and report["network"] in answer.stdout
    )

    for name in set(CLASSES) - {"bottomwear", "handbag", "topwear"}:
        for split in ("train", "val"):
            shutil.copytree(clean / split / "handbag", planted / split / name)
    answer = call(doctor, *at(planted, folder, tmp_path / "cache"))
    report = json.loads((folder / "doctor.json").read_text())
    assert {"eyewear", "footwear"} <= {
        e["class"] for e in report["contradicted"] if e["predicted"] == "handbag"
    }, "those are handbags"
    assert all(
        e["probability"] >= doctor.CONTRADICTED_FROM and e["predicted"] != e["class"]
        for e in report["contradicted"]
    )
    assert "CONTRADICTED" in answer.stdout and ": handbag, " in answer.stdout


def test_the_doctor_is_a_command_of_its_own(clean: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hogwear.commands.doctor", *map(str, at(clean, tmp_path, tmp_path))],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "No problems found." in done.stdout and done.stderr == ""
    assert (tmp_path / "doctor.json").exists()


# --- near duplicates


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


def test_among_many_signatures_the_pairs_are_those_of_comparing_all_with_all() -> None:
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


def test_photos_all_alike_are_one_group_and_compared_in_proportion_to_their_number(
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


def test_groups_are_what_pairs_connect() -> None:
    assert near_duplicates.group_pairs(9, np.array([[5, 7], [0, 3], [3, 8], [7, 6]])) == [
        [0, 3, 8],
        [5, 6, 7],
    ]
    assert near_duplicates.group_pairs(3, np.empty((0, 2), np.int64)) == []


def test_leakage_is_said_in_one_line_and_only_where_there_is_some(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hogwear.data import dataset

    cache = tmp_path / "cache"
    for n in range(2):
        changed(nth(planted, "train/topwear", n), "half", planted / f"test/topwear/{n}.jpg")
    (planted / "train/topwear/0.jpg").write_bytes(b"no photo, and the first row")
    photos = dataset.find_photos(planted, cache)
    assert photos.test and PhotoCache(cache).open_if_complete(photos.train, 64) is None
    train, val, test = (
        PhotoCache(cache, processes=2).open(split, 64)
        for split in (photos.train, photos.val, photos.test)
    )
    again = PhotoCache(cache).open_if_complete(photos.train, 64)
    assert again and np.array_equal(again.signatures, train.signatures)
    assert np.array_equal(
        train.signatures,
        [near_duplicates.compute_signature(image) for image in train.images[train.rows]],
    )
    leakage.warn_about_leakage(train, val, "val")
    assert capsys.readouterr().err == ""
    for _ in range(2):  # the second time out of the cache
        leakage.warn_about_leakage(train, test, "test")
        assert capsys.readouterr().err.startswith(
            "Warning: leakage: test shares 2 of its 26 photos with train"
        )
    assert len(list(test.folder.glob("leaked-*.json"))) == 1
