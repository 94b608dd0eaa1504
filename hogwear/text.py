"""Text from strangers: names of classes and files, metadata of photos, what is read out of a checkpoint.

None of it reaches a terminal, a page, a picture or a log unless it went through `escaped`.
"""

import unicodedata

JOINERS = "\u200c\u200d"  # invisible, yet a part of how words are spelt in Persian and Hindi, and of emoji


def escaped(text: str) -> str:
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
    return escaped(text) == text


def is_shown(character: str) -> bool:
    return character.isprintable() or character in JOINERS or unicodedata.category(character) == "Zs"
