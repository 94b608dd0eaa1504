"""Predict photos: annotated pictures in responses/results/ and all answers in responses/predictions.json.

    python infer.py                              # five random photos of the test split
    python infer.py --images shirt.jpg folder/   # your own
"""

import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hogwear import dataset, decoding, machine, metrics, report, settings, tables
from hogwear.dataset import Paths
from hogwear.decoding import Array, Guard, Limits
from hogwear.errors import BadInput
from hogwear.report import Prediction
from hogwear.settings import flag

if TYPE_CHECKING:
    from model import Trained

RESULTS, PREDICTIONS = "results", "predictions.json"


@dataclass(frozen=True)
class Photo:
    """One input: its pixels, or why there are none."""

    file: Path
    true_class: str | None
    image: Array | None  # (S, S, 3) uint8
    unread: str | None


@dataclass(frozen=True)
class Settings:
    """Predict photos with model/checkpoint.pt; write annotated pictures and predictions.json to responses/."""

    data_dir: Path = settings.data_dir()
    model_dir: Path = settings.model_dir()
    cache_dir: Path = settings.cache_dir()
    image_column: str | None = tables.image_column()
    label_column: str | None = tables.label_column()
    min_count: int = tables.min_count()
    max_megapixels: int = decoding.max_megapixels()
    max_megabytes: int = decoding.max_megabytes()
    responses_dir: Path = flag("where the pictures go", Path("responses"), kind=Path)
    images: tuple[Path, ...] = flag("photos or folders to predict, instead of random ones of the test split", (), kind=Path)
    num_images: int = flag("how many random photos", 5, kind=int, at_least=1)
    seed: int | None = flag("chooses the random photos", None, kind=int, at_least=0, below=2**63, default_help="others every time")


def main(settings: Settings) -> None:
    import torch  # takes seconds, so not before the flags are known to be good

    import model

    machine.keep_freed_memory()
    torch.set_num_threads(1)
    trained = model.load(settings.model_dir, model.fast_dtype(settings.cache_dir))
    photos = given(settings, trained) if settings.images else drawn(settings, trained)
    if not any(photo.image is not None for photo in photos):
        raise BadInput("; ".join(f"{photo.file}: {photo.unread}" for photo in photos[:3]) + ": no photo could be read")
    predictions = answer(trained, photos)
    write(predictions, photos, settings)
    for p in predictions:
        print(p.line())
    read = sum(p.unread is None for p in predictions)
    print(f"{read} pictures in {settings.responses_dir / RESULTS}; every answer in {settings.responses_dir / PREDICTIONS}.")
    print(f"One photo takes {latency(trained, photos):.1f} ms on one CPU, decoded.")


def given(settings: Settings, trained: "Trained") -> list[Photo]:
    """The photos of --images, folders opened, each once. BadInput for a path that is not there, or if there is none."""
    files: dict[Path, None] = {}
    for path in settings.images:
        if not path.exists():
            raise BadInput(f"--images: {path} does not exist; give photos or folders of photos")
        files |= dict.fromkeys(files_in(path) if path.is_dir() else [path])
    if not files:
        raise BadInput(f"--images: no files in {', '.join(map(str, settings.images))}; give photos or folders of photos")
    guard = guarded(Paths(files), trained.image_size, settings, min(machine.cpus(), len(files)))
    with guard.workers({"decode": guard.decode}) as workers:
        images = dict(workers.run("decode", range(len(files))))
    return [photo(file, images[i], trained, file.absolute().parent.name) for i, file in enumerate(files)]


def files_in(folder: Path) -> list[Path]:
    """What is in it that is not hidden, and in its folders, sorted; a link to a folder is not followed, and a file that will not be read.

    Raises OSError for a folder that may not be opened.
    """

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        found += [Path(parent, name) for name in names + links if not name.startswith(".")]
    return sorted(found)


def drawn(settings: Settings, trained: "Trained") -> list[Photo]:
    """--num-images readable photos of the test split at random."""
    photos = dataset.find(settings.data_dir, settings.cache_dir, tables.columns(settings))
    split = photos.evaluated
    print(f"Photos: {min(settings.num_images, len(split))} at random from the {split.name} split of "
          f"{'the built-in sample (data/ is empty)' if photos.is_sample else photos.folder}")  # fmt: skip
    chosen: list[Photo] = []
    guard = guarded(split.paths, trained.image_size, settings, processes=1)  # which answers in order, so a seed chooses the same
    order = np.random.default_rng(settings.seed).permutation(len(split))
    with guard.workers({"decode": guard.decode}) as workers:
        for i, image in workers.run("decode", order.tolist(), pause=lambda: len(chosen) == settings.num_images):
            if len(chosen) == settings.num_images:
                continue  # it was on its way when there were enough
            found = photo(split.paths[i], image, trained, photos.class_names[split.labels[i]])
            if found.image is None:
                print(f"Warning: skipped {str(found.file)!r}: {found.unread}", file=sys.stderr)
            else:
                chosen.append(found)
    return chosen


def guarded(files: Paths, size: int, settings: Settings, processes: int) -> Guard:
    """Links may lead only to what was given: a link that is given itself is its user's own choice."""
    limits = Limits(settings.max_megapixels, settings.max_megabytes)
    return Guard(files, size, limits, processes, within=settings.images or [settings.data_dir])


def photo(file: Path, image: Array | str, trained: "Trained", folder: str) -> Photo:
    """What was decoded, or why nothing was; its true class is known where the name of its folder is one of the classes."""
    true_class = folder if folder in trained.class_names else None
    return Photo(file, true_class, None, image) if isinstance(image, str) else Photo(file, true_class, image, None)


def answer(trained: "Trained", photos: list[Photo]) -> list[Prediction]:
    """An answer for every photo, in order; for one that could not be read, why."""
    from hogwear.predict import predict

    batch = np.stack([photo.image for photo in photos if photo.image is not None])  # (n, S, S, 3) uint8
    logits = predict(trained.net, batch, np.arange(len(batch)), machine.cpus())
    probabilities = iter(np.exp(metrics.log_softmax(logits)))
    return [
        Prediction(photo.file, photo.true_class, photo.unread,
                   dict(zip(trained.class_names, next(probabilities).tolist(), strict=True)) if photo.unread is None else {})
        for photo in photos
    ]  # fmt: skip


def write(predictions: list[Prediction], photos: list[Photo], settings: Settings) -> None:
    """The pictures, in place of those of an earlier run, and predictions.json."""
    folder = settings.responses_dir / RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    pictures: dict[int, Path] = {}
    for i, p in enumerate(predictions):
        if p.unread is None:
            pictures[i] = report.free_name(folder, p)
            pictures[i].touch()
    guard = guarded(Paths(p.file for p in predictions), report.PHOTO_SIDE, settings, min(machine.cpus(), len(pictures)))

    def draw(i: int) -> None:
        image: Any = guard.decode(i)
        if isinstance(image, str):  # that it could be read a moment ago is no promise
            image = photos[i].image
        report.draw_prediction(predictions[i], image, pictures[i])

    with guard.workers({"draw": draw}) as workers:
        for _ in workers.run("draw", pictures):
            pass
    rows = [p.as_json() | {"picture": pictures[i].name if i in pictures else None} for i, p in enumerate(predictions)]
    dataset.write_atomically(settings.responses_dir / PREDICTIONS, (json.dumps(rows, indent=2) + "\n").encode())


def latency(trained: "Trained", photos: list[Photo], repeats: int = 9) -> float:
    """Median milliseconds for one decoded photo alone, on one thread."""
    import torch

    pixels = torch.tensor(next(photo.image for photo in photos if photo.image is not None))[None]
    times = []
    with torch.inference_mode():
        for _ in range(repeats):
            started = time.perf_counter()
            trained.net(pixels)
            times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


if __name__ == "__main__":
    settings.run(main, Settings)
