"""Untrusted text: names of classes and files, metadata of photos, the content of a checkpoint.

None of it reaches a terminal, page, picture or log without `escape`.
"""

import csv
import io
import sys
import unicodedata
from collections.abc import Iterable, Sequence

# Invisible, but needed to spell words in Persian and Hindi, and in emoji
JOINERS = "\u200c\u200d"
# A cell that starts like this is a formula for a spreadsheet
FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def escape(text: str) -> str:
    r"""The text on one line, with everything visible: `\x1b`, `\u202e` or `\udcff` for the rest.

    The rest is what Unicode calls Other (control and format characters such as bidirectional
    controls, surrogates, private use, unassigned) and separators of lines and paragraphs. Letters,
    marks, spaces of any width and the zero-width joiner and non-joiner stay. Escaping a text
    twice changes nothing more.
    """
    if text.isprintable():
        return text
    return "".join(c if is_visible(c) else ascii(c)[1:-1] for c in text)


def is_safe(text: str) -> bool:
    """Whether the text can be shown as it is."""
    return escape(text) == text


def is_visible(character: str) -> bool:
    return (
        character.isprintable() or character in JOINERS or unicodedata.category(character) == "Zs"
    )


def warn(message: str) -> None:
    """Print a warning on stderr, escaped."""
    print(escape(f"Warning: {message}"), file=sys.stderr)


def normalize(text: str) -> str:
    """Unicode's NFC, in which names are compared: é may be one character or, on macOS, two."""
    return unicodedata.normalize("NFC", text)


def shorten(text: str, length: int) -> str:
    """The escaped text in at most `length` characters."""
    escaped = escape(text)
    return escaped if len(escaped) <= length else f"{escaped[: length - 1]}…"


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """ "1 photo", "2 photos"; `nouns` is the plural if it is not the noun with an s."""
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"


def join_some(names: Sequence[str], most: int) -> str:
    """ "a, b and 3 more": at most `most` names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def to_csv(rows: Iterable[Sequence[object]]) -> str:
    """A table for spreadsheets in which no text is a formula (OWASP, "CSV Injection").

    Texts are escaped, which covers tabs and carriage returns, and one that a spreadsheet would
    calculate gets a ' in front. They are quoted, so that none ends early for a program that expects
    another separator. Numbers stay as they are.
    """
    table = io.StringIO()
    csv.writer(table, quoting=csv.QUOTE_NONNUMERIC).writerows(map(to_cell, row) for row in rows)
    return table.getvalue()


def to_cell(value: object) -> object:
    if value is None or isinstance(value, int | float):
        return value
    text = escape(str(value))
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text
