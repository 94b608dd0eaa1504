"""Predict photos: annotated pictures in responses/results/, a contact sheet, and all answers in responses/predictions.json and .csv.

python infer.py                                         # five random photos of the test split
python infer.py --images shirt.jpg folder/ 'new/*.png'  # your own
"""

import glob
import json
import os
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hogwear.commands.common import SharedSettings
from hogwear.data.contents import shorten_hashes
from hogwear.data.photos import Photos
from hogwear.data.safe_decoder import SafeDecoder
from hogwear.data.split_assignments import SplitAssignments
from hogwear.evaluation import metrics, pictures
from hogwear.evaluation.pictures import Prediction
from hogwear.system import command, machine
from hogwear.system.arrays import UInt8Array
from hogwear.system.errors import BadInput
from hogwear.system.flags import flag
from hogwear.system.manifest import Manifest
from hogwear.system.paths import Paths
from hogwear.system.text import escape, normalize, to_csv

if TYPE_CHECKING:
    from hogwear.evaluation.trained_model import TrainedModel

RESULTS, SHEET, PREDICTIONS, TABLE = (
    "results",
    "contact_sheet",
    "predictions.json",
    "predictions.csv",
)


@dataclass(frozen=True)
class Photo:
    """One input: its pixels, or why there are none."""

    file: Path
    true_class: str | None
    image: UInt8Array | None  # (S, S, 3) uint8
    unread: str | None


@dataclass(frozen=True)
class Settings(SharedSettings):
    """Predict photos with model/checkpoint.pt; write pictures, predictions.json and predictions.csv.

    Without --images, the photos are random ones of the test split (val, where there is no test split).
    """

    responses_dir: Path = flag("folder for pictures and predictions", Path("responses"), kind=Path)
    images: tuple[Path, ...] = flag(
        "photos, folders or glob patterns to predict, instead of random test photos",
        (),
        kind=Path,
    )
    pictures: int = flag(
        "draw pictures and contact sheets of the first N photos only",
        100,
        kind=int,
        at_least=0,
    )
    num_images: int = flag("number of random test photos", 5, kind=int, at_least=1)
    seed: int | None = flag(
        "random seed for choosing test photos",
        None,
        kind=int,
        at_least=0,
        below=2**63,
        default_help="different photos each time",
    )


def main(settings: Settings) -> None:
    import torch  # takes seconds, so not before the flags are known to be good

    import model

    machine.keep_freed_memory()
    manifest = Manifest(settings.responses_dir)
    require_free(manifest)
    torch.set_num_threads(1)
    trained = model.load(settings.model_dir, model.choose_dtype(settings.cache_dir))
    photos = given(settings, trained, manifest) if settings.images else drawn(settings, trained)
    if not any(photo.image is not None for photo in photos):
        raise BadInput(
            "; ".join(f"{photo.file}: {photo.unread}" for photo in photos[:3])
            + ": no photo could be read"
        )
    predictions = answer(trained, photos)
    for line in (*(p.line() for p in predictions), *write(predictions, photos, settings, manifest)):
        print(escape(line))
    print(f"Latency: {latency(trained, photos):.1f} ms per photo, on one CPU, without decoding.")


def require_free(manifest: Manifest) -> None:
    """BadInput where a file that is not ours has the name of one that is to be written."""
    for file in manifest.folder / PREDICTIONS, manifest.folder / TABLE:
        if file.exists() and not manifest.owns(file):
            raise BadInput(
                f"{file}: infer did not write this, or it was changed since; move it away, or choose another --responses-dir"
            )


def require_apart(paths: Iterable[Path], manifest: Manifest) -> None:
    """BadInput for a photo or a folder of --images that lies where results are written, or that those would lie in. Links are followed."""
    results = (manifest.folder / RESULTS).resolve()
    for path in paths:
        real = path.resolve()
        if (
            real.is_relative_to(results)
            or results.is_relative_to(real)
            or (real.parent == results.parent and manifest.owns(manifest.folder / real.name))
        ):
            raise BadInput(
                f"--images: {path} overlaps what infer writes to {manifest.folder}; choose another --responses-dir"
            )


def require_no_photos(photos: Photos, folder: Path) -> None:
    """BadInput where photos of the data folder lie in that for results, which may itself lie in the data folder."""
    real = folder.resolve()
    written = real if real.is_relative_to(photos.folder.resolve()) else (folder / RESULTS).resolve()
    splits = photos.splits
    for parent in {path.rpartition("/")[0] for split in splits for path in split.paths.strings()}:
        if Path(parent).resolve().is_relative_to(written):
            raise BadInput(
                f"--data-dir: there are photos in {parent}, where infer writes its results; choose another --responses-dir"
            )


def given(settings: Settings, trained: "TrainedModel", manifest: Manifest) -> list[Photo]:
    """The photos of --images, folders opened and patterns filled in, each once.

    BadInput for a path that is not there or not apart from the results, and if there are no files.
    """
    files: dict[Path, None] = {}
    for pattern in settings.images:
        matching = (
            [pattern]
            if pattern.exists()
            # Path.glob takes no absolute pattern
            else sorted(map(Path, glob.glob(str(pattern), recursive=True)))  # noqa: PTH207
        )
        if not matching:
            raise BadInput(
                f"--images: {pattern} does not exist; give photos, folders of photos, or patterns such as 'photos/*.jpg'"
            )
        require_apart(matching, manifest)
        for path in matching:
            files |= dict.fromkeys(files_in(path) if path.is_dir() else [path])
    if not files:
        raise BadInput(
            f"--images: no files in {', '.join(map(str, settings.images))}; give photos or folders of photos"
        )
    require_apart(files, manifest)
    decoder = guarded(Paths(files), trained.image_size, settings, min(machine.cpus(), len(files)))
    with decoder.workers({"decode": decoder.decode}) as workers:
        images = dict(workers.run("decode", range(len(files))))
    return [
        photo(file, images[i], trained, file.absolute().parent.name) for i, file in enumerate(files)
    ]


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


def drawn(settings: Settings, trained: "TrainedModel") -> list[Photo]:
    """--num-images readable photos of the test split at random, none of which was trained on."""
    SplitAssignments.read(settings.model_dir).require(trained.split)
    photos = settings.photos_of(trained.class_names, trained.is_sample)
    require_no_photos(photos, settings.responses_dir)
    split = photos.evaluated
    seen = np.isin(shorten_hashes(split.contents.hashes), trained.trained_on.numpy())
    if seen.all():
        raise BadInput(
            f"all {len(split)} photos in {split.name} were used for training; give others with --images"
        )
    source = "the built-in sample (data/ is empty)" if photos.is_sample else photos.folder
    print(
        escape(
            f"Photos: {min(settings.num_images, len(split) - seen.sum())} at random from the {split.name} split of {source}"
        )
    )
    chosen: list[Photo] = []
    decoder = guarded(
        split.paths, trained.image_size, settings, processes=1
    )  # which answers in order, so a seed chooses the same
    order = np.random.default_rng(settings.seed).permutation(len(split))
    order = order[~seen[order]]
    with decoder.workers({"decode": decoder.decode}) as workers:
        for i, image in workers.run(
            "decode", order.tolist(), pause=lambda: len(chosen) == settings.num_images
        ):
            if len(chosen) == settings.num_images:
                continue  # it was on its way when there were enough
            found = photo(split.paths[i], image, trained, photos.class_names[split.labels[i]])
            if found.image is None:
                print(escape(f"Warning: skipped '{found.file}': {found.unread}"), file=sys.stderr)
            else:
                chosen.append(found)
    return chosen


def guarded(files: Paths, size: int, settings: Settings, processes: int) -> SafeDecoder:
    """Links may lead only to what was given: a link that is given itself is its user's own choice."""
    limits = settings.limits
    return SafeDecoder(
        files, size, limits, processes, within=settings.images or [settings.data_dir]
    )


def photo(file: Path, image: UInt8Array | str, trained: "TrainedModel", folder: str) -> Photo:
    """What was decoded, or why nothing was; its true class is known where the name of its folder is one of the classes."""
    true_class = name if (name := normalize(folder)) in trained.class_names else None
    return (
        Photo(file, true_class, None, image)
        if isinstance(image, str)
        else Photo(file, true_class, image, None)
    )


def answer(trained: "TrainedModel", photos: list[Photo]) -> list[Prediction]:
    """An answer for every photo, in order, with calibrated probabilities; for one that could not be read, why."""
    from hogwear.evaluation.predict import predict_logits

    batch = np.stack(
        [photo.image for photo in photos if photo.image is not None]
    )  # (n, S, S, 3) uint8
    logits = predict_logits(trained.net, batch, np.arange(len(batch)), machine.cpus())
    probabilities = iter(np.exp(metrics.log_softmax(logits / trained.temperature)).tolist())
    predictions = []
    for photo in photos:
        given = (
            dict(zip(trained.class_names, next(probabilities), strict=True))
            if photo.unread is None
            else {}
        )
        unsure = photo.unread is None and max(given.values()) < trained.confidence_threshold
        predictions.append(Prediction(photo.file, photo.true_class, photo.unread, given, unsure))
    return predictions


def write(
    predictions: list[Prediction], photos: list[Photo], settings: Settings, manifest: Manifest
) -> list[str]:
    """Pictures and contact sheets of the first photos, in place of those of an earlier run, and all answers; what there is to say of that."""
    folder = settings.responses_dir
    results, first = folder / RESULTS, predictions[: settings.pictures]
    results.mkdir(parents=True, exist_ok=True)
    others = manifest.delete(
        path
        for path in (*results.iterdir(), *folder.glob(f"{SHEET}*.png"))
        if not path.name.startswith(".")
    )
    taken = {path.name.casefold() for path in others}
    files = {
        i: pictures.free_name(results, pictures.stem_of(p), taken)
        for i, p in enumerate(first)
        if p.unread is None
    }
    draw_pictures(first, photos, files, settings, manifest)
    sheets = []
    for start in range(0, len(first), pictures.SHEET):
        images = [photo.image for photo in photos[start : start + pictures.SHEET]]
        sheets.append(
            pictures.free_name(
                folder, f"{SHEET}{f'-{start // pictures.SHEET + 1}' if start else ''}", taken
            )
        )
        manifest.write(
            sheets[-1],
            pictures.draw_sheet(
                list(zip(first[start : start + pictures.SHEET], images, strict=False))
            ),
        )
    rows = [
        p.as_json() | {"picture": files[i].name if i in files else None}
        for i, p in enumerate(predictions)
    ]
    manifest.write(folder / PREDICTIONS, (json.dumps(rows, indent=2) + "\n").encode())
    manifest.write(folder / TABLE, to_csv(table(predictions)).encode())

    of_first = (
        f", of the first {len(first)} photos of {len(predictions)} (--pictures)"
        if len(first) < len(predictions)
        else ""
    )
    said = [
        f"{len(files)} pictures in {results}{f', all on {sheets[0]}' if sheets else ''}{of_first}.",
        f"All predictions: {folder / PREDICTIONS} and {TABLE}.",
    ]
    if others:
        said.append(
            f"Kept in {folder}, because infer did not make them or they were changed since: {len(others)} files."
        )
    return said


def draw_pictures(
    predictions: list[Prediction],
    photos: list[Photo],
    files: dict[int, Path],
    settings: Settings,
    manifest: Manifest,
) -> None:
    """One for each of the `files`, {row: its name}."""
    decoder = guarded(
        Paths(p.file for p in predictions),
        pictures.PHOTO_SIDE,
        settings,
        max(1, min(machine.cpus(), len(files))),
    )

    def draw(i: int) -> bytes:
        image: Any = decoder.decode(i)
        if isinstance(image, str):  # that it could be read a moment ago is no promise
            image = photos[i].image
        return pictures.draw_prediction(predictions[i], image)

    with decoder.workers({"draw": draw}) as workers:
        for i, picture in workers.run("draw", files):
            manifest.write(files[i], picture)


def table(predictions: list[Prediction]) -> list[list[object]]:
    """A header, and a row for every photo: its likeliest classes, best first, with their probabilities, or why it could not be read."""
    places = range(1, min(pictures.TOP_CLASSES, max(len(p.probabilities) for p in predictions)) + 1)
    rows: list[list[object]] = [
        [
            "file",
            "true_class",
            "error",
            "unsure",
            *(f"{what}_{n}" for n in places for what in ("class", "probability")),
        ]
    ]
    for p in predictions:
        top = [value for name, share in p.top() for value in (name, round(share, 6))]
        rows.append([p.file, p.true_class, p.unread, None if p.unread else p.unsure, *top])
    return rows


def latency(trained: "TrainedModel", photos: list[Photo], repeats: int = 9) -> float:
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
    command.run(main, Settings)
