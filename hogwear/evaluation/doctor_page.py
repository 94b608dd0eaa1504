"""The doctor's report as a page: photos by kind of problem, and a way to correct their classes.

It is one self-contained HTML file that works from file://. Its script, doctor.js, makes
corrections.csv of what a person marks. The page has the cells of that file as bytes, in base64,
because names of files need not be text.
"""

import base64
import hashlib
import io
import json
import os
from collections.abc import Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from markupsafe import Markup

from hogwear.data import decoding
from hogwear.data.checks import Entry
from hogwear.data.corrections import COLUMNS, LEAVE_OUT, read_table
from hogwear.data.decoding import Limits
from hogwear.data.photos import Photos
from hogwear.data.safe_decoder import read_all
from hogwear.evaluation import pages
from hogwear.evaluation.doctor_sections import choose_sections
from hogwear.system.artifacts import DOCTOR_PAGE
from hogwear.system.files import write_atomically
from hogwear.system.paths import Paths
from hogwear.system.text import FORMULA_STARTS, to_cell

MAX_CLASSES = 100  # in the table of counts: the largest and the smallest
MAX_ROWS = 100  # of unreadable photos
MAX_CONFUSIONS = 10
MAX_KEPT = 1 << 20  # bytes of a corrections.csv that the page carries
THUMBNAIL = 160  # pixels, the longer side
# A JPEG has the first of these qualities that makes it small enough, or the last
QUALITIES, MAX_THUMBNAIL = (80, 50, 20, 5), 16_000  # bytes


class Card(NamedTuple):
    """A photo on the page."""

    entry: Entry  # of doctor.json
    name: str  # its path within the data folder
    cell: Markup  # the same in corrections.csv, in base64
    suggestion: str  # another class that it may belong to; "" for none
    thumbnail: bytes | None  # JPEG


def write_page(folder: Path, report: dict[str, Any], photos: Photos, limits: Limits) -> Path:
    """Write folder/doctor.html. `report` is the content of doctor.json, about these photos."""
    sections = choose_sections(report)
    shown = {entry["file"] for section in sections for entry in chain(*section.groups)}
    thumbnails = make_thumbnails(sorted(shown), photos.train.root, limits)

    def make_card(entry: Entry, group: list[Entry]) -> Card:
        name = entry["file"].removeprefix(f"{photos.folder}/")
        others = [other["class"] for other in group if other["class"] != entry["class"]]
        return Card(
            entry,
            name,
            Markup(encode_path(name)),
            entry.get("predicted") or next(iter(others), ""),
            thumbnails.get(entry["file"]),
        )

    script = Path(__file__).with_name("doctor.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = pages.render(
        "doctor.html",
        r=report,
        total=sum(sum(of_split.values()) for of_split in report["counts"].values()),
        sections=[
            (section, [[make_card(entry, group) for entry in group] for group in section.groups])
            for section in sections
        ],
        classes=choose_classes(report["counts"]),
        max_rows=MAX_ROWS,
        max_confusions=MAX_CONFUSIONS,
        expected=report.get("expected"),
        confusions=report.get("confusions") or [],
        is_sample=photos.is_sample,
        data=describe_corrections(report, photos),
        script=Markup(script),
        script_hash=Markup(digest),
    )
    write_atomically(folder / DOCTOR_PAGE, page.encode())
    return folder / DOCTOR_PAGE


def make_thumbnails(files: list[str], root: Path, limits: Limits) -> dict[str, bytes]:
    """{file: JPEG} of those that can be read."""
    reader = partial(make_thumbnail, limits=limits)
    results = read_all(Paths(files), root, limits, reader, "making thumbnails")
    return {files[row]: jpeg for row, jpeg in results if isinstance(jpeg, bytes)}


def make_thumbnail(file: BinaryIO, limits: Limits) -> bytes:
    """In a worker: an open photo as a small upright JPEG."""
    image = decoding.decode_image(file, THUMBNAIL, limits).image
    for quality in QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= MAX_THUMBNAIL:
            break
    return buffer.getvalue()


def choose_classes(counts: dict[str, dict[str, int]]) -> list[tuple[str, list[int]]]:
    """(class, photos in each split), the largest class first; without the middle of too many."""
    rows = [(name, [of_split[name] for of_split in counts.values()]) for name in counts["train"]]
    rows.sort(key=lambda row: -sum(row[1]))
    half = MAX_CLASSES // 2
    return rows if len(rows) <= MAX_CLASSES else rows[:half] + rows[-half:]


def describe_corrections(report: dict[str, Any], photos: Photos) -> dict[str, Any]:
    """What doctor.js needs: the classes, and the rows of the corrections.csv that there is.

    Cells are in base64, without quotes. A row of a photo that is marked is replaced. `id`
    identifies the report, so that marks are remembered for this one only.
    """
    header, rows = list(COLUMNS), []
    file = photos.corrections and photos.corrections.file
    is_kept = not file or file.stat().st_size <= MAX_KEPT
    if file and is_kept:
        table = read_table(file, photos.folder)
        header = table.header
        rows = [
            {"photo": encode_path(row.path or ""), "cells": encode_all(row.cells)}
            for row in table.rows
        ]
    columns = [cell.strip().lower() for cell in header]
    return {
        "id": hashlib.sha256(json.dumps(report).encode()).hexdigest()[:16],
        "classes": [
            {"name": name, "cell": encode(str(to_cell(name)))} for name in photos.class_names
        ],
        "leaveOut": encode(LEAVE_OUT),
        "header": encode_all(header),
        "fileColumn": columns.index(COLUMNS[0]),
        "classColumn": columns.index(COLUMNS[1]),
        "rows": rows,
        "isKept": is_kept,
    }


def encode_path(path: str) -> str:
    """A path within the data folder as `encode`, so that no spreadsheet takes it for a formula."""
    return encode(f"./{path}" if path.startswith(FORMULA_STARTS) else path)


def encode(text: str) -> str:
    """The bytes of a text in base64; surrogates stand for bytes that are not UTF-8."""
    return base64.b64encode(os.fsencode(text)).decode()


def encode_all(texts: Iterable[str]) -> list[str]:
    return [encode(text) for text in texts]
