"""Which photos the doctor's page shows: by kind of problem, with a fair share for each kind."""

from itertools import chain
from typing import Any, NamedTuple

from hogwear.data.checks import Entry

MAX_PHOTOS = 300  # on the page; the kinds of problems share them
PER_GROUP = 6  # photos shown of a group


class Kind(NamedTuple):
    """A kind of problem: its key in doctor.json, and what the page says about it."""

    key: str
    title: str
    meaning: str


KINDS = (
    Kind(
        "leaked",
        "Held-out photos that are also in train",
        "Photos of val or test, each with its twin in train. Figures measured on them are too "
        "good: leave out one of the two.",
    ),
    Kind(
        "conflicting",
        "One photo, two classes",
        "Identical or nearly identical photos in more than one class. One of the labels is wrong.",
    ),
    Kind(
        "contradicted",
        "Labels that are probably wrong",
        "These photos look like another class. The most certain ones come first; some of them are "
        "unusual photos with correct labels.",
    ),
    Kind(
        "duplicates",
        "Duplicates",
        "Byte-identical files. They count several times, and add nothing.",
    ),
    Kind(
        "near_duplicates",
        "Near duplicates",
        "Nearly identical photos: resized, recompressed, a little brighter. There may be similar "
        "products among them.",
    ),
    Kind(
        "divided_products",
        "Products in several splits",
        "One photo in each of the splits that a product is in. Figures may be too good.",
    ),
    Kind(
        "blurred",
        "Blurred",
        "No edge is sharp, even at the size that networks see. Photos with motion blur in one "
        "direction are often not found.",
    ),
    Kind("dark", "Dark", "Hardly anything in these photos is brighter than a dark grey."),
    Kind(
        "odd_shape",
        "Odd shapes",
        "Strips: one side is more than three times as long as the other, so the network sees "
        "little of the photo.",
    ),
    Kind("near_empty", "Nearly empty", "Almost only one colour."),
    Kind("tiny", "Tiny", "One side has very few pixels."),
    Kind(
        "rotated",
        "Rotated by EXIF",
        "They are used upright, as shown here, so this is no problem as long as they are upright.",
    ),
    Kind(
        "misnamed",
        "Wrong extensions",
        "The extension names another format than the content. The photos are read anyway.",
    ),
)


class Section(NamedTuple):
    """The photos with one kind of problem: groups, of one photo where it is alone."""

    kind: Kind
    found: int  # of groups in doctor.json
    repeated: int  # of these, groups whose photos are all in sections before this one
    groups: list[list[Entry]]  # that are shown
    hidden: list[int]  # for each of them, how many of its photos are not shown

    @property
    def left_out(self) -> int:
        """The number of groups for which there is no room."""
        return self.found - self.repeated - len(self.groups)


def choose_sections(report: dict[str, Any]) -> list[Section]:
    """The kinds of problems in the content of doctor.json that there are, in the order of KINDS."""
    found: list[tuple[Kind, int, list[list[Entry]]]] = []
    listed: set[str] = set()
    for kind in KINDS:
        groups = [list_photos(entry) for entry in report[kind.key] or ()]
        new = [g for g in groups if len(g) == 1 or not {e["file"] for e in g} <= listed]
        listed.update(entry["file"] for entry in chain(*groups))
        if groups:
            found.append((kind, len(groups), new))
    shares = share_fairly(
        [sum(min(len(group), PER_GROUP) for group in new) for _, _, new in found], MAX_PHOTOS
    )
    sections = []
    for (kind, count, new), share in zip(found, shares, strict=True):
        shown: list[list[Entry]] = []
        for group in new:
            share -= len(group[:PER_GROUP])
            if share < 0:
                break
            shown.append(group[:PER_GROUP])
        hidden = [len(group) - len(part) for group, part in zip(new, shown, strict=False)]
        sections.append(Section(kind, count, count - len(new), shown, hidden))
    return sections


def list_photos(entry: Entry | list[Entry]) -> list[Entry]:
    """The photos of an entry of doctor.json; the first says what is wrong."""
    if isinstance(entry, list):
        return entry
    return [entry, entry["in_train"]] if "in_train" in entry else [entry]


def share_fairly(wanted: list[int], total: int) -> list[int]:
    """How many of `total` each gets: the same, except where less is wanted."""
    shares = [0] * len(wanted)
    for position, i in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        shares[i] = min(wanted[i], total // (len(wanted) - position))
        total -= shares[i]
    return shares
