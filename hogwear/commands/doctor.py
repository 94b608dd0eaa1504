"""Look for problems in the photos: a report on stdout, model/doctor.html and model/doctor.json.

python -m hogwear.commands.doctor --data-dir data
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hogwear.commands.shared_settings import SharedSettings
from hogwear.data import checks
from hogwear.data.checks import SMALL_CLASS, TINY_SIDE, Entry, Member
from hogwear.data.loading import Loader
from hogwear.data.photos import Photos
from hogwear.data.picture_quality import ODD_RATIO
from hogwear.evaluation.doctor_page import write_page
from hogwear.system import command, machine
from hogwear.system.artifacts import DOCTOR_REPORT
from hogwear.system.files import write_atomically
from hogwear.system.text import escape, plural

SCHEMA = 2  # of doctor.json; goes up when a key is renamed, removed or changes its meaning
IMAGE_SIZE = 160  # pixels, at which photos are predicted
MAX_CONFUSIONS = 3  # that are printed
MAX_LINES = 20  # per heading; doctor.json has everything


@dataclass(frozen=True)
class Settings(SharedSettings):
    """Look for problems in the photos, and write them to model/doctor.html. Changes no photo."""


def main(settings: Settings) -> None:
    machine.keep_freed_memory()
    photos = settings.photos(settings.splitter(assigns_new=True))
    members = checks.list_members(photos)
    results = checks.examine_files(members, photos.train.root, settings.limits)
    report = {
        "schema": SCHEMA,
        "folder": str(photos.folder),
        "corrections": photos.corrections and photos.corrections.to_json(),
        **checks.check_counts(photos),
        **checks.check_files(members, results),
        **checks.check_products(photos, members),
        **check_labels(photos, settings),
    }
    file = settings.model_dir / DOCTOR_REPORT
    write_atomically(file, (json.dumps(report, indent=2) + "\n").encode())
    corrections = [photos.corrections.describe()] if photos.corrections else []
    page = write_page(settings.model_dir, report, photos, settings.limits)
    end = f"Report: {page}, to open in a browser; {file} has everything."
    for line in (*corrections, *format_report(report), end):
        print(escape(line))


def check_labels(photos: Photos, settings: Settings) -> dict[str, Any]:
    """What the closed-form classifier predicts for each photo without having seen it.

    All are None if there are too few photos to leave any out.
    """
    import torch  # takes seconds, like the next two

    import model
    from hogwear.training.label_check import predict_left_out

    torch.set_num_threads(1)
    names, loader = photos.class_names, Loader(settings.cache, warns=False)
    splits = [loader.load(split, IMAGE_SIZE) for split in photos.splits]
    dtype = model.choose_dtype(settings.cache_dir)
    net = model.build("efficientnet_lite0", len(names), IMAGE_SIZE, dtype)
    net.load_pretrained()
    found = predict_left_out(net, splits, machine.cpus())
    count = int(found.is_predicted.sum())
    if not count:
        return dict.fromkeys(("contradicted", "expected", "confusions"))
    members = [
        Member(split.paths[row], split.name, names[split.labels[row]])
        for split, pixels in zip(photos.splits, splits, strict=True)
        for row in pixels.rows.tolist()
    ]
    return {
        "expected": {
            "accuracy": found.accuracy,
            "photos": count,
            "chance": float(np.bincount(found.labels).max() / len(found.labels)),
        },
        "confusions": [
            {"class": names[own], "predicted": names[other], "photos": photos_confused}
            for own, other, photos_confused in found.count_confusions()
        ],
        "contradicted": [
            members[i].to_entry(
                predicted=names[found.predicted[i]],
                probability=float(found.probabilities[i].max()),
                own_probability=float(found.own[i]),
            )
            for i in found.find_contradicted().tolist()
        ],
    }


HEADINGS = {  # the lists of the report, in this order
    "conflicting": "the same photo in two classes: one of them is wrong",
    "contradicted": "another class is far more probable, by what the other photos look like; the "
    "surest ones first",
    "unreadable": "these photos cannot be read and are skipped",
    "duplicates": "groups of identical files",
    "near_duplicates": "groups of nearly identical photos (resized, recompressed, a little "
    "brighter); check them, because similar products may be among them",
    "tiny": f"a side has less than {TINY_SIDE} pixels",
    "divided_products": "the photos of one product are in several splits, so figures may be too "
    "good; here is one photo in each of them",
    "blurred": "no edge is sharp",
    "dark": "hardly anything is brighter than a dark grey",
    "odd_shape": f"the longer side is more than {ODD_RATIO} times the shorter one",
    "near_empty": "almost only one colour",
    "misnamed": "the suffix names another format than the content; the photos are read anyway",
    "rotated": "EXIF rotates these photos, and they are used upright; photos that lie on their "
    "side without EXIF data are not found",
}


def format_report(report: dict[str, Any]) -> Iterator[str]:
    """The lines that people read, leakage first."""
    if leaked := report["leaked"]:
        yield from format_leakage(leaked, report["counts"])
        yield ""
    yield from format_counts(report)
    for split, names in report["missing_classes"].items():
        yield f"MISSING from {split}: {', '.join(names)}."
    if names := report["under_represented"]:
        yield (
            f"UNDER-REPRESENTED, fewer than {SMALL_CLASS:.0%} of the largest class: "
            f"{', '.join(names)}. More photos of these classes help most."
        )
    for key, meaning in HEADINGS.items():
        if entries := report[key]:
            yield ""
            yield f"{key.replace('_', ' ').upper()} ({len(entries)}): {meaning}."
            between = "  and  " if key == "divided_products" else "  =  "
            yield from format_list(format_entry(entry, between) for entry in entries)
    yield ""
    yield from format_expectation(report)
    problems = ("leaked", "missing_classes", "under_represented", *HEADINGS)
    if not any(report[key] for key in problems):
        yield "No problems found."


def format_expectation(report: dict[str, Any]) -> Iterator[str]:
    expected = report["expected"]
    if expected is None:
        yield "There are too few photos to say what accuracy to expect, or which labels are wrong."
        return
    yield (
        f"Expected accuracy before training: {expected['accuracy']:.3f}, by cross-validation on "
        f"{plural(expected['photos'], 'photo')} (chance: {expected['chance']:.3f})."
    )
    confused = [
        f"{each['class']} taken for {each['predicted']} ({each['photos']})"
        for each in report["confusions"][:MAX_CONFUSIONS]
    ]
    if confused:
        yield f"Most frequent confusions: {', '.join(confused)}."


def format_leakage(leaked: list[Entry], counts: dict[str, Any]) -> Iterator[str]:
    shared = {split: sum(entry["split"] == split for entry in leaked) for split in counts}
    held_out = " and ".join(f"{split} ({count})" for split, count in shared.items() if count)
    yield (
        f"LEAKAGE: photos of {held_out} are in train, too, exactly or nearly, so figures measured "
        "on them are too good. Remove them from one of the splits."
    )
    yield from format_list(
        f"{format_photo(entry)}  {'is' if entry['exact'] else 'is nearly'}  "
        f"{format_photo(entry['in_train'])}"
        for entry in leaked
    )


def format_counts(report: dict[str, Any]) -> Iterator[str]:
    counts = report["counts"]
    rows = {name: [of_split[name] for of_split in counts.values()] for name in counts["train"]}
    totals = [sum(of_split.values()) for of_split in counts.values()]
    width = max(map(len, ("class", *rows)))
    yield f"Photos in {report['folder']}:"
    for name, cells in (("class", counts), *rows.items(), ("all", totals)):
        yield f"  {name:{width}}" + "".join(f"{cell:>8}" for cell in cells)


def format_entry(entry: Entry | list[Entry], between: str) -> str:
    """A photo with what its list says about it, or a group of photos."""
    if isinstance(entry, list):
        return between.join(map(format_photo, entry))
    if "probability" in entry:
        probable = f"{entry['predicted']} {entry['probability']:.1%}"
        return f"{format_photo(entry)}: {probable}, {entry['class']} {entry['own_probability']:.1%}"
    details = [value for key, value in entry.items() if key not in ("file", "split", "class")]
    return ": ".join([format_photo(entry), *map(str, details)])


def format_photo(entry: Entry) -> str:
    return f"{entry['file']} ({entry['split']}, {entry['class']})"


def format_list(lines: Iterable[str]) -> Iterator[str]:
    """The first lines, indented."""
    lines = list(lines)
    yield from (f"  {line}" for line in lines[:MAX_LINES])
    if len(lines) > MAX_LINES:
        yield f"  ... and {len(lines) - MAX_LINES} more, in {DOCTOR_REPORT}"


if __name__ == "__main__":
    command.run(main, Settings)
