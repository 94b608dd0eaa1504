"""Predict photos: annotated pictures, a contact sheet, predictions.json and predictions.csv.

python infer.py                                         # five random photos of the test split
python infer.py --images shirt.jpg folder/ 'new/*.png'  # your own
python infer.py --images folder/ --sort                 # and a copy of each in sorted/CLASS/
python infer.py --images folder/ --next 50              # and 50 photos whose labels would help most
"""

import glob
import io
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from hogwear.commands.shared_settings import (
    UNKNOWN_RATE,
    SharedSettings,
    find_photos,
    load_model,
)
from hogwear.data import decoding
from hogwear.data.contents import shorten_hashes
from hogwear.data.decoding import HASH_SIZE, Limits
from hogwear.data.safe_decoder import SafeDecoder
from hogwear.evaluation import pictures
from hogwear.evaluation.prediction import Photo, Prediction
from hogwear.evaluation.query_pool import QueryPool
from hogwear.evaluation.responses import Responses
from hogwear.evaluation.sorting import Sorter
from hogwear.system import command, machine
from hogwear.system.arrays import Float32Array, UInt8Array
from hogwear.system.artifacts import NEXT_TABLE, PREDICTIONS, PREDICTIONS_TABLE
from hogwear.system.errors import BadInput
from hogwear.system.flags import Range, flag
from hogwear.system.paths import Paths
from hogwear.system.text import escape, normalize, plural, warn

if TYPE_CHECKING:
    from hogwear.evaluation.trained_model import TrainedModel

LATENCY_RUNS = 9  # their median is printed
CHUNK = 1000  # photos decoded and predicted at a time


@dataclass(frozen=True)
class Settings(SharedSettings):
    """Predict photos with model/checkpoint.pt; write pictures, predictions.json and .csv.

    Without --images, these are random photos of the test split (of val, without a test split).
    """

    responses_dir: Path = flag("folder for pictures and predictions", Path("responses"))
    images: tuple[Path, ...] = flag(
        "photos, folders or glob patterns to predict, instead of random test photos", ()
    )
    sort: bool = flag(
        "copy the photos of --images into sorted/CLASS/, sorted/unsure/ and sorted/unknown/",
        False,
        default_help="off",
    )
    next: int | None = flag(
        "list the N photos of --images whose labels would teach the network most",
        None,
        Range(1, 501),
        default_help="off",
    )
    unknown_rate: float = UNKNOWN_RATE
    pictures: int = flag(
        "draw pictures and contact sheets of the first N photos only", 100, Range(0)
    )
    num_images: int = flag("number of random test photos", 5, Range(1))
    seed: int | None = flag(
        "random seed for choosing test photos",
        None,
        Range(0, 2**63),
        default_help="different photos each time",
    )


def main(settings: Settings) -> None:
    require_images(settings)
    responses = Responses(settings.responses_dir, settings.sort, settings.next is not None)
    responses.require_free()
    trained = load_model(settings)
    sorter = None
    if settings.sort:
        within = settings.images
        sorter = Sorter(responses.sorted, trained.class_names, settings.limits, within)
    pool = QueryPool(settings.next, trained.trained_on) if settings.next else None
    load = load_given if settings.images else sample_test_photos
    predictions: list[Prediction] = []
    for photos in load(settings, trained, responses):
        predicted, features = predict_photos(trained, photos, settings.unknown_rate)
        if pool:
            pool.add([each for each in predicted if each.photo.error is None], features)
        with_image = max(0, settings.pictures - len(predictions))
        predicted[with_image:] = [each.without_image() for each in predicted[with_image:]]
        predictions += map(sorter.sort, predicted) if sorter else predicted
    require_some(predictions)
    for prediction in predictions:
        print(prediction.line())
    write(predictions, settings, responses)
    if pool:
        write_next(pool, settings, responses)
    if reason := trained.unknown_is_off:
        print(f"Photos of other things are not recognised as unknown: {reason}.")
    if sorter:
        print(escape(sorter.summary()))
    milliseconds = measure_latency(trained)
    print(f"Latency: {milliseconds:.1f} ms per photo, on one CPU, without decoding.")


def require_images(settings: Settings) -> None:
    """BadInput for flags that need --images, without it."""
    if settings.sort and not settings.images:
        raise BadInput("--sort: name the photos to sort with --images")
    if settings.next and not settings.images:
        raise BadInput("--next: name the photos to choose from with --images")


def require_some(predictions: list[Prediction]) -> None:
    """BadInput, with some reasons, if no photo could be read."""
    if all(prediction.photo.error for prediction in predictions):
        photos = [prediction.photo for prediction in predictions[:3]]
        reasons = "; ".join(f"{photo.file}: {photo.error}" for photo in photos)
        raise BadInput(f"{reasons}: no photo could be read")


def load_given(
    settings: Settings, trained: "TrainedModel", responses: Responses
) -> Iterator[list[Photo]]:
    """The photos of --images, each once, in chunks, so that memory does not grow with their number.

    Warns in the end if the network was trained on any of them. BadInput for a path that does not
    exist or overlaps with the results, and if there are no files.
    """
    found = find_files(settings.images, responses)
    files = list(found)
    decoder = create_decoder(
        Paths(files), trained.image_size, settings, min(machine.cpus(), len(files))
    )
    reader = partial(decode_and_hash, size=trained.image_size, limits=settings.limits)
    hashes = []
    with decoder.workers({"decode": lambda row: decoder.read(row, reader)}) as workers:
        for start in range(0, len(files), CHUNK):
            rows = range(start, min(start + CHUNK, len(files)))
            decoded = dict(workers.run("decode", rows))
            photos = []
            for row in rows:
                file = files[row]
                true_class = find_true_class(file, found[file], trained.class_names)
                if isinstance(decoded[row], str):
                    photos.append(Photo(file, true_class, None, error=decoded[row]))
                else:
                    image, content_hash = decoded[row]
                    photos.append(Photo(file, true_class, image, content_hash=content_hash))
                    hashes.append(content_hash)
            yield photos
    known = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), HASH_SIZE)
    if seen := int(np.isin(shorten_hashes(known), trained.trained_on).sum()):
        warn(
            f"{seen} of {len(hashes)} photos were used for training; "
            "the network is better on them than on new photos"
        )


def find_true_class(file: Path, within: Path, class_names: tuple[str, ...]) -> str | None:
    """The class that a photo is filed under, if any: the outermost folder with a class's name.

    Only the folders `within` one are looked at, and that one last.
    """
    within = within.absolute()
    folders = [*file.absolute().parent.relative_to(within).parts, within.name]
    return next((name for name in map(normalize, folders) if name in class_names), None)


def find_files(patterns: tuple[Path, ...], responses: Responses) -> dict[Path, Path]:
    """The files of --images, {file: the folder that was searched for it, or its own}.

    Glob patterns are expanded.
    """
    files: dict[Path, Path] = {}
    for pattern in patterns:
        matching = [pattern]
        if not pattern.exists():
            # Path.glob takes no absolute pattern.
            matching = sorted(map(Path, glob.glob(str(pattern), recursive=True)))  # noqa: PTH207
        if not matching:
            raise BadInput(
                f"--images: {pattern} does not exist; "
                "give photos, folders of photos, or patterns like 'photos/*.jpg'"
            )
        responses.require_apart(matching)
        for path in matching:
            inside, folder = (files_in(path), path) if path.is_dir() else ([path], path.parent)
            files |= {file: folder for file in inside if file not in files}
    if not files:
        raise BadInput(
            f"--images: no files in {', '.join(map(str, patterns))}; "
            "give photos or folders of photos"
        )
    responses.require_apart(files)
    return files


def files_in(folder: Path) -> list[Path]:
    """The files in a folder and its subfolders, sorted, except hidden ones.

    Links to folders are not followed; they are listed as files, and will not be readable. Raises
    OSError for a folder that may not be opened.
    """

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        found += [Path(parent, name) for name in names + links if not name.startswith(".")]
    return sorted(found)


def decode_and_hash(file: BinaryIO, size: int, limits: Limits) -> tuple[UInt8Array, bytes]:
    """An open photo, (size, size, 3), and the hash of its content. Raises as decoding.decode."""
    content = decoding.read_content(file)
    image = decoding.decode(io.BytesIO(content), size, limits)
    return image, decoding.hash_content(content)


def sample_test_photos(
    settings: Settings, trained: "TrainedModel", responses: Responses
) -> Iterator[list[Photo]]:
    """--num-images random readable test photos, none of which was trained on, as one chunk."""
    photos = find_photos(settings, trained)
    responses.require_no_photos(photos)
    split = photos.evaluated
    is_new = ~np.isin(shorten_hashes(split.hashes), trained.trained_on)
    if not is_new.any():
        raise BadInput(
            f"all {len(split)} photos in {split.name} were used for training; "
            "give others with --images"
        )
    source = "the built-in sample (data/ is empty)" if photos.is_sample else photos.folder
    count = min(settings.num_images, is_new.sum())
    print(escape(f"Photos: {count} at random from the {split.name} split of {source}"))
    order = np.random.default_rng(settings.seed).permutation(len(split))
    rows = order[is_new[order]].tolist()
    # One process returns the photos in order, so that a seed always chooses the same.
    decoder = create_decoder(split.paths, trained.image_size, settings, processes=1)
    chosen: list[Photo] = []
    with decoder.workers({"decode": decoder.decode}) as workers:
        for row, image in workers.run("decode", rows):
            file = split.paths[row]
            if isinstance(image, str):
                warn(f"skipped '{file}': {image}")
                continue
            chosen.append(Photo(file, photos.class_names[split.labels[row]], image))
            if len(chosen) == settings.num_images:
                break
    yield chosen


def create_decoder(files: Paths, size: int, settings: Settings, processes: int) -> SafeDecoder:
    """A decoder that follows links only into the data folder, or to what --images names."""
    within = settings.images or [settings.data_dir]
    return SafeDecoder(files, size, settings.limits, processes, within)


def predict_photos(
    trained: "TrainedModel", photos: list[Photo], unknown_rate: float
) -> tuple[list[Prediction], Float32Array]:
    """A prediction for every photo, in order; without probabilities for the unreadable ones.

    Also returns the features of the readable ones, (n, D).
    """
    from hogwear.evaluation.predict import predict_with_features

    images = [photo.image for photo in photos if photo.image is not None]
    if not images:
        return [Prediction(photo, {}) for photo in photos], np.empty((0, 0), np.float32)
    logits, features = predict_with_features(trained.net, np.stack(images), machine.cpus())
    return trained.predict(photos, logits, unknown_rate), features


def write(predictions: list[Prediction], settings: Settings, responses: Responses) -> None:
    """Write pictures and contact sheets of the first photos and all predictions, and say where."""
    first = predictions[: settings.pictures]
    kept = responses.clear()
    paths = Paths(prediction.photo.file for prediction in first)
    processes = max(1, min(machine.cpus(), len(first)))
    decoder = create_decoder(paths, pictures.PHOTO_SIDE, settings, processes)
    names = responses.write_pictures(first, decoder)
    sheets = responses.write_sheets(first)
    responses.write_tables(predictions, names)

    overview = f", all on {sheets[0]}" if sheets else ""
    part = ""
    if len(first) < len(predictions):
        part = f" (the first {len(first)} of {len(predictions)} photos; --pictures)"
    folder = responses.folder
    print(escape(f"{plural(len(names), 'picture')} in {responses.results}{overview}{part}."))
    print(escape(f"All predictions: {folder / PREDICTIONS} and {PREDICTIONS_TABLE}."))
    if kept:
        files = plural(kept, "file")
        print(escape(f"Kept in {folder}: {files} that infer did not write or that were changed."))


def write_next(pool: QueryPool, settings: Settings, responses: Responses) -> None:
    """Write the table and the sheets of the photos to label next, and say where."""
    chosen = pool.choose()
    paths = Paths(prediction.photo.file for prediction in chosen)
    processes = max(1, min(machine.cpus(), len(chosen)))
    decoder = create_decoder(paths, pictures.CELL, settings, processes)
    sheets = responses.write_next(chosen, decoder)
    overview = f", shown on {sheets[0]}" if sheets else ""
    fewer = ""
    if len(chosen) < pool.count:
        fewer = f" ({pool.count} were asked for; there are no more)"
    table = responses.folder / NEXT_TABLE
    print(escape(f"To label next: {plural(len(chosen), 'photo')} in {table}{overview}{fewer}."))
    if left_out := pool.describe_left_out():
        print(left_out)


def measure_latency(trained: "TrainedModel") -> float:
    """Median milliseconds to predict one decoded photo on one thread."""
    import torch

    size = trained.image_size
    pixels = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    times = []
    with torch.inference_mode():
        for _ in range(LATENCY_RUNS):
            started = time.perf_counter()
            trained.net(pixels)
            times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


if __name__ == "__main__":
    command.run(main, Settings)
