"""Names of classes and of splits, as people write them."""

import re
from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal

from hogwear.system.text import join_some, shorten

# In any case, for folders and in tables
SPELLINGS = {"train": "train training", "val": "val valid validation", "test": "test testing"}
SPLIT_NAMES = {name: split for split, names in SPELLINGS.items() for name in names.split()}
MAX_NAMES, MAX_NAME = 10, 60  # in a message: names, and characters of each
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


def note_similar_names(class_names: Iterable[str]) -> list[str]:
    """A note on classes whose names differ only in case or spaces, or are numbers of equal value.

    Empty if there are none.
    """
    groups: dict[object, list[str]] = defaultdict(list)
    for name in sorted(class_names):
        plain = " ".join(name.casefold().split())
        groups[Decimal(plain) if NUMBER.fullmatch(plain) else plain].append(name)
    similar = [
        " and ".join(f"'{shorten(name, MAX_NAME)}'" for name in group)
        for group in groups.values()
        if len(group) > 1
    ]
    if not similar:
        return []
    return [
        f"Similar class names: {join_some(similar, MAX_NAMES)}. They count as different classes; "
        "if they are the same, give them one name."
    ]
