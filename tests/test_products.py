"""Photos as shops have them, by real processes: classes with subfolders."""

import shutil
from pathlib import Path

import pytest
from helpers import Start, at

ONCE = ("--arch", "tinyvgg", "--image-size", 32, "--workers", 1, "--epochs", 1)


@pytest.fixture
def shop(tmp_path: Path, photo_files: list[Path]) -> Path:
    """data/CLASS/{YEAR/,}*.jpg: 20 photos of two classes, a third of them in the folder itself."""
    for name in ("footwear", "handbag"):
        files = [photo for photo in photo_files if photo.name.startswith(name)][:20]
        for i, photo in enumerate(files):
            place = tmp_path / "data" / name / ("", "2024", "2025/spring")[i % 3]
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, place / photo.name)
    return tmp_path / "data"


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
