"""Text from strangers: names of classes and files, metadata of photos, what is read out of a checkpoint.

None of it reaches a terminal, a page, a picture or a log unless it went through `escaped`.
"""

import csv
import io
import unicodedata
from collections.abc import Iterable, Sequence

JOINERS = "\u200c\u200d"  # invisible, yet a part of how words are spelt in Persian and Hindi, and of emoji
FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "＝",
    "＋",
    "－",
    "＠",
)  # what spreadsheets take a cell for that begins so


def escape(text: str) -> str:
    r"""The same on one line that shows all of it in its order: `\x1b`, `\u202e`, `\udcff` in place of what would not.

    That is whatever Unicode counts as Other (control and format characters such as bidirectional controls, surrogates,
    private use, not assigned) or as a separator of lines or paragraphs. Letters, marks, spaces of any width and the
    zero-width joiner and non-joiner stay. A text of our own making may contain escaped text and be escaped again.
    """
    if text.isprintable():
        return text
    return "".join(c if is_shown(c) else ascii(c)[1:-1] for c in text)


def is_safe(text: str) -> bool:
    """Whether it can be shown as it is."""
    return escape(text) == text


def normalize(text: str) -> str:
    """The form that names are compared in: é may be one character or two (macOS writes two), and looks the same (Unicode's NFC)."""
    return unicodedata.normalize("NFC", text)


def is_shown(character: str) -> bool:
    return (
        character.isprintable() or character in JOINERS or unicodedata.category(character) == "Zs"
    )


def shorten(text: str, length: int) -> str:
    """The same in at most so many characters, for where there is no room for more."""
    shown = escape(text)
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """ "1 photo", "2 photos"; `nouns` is the plural where it is not the noun with an s."""
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"


def join_some(names: Sequence[str], most: int) -> str:
    """ "a, b and 3 more": the first names, at most so many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def to_csv(rows: Iterable[Sequence[object]]) -> str:
    """A table for spreadsheets, in which no text is a formula: OWASP, "CSV Injection".

    Texts are escaped, which deals with tab, carriage return and the like; one that a spreadsheet would calculate has a ' before it.
    Texts are in quotes, so that none ends early for a program that takes other separators than ours. Numbers stay as they are.
    """
    table = io.StringIO()
    csv.writer(table, quoting=csv.QUOTE_NONNUMERIC).writerows(
        [as_cell(value) for value in row] for row in rows
    )
    return table.getvalue()


def as_cell(value: object) -> object:
    if value is None or isinstance(value, int | float):
        return value
    text = escape(str(value))
    return f"'{text}" if text.startswith(FORMULA) else text
