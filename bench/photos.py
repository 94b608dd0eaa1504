"""The photos that are measured: three data sets, those of `--photos DIR`, or the built-in sample.

choose(Path("my_photos"), work)
data_sets()  # [work / "my_photos"], with train/CLASS/*, val/CLASS/* and test/CLASS/*
"""

import os
import shutil
import tempfile
from pathlib import Path

from bench.common import ROOT
from hogwear.data import dataset
from hogwear.data.sample import generate
from hogwear.data.tables import GUESSED, Columns

SHARED = ROOT.parent / "shared" / "data"
FASHION5, CLOTHING10, KAGGLE = SHARED / "fashion5", SHARED / "clothing10", SHARED / "kaggle_sample"
ORIGINS = """
fashion5 and kaggle_sample are drawn from Kaggle's Fashion Product Images (MIT), clothing10 is
clothing-dataset-small (CC0), reduced to 320 px. None of them is part of this project: without them,
`python -m bench --photos DIR` measures photos of your own (DIR/CLASS/*, or DIR/{train,val,test}),
and without `--photos` the built-in sample, into bench/local/.
"""

chosen: list[Path] = []  # by --photos, or for want of the three data sets


def choose(folder: Path | None, work: Path) -> str:
    """Choose the photos of all parts, and describe them. Raises as dataset.find_photos.

    Photos that are not split yet are split into a folder in `work`.
    """
    if folder is None and FASHION5.is_dir() and CLOTHING10.is_dir():
        return f"Photos: fashion5 and clothing10 in {SHARED}."
    if folder is None:
        chosen[:] = [generate.ensure_sample(ROOT / ".cache" / "sample")]
        return "Photos: the built-in sample; name a folder of your own with --photos."
    is_split = (folder / "train").is_dir() and (folder / "val").is_dir()
    name = folder.resolve().name
    chosen[:] = [folder.resolve() if is_split else write_splits(folder, work / name)]
    return f"Photos: {folder.resolve()}."


def results_folder() -> Path:
    """Where RESULTS.md and its pictures go: figures on other photos than ours stay apart."""
    folder = ROOT / "bench" / "local" if chosen else ROOT / "bench"
    folder.mkdir(exist_ok=True)
    return folder


def data_sets() -> list[Path]:
    """Folders with train/CLASS/*, validation photos, and test/CLASS/* except in clothing10."""
    return chosen or [FASHION5, CLOTHING10]


def finer_classes(work: Path) -> list[Path]:
    """A third data set: kaggle_sample by type of article, split by Hogwear, as folders in `work`.

    Types with at least ten photos, as in train. None of it if other photos are measured.
    """
    if chosen or not KAGGLE.is_dir():
        return []
    return [write_splits(KAGGLE, work / KAGGLE.name, Columns(label="articleType"))]


def write_splits(source: Path, target: Path, columns: Columns = GUESSED) -> Path:
    """Split photos as train does, into target/{train,val,test}/CLASS. Returns `target`."""
    with tempfile.TemporaryDirectory() as cache:
        photos = dataset.find_photos(source, Path(cache), columns)
        for split in photos.splits:
            names = [photos.class_names[label].replace("/", "-") for label in split.labels]
            rows = zip(split.paths, names, split.is_readable, strict=True)
            for number, (path, name, is_readable) in enumerate(rows):
                if is_readable:
                    link_or_copy(path, target / split.name / name / f"{number}-{path.name}")
    return target


def link_or_copy(file: Path, copy: Path) -> None:
    """A hard link, because Hogwear follows no links out of its folder; a copy where that fails."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file.resolve(), copy)
    except OSError:  # on another file system, or another's file
        shutil.copy(file, copy)


def for_peers(photos: Path, work: Path) -> Path:
    """A folder with train, val and test, as peers expect it: `photos`, or links in `work`.

    Where there is no test, that is the validation split, as in eval.
    """
    if all((photos / split).is_dir() for split in ("train", "val", "test")):
        return photos
    val = next(photos / name for name in ("val", "validation") if (photos / name).is_dir())
    test = photos / "test" if (photos / "test").is_dir() else val
    for split, folder in (("train", photos / "train"), ("val", val), ("test", test)):
        (work / split).symlink_to(folder)
    return work
