"""What is wrong with the photos: a report on stdout, and model/doctor.json, whose shape docs/doctor.md describes.

python -m hogwear.commands.doctor --data-dir data
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from hogwear.commands.common import SharedSettings, load_model, require_same_classes
from hogwear.data import decoding, near_duplicates
from hogwear.data.decoding import Limits
from hogwear.data.photos import Photos, Split
from hogwear.data.safe_decoder import read_all
from hogwear.data.splitting import COMPARED_SIZE
from hogwear.system import command, machine
from hogwear.system.arrays import Int64Array, UInt8Array
from hogwear.system.artifacts import CHECKPOINT, DOCTOR_REPORT
from hogwear.system.errors import BadInput
from hogwear.system.files import write_atomically
from hogwear.system.paths import Paths
from hogwear.system.text import escape

SCHEMA = (
    1  # of doctor.json: raised when something in it is renamed, removed or means something else
)
TINY = 32  # pixels of the shorter side
FLAT, FLAT_SHARE = (
    8,
    0.995,
)  # near-empty: that share of the photo is so near, of 255, to its median colour
FEW = 0.2  # under-represented: fewer photos to train on than that share of the largest class
SURE = 0.95  # probability of another class from which on a given class is contradicted
SHOWN = 20  # lines a heading; doctor.json has all
SUFFIXES = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
}


@dataclass(frozen=True)
class Settings(SharedSettings):
    """Check the photos for problems; print a report and write model/doctor.json. Changes no photo."""


class Photo(NamedTuple):
    """What a worker finds in one file."""

    digest: bytes  # of the file
    format: str
    side: int  # the shorter one, in pixels
    turned: bool  # by EXIF
    flat: bool
    signature: UInt8Array


class Member(NamedTuple):
    """A photo of the data folder."""

    file: Path
    split: str
    label: str


def main(settings: Settings) -> None:
    machine.keep_freed_memory()
    photos = settings.photos(settings.splitter(assigns_new=True))
    limits = settings.limits
    splits = photos.splits
    members = [
        Member(f, s.name, photos.class_names[label])
        for s in splits
        for f, label in zip(s.paths, s.labels.tolist(), strict=True)
    ]
    found = look_at(Paths(m.file for m in members), splits[0].root, limits)
    report = {
        "schema": SCHEMA,
        "folder": str(photos.folder),
        **counted(photos, splits),
        **faults(members, found),
    }
    report |= (
        doubted(photos, splits, settings)
        if (settings.model_dir / CHECKPOINT).exists()
        else {"contradicted": None, "network": None}
    )
    write_atomically(
        settings.model_dir / DOCTOR_REPORT, (json.dumps(report, indent=2) + "\n").encode()
    )
    for line in (*lines(report), f"Written to {settings.model_dir / DOCTOR_REPORT}."):
        print(escape(line))


def look_at(paths: Paths, root: Path, limits: Limits) -> list[Photo | str]:
    """Every file as a photo, or why it is none; decoded by all CPUs."""
    found = dict(read_all(paths, root, limits, partial(look, limits=limits), "looking"))
    return [found[row] for row in range(len(paths))]


def look(file: BinaryIO, limits: Limits) -> Photo:
    """In a worker. Raises as `decode` does."""
    digest = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
    file.seek(0)
    decoded = decoding.decode_image(file, COMPARED_SIZE, limits)
    return Photo(
        digest,
        decoded.format,
        decoded.shorter_side,
        decoded.was_turned,
        is_flat(decoded.image),
        near_duplicates.compute_signature(decoding.letterbox(decoded.image, COMPARED_SIZE)),
    )


def is_flat(image: Image.Image) -> bool:
    """Whether it is of almost one colour."""
    colours = np.asarray(image, np.int16).reshape(-1, 3)
    near = (np.abs(colours - np.median(colours, axis=0)) <= FLAT).all(axis=1)
    return bool(near.mean() >= FLAT_SHARE)


def counted(photos: Photos, splits: list[Split]) -> dict[str, Any]:
    """How many photos of each class, and which classes have too few."""
    counts = {split.name: split.count_per_class(photos.class_names) for split in splits}
    largest = max(counts["train"].values())
    return {
        "counts": counts,
        "under_represented": [
            name for name, count in counts["train"].items() if count < FEW * largest
        ],
        "missing_classes": {
            split: absent
            for split, found in counts.items()
            if (absent := [name for name in found if not found[name]])
        },
    }


def faults(members: list[Member], found: list[Photo | str]) -> dict[str, Any]:
    """All that can be told without a network."""
    seen = [
        (member, photo)
        for member, photo in zip(members, found, strict=True)
        if isinstance(photo, Photo)
    ]
    readable, photos = [member for member, _ in seen], [photo for _, photo in seen]
    unreadable = [
        entry(member) | {"reason": why}
        for member, why in zip(members, found, strict=True)
        if isinstance(why, str)
    ]
    near = near_duplicates.find_pairs(
        np.array([photo.signature for photo in photos], np.uint8).reshape(
            -1, near_duplicates.SIGNATURE_SIZE
        )
    )
    exact = same_digest(photos)
    alike = [
        group
        for group in near_duplicates.group_pairs(len(photos), np.concatenate([near, exact]))
        if len({photos[i].digest for i in group}) > 1
    ]
    same = near_duplicates.group_pairs(len(photos), exact)
    return {
        "leaked": leaked(readable, exact, near),
        "conflicting": [
            describe(group, readable)
            for group in connected(same, alike)
            if len({readable[i].label for i in group}) > 1
        ],
        "duplicates": [describe(group, readable) for group in same],
        "near_duplicates": [describe(group, readable) for group in alike],
        "unreadable": unreadable,
        "tiny": [entry(m) | {"side": p.side} for m, p in seen if p.side < TINY],
        "misnamed": [
            entry(m) | {"format": p.format}
            for m, p in seen
            if SUFFIXES.get(m.file.suffix.lower(), p.format) != p.format
        ],
        "rotated": [entry(m) for m, p in seen if p.turned],
        "near_empty": [entry(m) for m, p in seen if p.flat],
    }


def same_digest(photos: list[Photo]) -> Int64Array:
    """(k, 2) rows of the same bytes: each with the first such."""
    first: dict[bytes, int] = {}
    pairs = [(first.setdefault(photo.digest, row), row) for row, photo in enumerate(photos)]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2)


def connected(same: list[list[int]], alike: list[list[int]]) -> list[list[int]]:
    """Groups of the same photo, nearly or exactly, each photo in one of them."""
    inside = {row for group in alike for row in group}
    return sorted(alike + [group for group in same if group[0] not in inside])


def leaked(members: list[Member], exact: Int64Array, near: Int64Array) -> list[dict[str, Any]]:
    """The photos of val and test that are in train too, with the photo there; the same bytes go before nearly the same."""
    twins: dict[int, dict[str, Any]] = {}
    pairs = []
    for group in near_duplicates.group_pairs(len(members), exact):
        if (
            first := next((row for row in group if members[row].split == "train"), None)
        ) is not None:
            pairs += [(first, other, True) for other in group]
    pairs += [
        (*pair, False)
        for one, other in near.tolist()
        for pair in ((one, other), (other, one))
        if members[pair[0]].split == "train"
    ]
    for in_train, other, is_exact in pairs:
        if members[other].split != "train" and other not in twins:
            twins[other] = entry(members[other]) | {
                "in_train": entry(members[in_train]),
                "exact": is_exact,
            }
    return [twins[row] for row in sorted(twins)]


def entry(member: Member) -> dict[str, Any]:
    return {"file": str(member.file), "split": member.split, "class": member.label}


def describe(group: list[int], members: list[Member]) -> list[dict[str, Any]]:
    return [entry(members[row]) for row in group]


def doubted(photos: Photos, splits: list[Split], settings: Settings) -> dict[str, Any]:
    """The photos whose class the trained network contradicts; {"network": why not} where it cannot be asked."""
    from hogwear.evaluation import predict  # only here: torch takes seconds

    try:
        trained = load_model(settings)
        settings.require_same_kind(trained.is_sample)
        require_same_classes(trained.class_names, photos)
        contradicted = []
        for split in splits:
            pixels = settings.cache.open(split, trained.image_size)
            logits = predict.predict_logits(trained.net, pixels.images, pixels.rows, machine.cpus())
            probabilities = trained.probabilities(logits)
            predicted = probabilities.argmax(axis=1)
            for i in np.flatnonzero(
                (predicted != pixels.labels) & (probabilities.max(axis=1) >= SURE)
            ).tolist():
                member = Member(
                    split.paths[int(pixels.rows[i])],
                    split.name,
                    photos.class_names[pixels.labels[i]],
                )
                told = {
                    "predicted": photos.class_names[predicted[i]],
                    "probability": float(probabilities[i].max()),
                }
                contradicted.append(entry(member) | told)
    except BadInput as error:
        return {"contradicted": None, "network": str(error)}
    return {
        "contradicted": sorted(contradicted, key=lambda found: -found["probability"]),
        "network": trained.sha256,
    }


HEADINGS = {  # what is said of the entries of each list, in this order
    "conflicting": "the same photo in two classes: one of them is wrong",
    "contradicted": f"the trained network is at least {SURE:.0%} sure of another class",
    "unreadable": "cannot be read, and are skipped",
    "duplicates": "groups of the same file",
    "near_duplicates": "groups of nearly the same photo (resized, recompressed, a little brighter); alike products are among them, look",
    "tiny": f"a side of less than {TINY} pixels",
    "near_empty": "of almost one colour",
    "misnamed": "the name says another format than the content; they are read all the same",
    "rotated": "turned by EXIF; they are put upright. Photos that lie on their side without EXIF saying so are not found",
}


def lines(report: dict[str, Any]) -> Iterable[str]:
    """The report for people, leakage first."""
    faultless = True
    if found := report["leaked"]:
        faultless = False
        shared = {split: sum(e["split"] == split for e in found) for split in report["counts"]}
        held_out = " and ".join(f"{split} ({count})" for split, count in shared.items() if count)
        yield f"LEAKAGE: photos of {held_out} are in train too, exactly or nearly: figures measured on them are too good. Remove them from one side."
        yield from listed(
            f"{told(e)}  {'is' if e['exact'] else 'is nearly'}  {told(e['in_train'])}"
            for e in found
        )
        yield ""
    yield from table(report)
    for split, names in report["missing_classes"].items():
        faultless = False
        yield f"MISSING from {split}: {', '.join(names)}."
    if names := report["under_represented"]:
        faultless = False
        yield f"UNDER-REPRESENTED, fewer than {FEW:.0%} of the largest class: {', '.join(names)}. More photos of them help most."
    for name, what in HEADINGS.items():
        if entries := report[name]:
            faultless = False
            yield ""
            yield f"{name.replace('_', ' ').upper()} ({len(entries)}): {what}."
            yield from listed(map(described, entries))
    yield ""
    if report["contradicted"] is None:
        why = (
            f"the network could not be asked: {report['network']}"
            if report["network"]
            else "there is no checkpoint yet; once trained, the doctor asks the network too"
        )
        yield f"Wrong classes were looked for only among duplicates: {why}."
    if faultless:
        yield "No faults found."


def table(report: dict[str, Any]) -> Iterable[str]:
    counts = report["counts"]
    yield f"Photos in {report['folder']}:"
    wide = max(len(name) for name in ("class", *counts["train"]))
    yield f"  {'class':{wide}}" + "".join(f"{split:>8}" for split in counts)
    for name in counts["train"]:
        yield f"  {name:{wide}}" + "".join(f"{found[name]:8d}" for found in counts.values())
    yield f"  {'all':{wide}}" + "".join(f"{sum(found.values()):8d}" for found in counts.values())


def described(found: Any) -> str:
    """One entry of a list, or one group."""
    if isinstance(found, list):
        return "  =  ".join(map(told, found))
    extra = {key: value for key, value in found.items() if key not in ("file", "split", "class")}
    if "probability" in extra:
        return f"{told(found)}: {extra['predicted']}, {extra['probability']:.1%}"
    return told(found) + "".join(f": {value}" for value in extra.values())


def told(found: dict[str, Any]) -> str:
    return f"{found['file']} ({found['split']}, {found['class']})"


def listed(entries: Iterable[str]) -> Iterable[str]:
    entries = list(entries)
    yield from (f"  {line}" for line in entries[:SHOWN])
    if len(entries) > SHOWN:
        yield f"  ... and {len(entries) - SHOWN} more, in {DOCTOR_REPORT}"


if __name__ == "__main__":
    command.run(main, Settings)
