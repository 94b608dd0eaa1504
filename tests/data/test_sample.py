"""The built-in sample: what is in it, that it is the same every time, and that it is there whole or not at all."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from hogwear.data.sample import generate
from hogwear.system.errors import BadInput

REPOSITORY = Path(__file__).parents[2]
DRAW = """
import sys, pathlib
from hogwear.data.sample import generate
generate.PHOTOS_PER_CLASS.update(train=int(sys.argv[2]), val=1, test=1)
generate.ensure_sample(pathlib.Path(sys.argv[1]))
"""
FEW = {"train": 3, "val": 1, "test": 1}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate.ensure_sample(tmp_path_factory.mktemp("whole") / "sample")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller sample, because these tests draw it more than once."""
    for split, count in FEW.items():
        monkeypatch.setitem(generate.PHOTOS_PER_CLASS, split, count)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def draw_elsewhere(folder: Path, train: int) -> subprocess.Popen[bytes]:
    """A process that draws a sample with this many photos of each class in train/."""
    return subprocess.Popen([sys.executable, "-c", DRAW, str(folder), str(train)], cwd=REPOSITORY)


def wait_until(condition: Callable[[], bool], *processes: subprocess.Popen[bytes]) -> bool:
    """False if one of the processes ended first."""
    while not condition():
        if any(process.poll() is not None for process in processes):
            return False
        time.sleep(0.002)
    return True


def unfinished(folder: Path) -> Iterator[Path]:
    return folder.parent.glob(f".{folder.name}.unfinished-*")


def test_five_classes_in_three_splits_with_equal_counts(drawn: Path) -> None:
    assert generate.CLASS_NAMES == ("bottomwear", "eyewear", "footwear", "handbag", "topwear")
    for split, count in {"train": 60, "val": 15, "test": 15}.items():
        assert {
            path.name: len(list(path.glob("*.jpg"))) for path in (drawn / split).iterdir()
        } == dict.fromkeys(generate.CLASS_NAMES, count)
    assert len(contents(drawn)) == 450


def test_every_photo_opens_as_224_pixels_rgb(drawn: Path) -> None:
    for path in drawn.glob("*/*/*.jpg"):
        with Image.open(path) as photo:
            photo.load()
            assert (photo.format, photo.mode, photo.size) == ("JPEG", "RGB", (224, 224)), path


@pytest.mark.parametrize("class_name", generate.CLASS_NAMES)
def test_no_two_photos_of_a_class_are_the_same(drawn: Path, class_name: str) -> None:
    photos = [path.read_bytes() for path in drawn.glob(f"*/{class_name}/*.jpg")]
    assert len(set(photos)) == len(photos) == 90


@pytest.mark.usefixtures("few")
def test_a_seed_gives_the_same_bytes_however_many_photos_are_drawn(
    drawn: Path, tmp_path: Path
) -> None:
    again, whole = contents(generate.ensure_sample(tmp_path / "again")), contents(drawn)
    assert len(again) == 5 * sum(FEW.values())
    assert again.items() <= whole.items()


@pytest.mark.usefixtures("few")
def test_another_seed_gives_other_photos(drawn: Path, tmp_path: Path) -> None:
    other, whole = contents(generate.ensure_sample(tmp_path / "other", seed=1)), contents(drawn)
    assert not any(whole[name] == photo for name, photo in other.items())


def test_a_complete_sample_is_not_drawn_again(drawn: Path) -> None:
    before = (
        drawn.parent.stat().st_mtime_ns,
        drawn.stat().st_ino,
    )  # drawing makes a folder beside it, then renames
    assert generate.ensure_sample(drawn, seed=1) == drawn
    assert (drawn.parent.stat().st_mtime_ns, drawn.stat().st_ino) == before


def test_two_processes_at_once_leave_one_complete_sample_and_nothing_else(
    drawn: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "sample"
    first, second = draw_elsewhere(folder, 8), draw_elsewhere(folder, 8)
    both_drew = wait_until(lambda: len(list(unfinished(folder))) == 2, first, second)
    assert (first.wait(), second.wait()) == (0, 0)
    assert both_drew
    assert list(folder.parent.iterdir()) == [folder]
    assert len(contents(folder)) == 5 * (8 + 1 + 1)
    assert contents(folder).items() <= contents(drawn).items()


@pytest.mark.usefixtures("few")
def test_a_killed_process_leaves_no_partial_sample(tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    process = draw_elsewhere(folder, 60)
    half_drawn = wait_until(
        lambda: sum(1 for path in unfinished(folder) for _ in path.rglob("*.jpg")) > 5, process
    )
    process.kill()
    process.wait()
    assert half_drawn
    assert not folder.exists()
    assert len(contents(generate.ensure_sample(folder))) == 5 * sum(FEW.values())


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["missing", "empty"]
)
def test_an_incomplete_sample_is_refused_and_left_alone(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    folder = generate.ensure_sample(tmp_path / "sample")
    damage(folder / "val" / "handbag" / "000.jpg")
    before = contents(folder)
    with pytest.raises(BadInput, match="sample is in the way of the sample photos"):
        generate.ensure_sample(folder)
    assert contents(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.usefixtures("few")
def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    folder.mkdir()
    assert len(contents(generate.ensure_sample(folder))) == 5 * sum(FEW.values())
    assert list(tmp_path.iterdir()) == [folder]
