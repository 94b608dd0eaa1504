"""Text from strangers: shown in full, and without power over what shows it."""

import csv
import io
import json
import os
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import CLASSES, SIZE, Call, Completed, Start, Trained, at, saved
from PIL import Image

import eval
import infer
from hogwear.commands import doctor, export, preparation
from hogwear.commands.shared_settings import SharedSettings
from hogwear.data.splitting import Splitter
from hogwear.system.text import escape, is_safe, shorten, to_csv
from hogwear.training import checkpoint, checkpoint_schema

HARMLESS = {
    "letters of many scripts": "Schuhe 写真 バッグ обувь أحذية जूते",
    "combining marks": "cafe\u0301 ก\u0e34\u0e48",
    "zero-width non-joiner, Persian": "می\u200cخواهم",
    "zero-width joiner, an emoji": "\U0001f469\u200d\U0001f52c",
    "non-breaking space": "10\u00a0cm",
    "narrow non-breaking space, screenshots of a Mac": "9.41\u202fAM",
    "ideographic space": "東京\u3000靴",
    "a backslash": r"images\1.jpg",
    "markup": "<b>&amp;</b> $x_1$",
    "nothing": "",
}
POWERFUL = {
    "clears the screen": ("\x1b[2J", r"\x1b[2J"),
    "sets the title": ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
    "8-bit control": ("\x9b2J", r"\x9b2J"),
    "ends the line": ("a\nb\rc\x85d", r"a\nb\rc\x85d"),
    "tab": ("a\tb", r"a\tb"),
    "NUL and DEL": ("\0\x7f", r"\x00\x7f"),
    "line and paragraph separators": ("\u2028\u2029", r"\u2028\u2029"),
    "private use": ("\ue000\U0010fffd", r"\ue000\U0010fffd"),
    "a byte that is no UTF-8": (b"\xff".decode(errors="surrogateescape"), r"\udcff"),
    "every bidirectional control": (
        "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
        r"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
    ),
    "hidden text": ("\U000e0068\U000e0069\ufeff", r"\U000e0068\U000e0069\ufeff"),
}


@pytest.mark.parametrize("text", HARMLESS.values(), ids=list(HARMLESS))
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert escape(text) == text and is_safe(text)


@pytest.mark.parametrize(("text", "shown"), POWERFUL.values(), ids=list(POWERFUL))
def test_terminal_and_bidirectional_controls_are_escaped(text: str, shown: str) -> None:
    assert escape(text) == shown and not is_safe(text)


def test_only_letters_marks_numbers_punctuation_symbols_and_spaces_stay() -> None:
    everything = [chr(number) for number in range(sys.maxunicode + 1)]
    shown = escape("".join(everything))
    stay = {
        c
        for c in everything
        if unicodedata.category(c)[0] in "LMNPS" or unicodedata.category(c) == "Zs"
    }
    assert set(shown) == stay | {"\u200c", "\u200d"}
    assert shown.splitlines() == [shown] and shown.encode() and escape(shown) == shown


def test_shortened_text_ends_with_an_ellipsis() -> None:
    assert (
        shorten("abc", 3) == "abc"
        and shorten("abcd", 3) == "ab…"
        and shorten("\x1b" * 9, 8) == r"\x1b\x1…"
    )


@pytest.mark.parametrize(
    "start",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\0=1", "＝1", "＋1", "－1", "＠1"],
)
def test_no_text_in_a_table_is_a_formula_to_a_spreadsheet(start: str) -> None:
    """As OWASP advises, also for programs that take other separators or quotes."""
    table = to_csv([["file", "class"], [start, f'a;{start},"{start}"'], [Path(start), None]])
    header, *rows = csv.reader(io.StringIO(table, newline=""))
    assert header == ["file", "class"]
    cells = [cell for row in rows for cell in row]
    assert all(cell[:1] in ("'", "\\", "a", "") for cell in cells), cells
    assert all(line.startswith(("\"'", '"\\')) for line in table.splitlines()[1:]), "in quotes"
    assert (
        cells[0].lstrip("'") == escape(start) and f'a;{escape(start)},"{escape(start)}"' == cells[1]
    )


def test_numbers_and_harmless_names_in_a_table_stay_as_they_are() -> None:
    table = to_csv(
        [
            ["n", "x", "name", "right"],
            [-1, -0.25, "a-b=c", True],
            [3, 1e-6, KEPT, False],
            [0, 0.5, 'a "b"', None],
        ]
    )
    assert table.split("\r\n") == [
        '"n","x","name","right"', '-1,-0.25,"a-b=c",True', f'3,1e-06,"{KEPT}",False', '0,0.5,"a ""b""",""', "",
    ]  # fmt: skip


ATTACK = "\x1b[2J\x1b]0;title\x07\u202e\u2028\ue000\udcff\n`|<b>&$x_1$"
KEPT = "می\u200cخ\u200d e\u0301 10\u00a0cm 靴"  # what escaping must not touch


@pytest.fixture
def attack(
    data: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, ...]:
    """The class names of a checkpoint in model/, and data/ whose photos, and their classes once read, are called so too."""
    names = tuple(f"{name}{ATTACK}{KEPT}" for name in CLASSES)
    for split in ("train", "val", "test"):
        for name in CLASSES:
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i, photo in enumerate(sorted((data / split / name).iterdir())[:2]):
                os.link(photo, tmp_path / "data" / split / name / f"{i}{ATTACK}{KEPT}.jpg")
            (tmp_path / "data" / split / name / f"broken{ATTACK}.jpg").write_bytes(b"no photo")
    (tmp_path / "model").mkdir()
    checkpoint.save(tmp_path / "model", saved(trained.model) | {"class_names": list(names)})
    read = SharedSettings.photos
    monkeypatch.setattr(
        SharedSettings,
        "photos",
        lambda self, *divide: replace(read(self, *divide), class_names=names),
    )
    monkeypatch.setattr(
        checkpoint_schema, "is_safe", lambda text: True
    )  # such a checkpoint is refused; what shows names does not rely on that
    return names


def assert_harmless(text: str) -> None:
    assert all(is_safe(line) for line in text.split("\n")), ascii(text)


def assert_answer_is_harmless(answer: Completed) -> None:
    assert answer.code == 0, answer.stderr
    assert_harmless(answer.stdout + answer.stderr)
    assert (
        KEPT in answer.stdout
        and rf"\x1b[2J\x1b]0;title\x07\u202e\u2028\ue000\udcff\n`|<b>&$x_1${KEPT}" in answer.stdout
    )


@pytest.mark.usefixtures("attack")
def test_hostile_names_are_escaped_in_all_that_eval_and_export_print_and_write(
    call: Call, tmp_path: Path
) -> None:
    arguments = at(tmp_path / "data", tmp_path / "model", tmp_path / "cache")
    answer = call(eval, *arguments)
    assert_answer_is_harmless(answer)
    assert all(line.startswith("Warning: skipped ") for line in answer.stderr.splitlines()), (
        "and nothing of fonts that lack a letter"
    )
    page = (tmp_path / "model" / "report.html").read_text()
    assert_harmless(page)
    assert KEPT in page and "<b>&$" not in page and "title\\x07" in page
    assert json.loads((tmp_path / "model" / "eval_results.json").read_bytes().decode("ascii"))[
        "class_names"
    ][0].endswith(ATTACK + KEPT)
    answer = call(export, *arguments)
    assert answer.code == 0, answer.stderr
    assert_harmless(answer.stdout + answer.stderr)
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert_harmless(card)
    assert (
        rf"`` bottomwear\x1b[2J\x1b]0;title\x07\u202e\u2028\ue000\udcff\n`|<b>&$x_1${KEPT} ``"
        in card
    )
    assert rf"\n`\|<b>&$x_1${KEPT} `` |" in card, "a pipe would end the cell"
    assert (
        ATTACK.encode(errors="surrogateescape")
        not in (tmp_path / "model" / "model.onnx").read_bytes()
    )
    for picture in (tmp_path / "model").glob("*.png"):
        assert text_in(picture) == {}


@pytest.mark.usefixtures("attack")
@pytest.mark.parametrize(
    "arguments", [("--num-images", 3), ("--images", "data/test")], ids=["random", "given"]
)
def test_hostile_names_are_escaped_in_all_that_infer_prints_and_writes(
    arguments: tuple[object, ...], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_answer_is_harmless(
        call(infer, *at(Path("data"), Path("model"), Path("cache")), *arguments)
    )
    pictures = list((tmp_path / "responses" / "results").iterdir())
    assert len(pictures) == (3 if "--num-images" in arguments else 10)
    assert all(is_safe(picture.name) and KEPT in picture.name for picture in pictures)
    for picture in (*pictures, tmp_path / "responses" / "contact_sheet.png"):
        assert text_in(picture) == {}
    rows = json.loads((tmp_path / "responses" / "predictions.json").read_bytes().decode("ascii"))
    table = (tmp_path / "responses" / "predictions.csv").read_bytes().decode()
    assert_harmless(table.replace("\r\n", "\n"))
    cells = list(csv.reader(io.StringIO(table, newline="")))
    assert (
        len(cells) == len(rows) + 1 and any(ATTACK in row["file"] for row in rows) and KEPT in table
    )


def text_in(picture: Path) -> dict[Any, Any]:
    with Image.open(picture) as opened:
        opened.load()
        return {name: value for name, value in opened.info.items() if isinstance(value, str)}


def test_hostile_names_are_escaped_in_all_that_train_and_doctor_print_and_write(
    attack: tuple[str, ...],
    call: Call,
    start: Start,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folders = at(tmp_path / "data", tmp_path / "model", tmp_path / "cache")
    assert_answer_is_harmless(call(doctor, *folders))
    assert json.loads((tmp_path / "model" / "doctor.json").read_bytes().decode("ascii"))["folder"]
    script = start(
        "train.py",
        *at(tmp_path / "data", tmp_path / "new", tmp_path / "cache"),
        "--workers",
        1,
        "--image-size",
        SIZE,
        "--epochs",
        1,
    ).ok()
    assert_harmless(script.stdout + script.stderr)
    assert r"Warning: skipped '" in script.stderr and r"broken\x1b[2J\x1b]0;title" in script.stderr
    settings = SharedSettings(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache")
    photos = settings.photos(Splitter())
    preparation.print_photos(replace(photos, notes=(ATTACK,), folder=Path(ATTACK)))
    assert_harmless(printed := capfd.readouterr().out)
    assert printed.count(r"\x1b[2J") == 2 + len(attack) and KEPT in printed


def test_a_refusal_escapes_the_classes_of_a_checkpoint(
    attack: tuple[str, ...], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = SharedSettings.photos
    monkeypatch.setattr(
        SharedSettings,
        "photos",
        lambda self, *divide: replace(read(self, *divide), class_names=CLASSES),
    )
    answer = call(eval, *at(tmp_path / "data", tmp_path / "model", tmp_path / "cache"))
    assert answer.code == 2 and KEPT in answer.stderr
    assert_harmless(answer.stderr)
