"""Tables for the tests, and the photos that they give."""

import shutil
import tempfile
from pathlib import Path

import pytest
from helpers import FASHION5

from hogwear.data import dataset
from hogwear.data.photos import Photos
from hogwear.data.tables import Columns
from hogwear.system.errors import BadInput
from hogwear.system.text import escape

KAGGLE = FASHION5.parent / "kaggle_sample"
needs_kaggle = pytest.mark.skipif(not KAGGLE.is_dir(), reason="no sample of Kaggle's data set")
FEW = Columns(min_count=3)


def make_images(folder: Path, photo_files: list[Path]) -> Path:
    """images/ with the real photos 0.jpg to 19.jpg, and a hidden file; a test adds the table."""
    (folder / "images").mkdir(parents=True)
    (folder / ".gitkeep").touch()
    for i, photo in enumerate(photo_files[:20]):
        shutil.copy(photo, folder / "images" / f"{i}.jpg")
    return folder


def write(
    folder: Path, header: str, *rows: str, name: str = "table.csv", encoding: str = "utf-8"
) -> Path:
    (folder / name).write_bytes(
        "\n".join([header, *rows, ""]).encode(encoding, errors="surrogateescape")
    )
    return folder


def of_two(values: list[str], labels: tuple[str, str] = ("boots", "hats")) -> list[str]:
    """A row for each value, the first half of one class."""
    return [f"{value},{labels[i >= len(values) / 2]}" for i, value in enumerate(values)]


def listed(photos: Photos) -> dict[str, tuple[str, str]]:
    """{path within the folder: (split, class)} of every photo."""
    splits = photos.splits
    return {
        str(path.relative_to(photos.folder)): (split.name, photos.class_names[label])
        for split in splits for path, label in zip(split.paths, split.labels.tolist(), strict=True)
    }  # fmt: skip


def labels_of(photos: Photos) -> dict[str, str]:
    return {path: label for path, (_, label) in listed(photos).items()}


def refused(folder: Path, columns: Columns = FEW) -> str:
    """What a folder is refused with, from its own name on."""
    with pytest.raises(BadInput) as error, tempfile.TemporaryDirectory() as cache:
        dataset.find_photos(folder, Path(cache), columns)
    assert str(error.value).startswith(str(folder))
    return escape(str(error.value)[len(str(folder.parent)) + 1 :])
