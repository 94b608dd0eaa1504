"""The default image size: small where that is enough, large where it is not."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from helpers import ForkedCall, at
from PIL import Image

import train
from hogwear.cluster.peers import SINGLE_MACHINE
from hogwear.commands import image_size
from hogwear.commands.image_size import LARGE, SMALL, choose_image_size, decode_sample
from hogwear.commands.train_settings import Settings
from hogwear.data import dataset
from hogwear.data.loading import Loader
from hogwear.data.photos import Photos
from hogwear.data.pixels import Pixels
from hogwear.system import flags
from hogwear.training.discriminant import Forecast


@dataclass(frozen=True)
class Run:
    settings: Settings
    photos: Photos

    def choose(self) -> Pixels:
        """The training photos at the size that is chosen."""
        loader = Loader(self.settings.cache)
        return loader.finish(choose_image_size(self.settings, self.photos, loader, SINGLE_MACHINE))


def run_on(folder: Path, work: Path, *more: object) -> Run:
    arguments = [str(value) for value in (*at(folder, work / "model", work / "cache"), *more)]
    settings = flags.parse(train.Settings, arguments)
    return Run(settings, dataset.find_photos(folder, work / "cache"))


def resize_photos(source: Path, target: Path, side: int) -> Path:
    """Some photos of each class, in folders of their own."""
    for split in ("train", "val"):
        for folder in (source / split).iterdir():
            (target / split / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:3]:
                image = Image.open(file).convert("RGB").resize((side, side))
                image.save(target / split / folder.name / f"{file.stem}.png")
    return target


@pytest.fixture(scope="module")
def large_photos(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resize_photos(data, tmp_path_factory.mktemp("large") / "data", 240)


def test_small_photos_are_not_enlarged(data: Path, tmp_path: Path) -> None:
    run = run_on(resize_photos(data, tmp_path / "data", 192), tmp_path)
    assert decode_sample(run.settings, run.photos) is None
    assert run.choose().images.shape[1:] == (SMALL, SMALL, 3)


def test_one_size_fits_tinyvgg_and_very_many_photos(
    large_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_on(large_photos, tmp_path)
    assert decode_sample(run.settings, run.photos) is not None
    monkeypatch.setattr(image_size, "MANY", len(run.photos.train) - 1)
    assert decode_sample(run.settings, run.photos) is None
    scratch = run_on(large_photos, tmp_path, "--arch", "tinyvgg")
    monkeypatch.undo()
    assert decode_sample(scratch.settings, scratch.photos) is None


def test_the_sample_is_spread_over_all_photos(
    large_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_size, "MOST_PHOTOS", 5)
    run = run_on(large_photos, tmp_path)
    sample = decode_sample(run.settings, run.photos)
    assert sample and sample.rows.tolist() == [0, 4, 8, 12] and len(run.photos.train) == 15
    assert sorted(set(sample.labels.tolist())) == [0, 1, 2, 4]


@pytest.mark.parametrize(("loss", "size"), [(0.0499, SMALL), (0.05, LARGE), (None, SMALL)])
def test_photos_that_are_hard_to_classify_are_used_at_the_large_size(
    loss: float | None,
    size: int,
    large_photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    forecast = None if loss is None else Forecast(0.9, loss, 15)
    monkeypatch.setattr(image_size, "forecast_small", lambda *arguments: forecast)
    run = run_on(large_photos, tmp_path)
    pixels = run.choose()
    assert pixels.images.shape[1:] == (size, size, 3) and len(pixels) == 15
    said = "Image size: 224 px; at 160 px, the cross-validated loss of 15 photos is 0.050"
    assert (said in capsys.readouterr().out) == (size == LARGE)
    expected = Loader(run_on(large_photos, tmp_path / "other").settings.cache)
    for side in (SMALL, LARGE):  # decoding at SMALL was cancelled: it can go on
        again = Loader(run.settings.cache).load(run.photos.train, side)
        other = expected.load(run.photos.train, side)
        assert np.array_equal(again.images[again.rows], other.images[other.rows])


def test_photos_in_the_folder_of_another_class_are_hard_to_classify(
    large_photos: Path, tmp_path: Path
) -> None:
    run = run_on(large_photos, tmp_path)
    sample = decode_sample(run.settings, run.photos)
    assert sample
    wrong = replace(sample, labels=np.arange(15) % 5)
    forecast = ForkedCall(
        lambda: image_size.forecast_small(run.settings, run.photos, wrong)
    ).result()
    assert forecast.photos == 15 and forecast.loss > 10 * image_size.HARD
