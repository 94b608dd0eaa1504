"""Text from strangers: shown in full, and without power over what shows it."""

import sys
import unicodedata

import pytest

from hogwear.text import escaped, is_safe, shortened

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
def test_what_has_no_power_stays_as_it_is(text: str) -> None:
    assert escaped(text) == text and is_safe(text)


@pytest.mark.parametrize(("text", "shown"), POWERFUL.values(), ids=list(POWERFUL))
def test_what_has_power_over_a_terminal_or_the_order_of_letters_is_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown and not is_safe(text)


def test_letters_marks_numbers_punctuation_symbols_and_spaces_stay_and_all_else_is_escaped() -> None:
    everything = [chr(number) for number in range(sys.maxunicode + 1)]
    shown = escaped("".join(everything))
    stay = {c for c in everything if unicodedata.category(c)[0] in "LMNPS" or unicodedata.category(c) == "Zs"}
    assert set(shown) == stay | {"\u200c", "\u200d"}
    assert shown.splitlines() == [shown] and shown.encode() and escaped(shown) == shown


def test_what_is_too_long_is_cut_and_says_so() -> None:
    assert shortened("abc", 3) == "abc" and shortened("abcd", 3) == "ab…" and shortened("\x1b" * 9, 8) == r"\x1b\x1…"
