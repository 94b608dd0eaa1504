"""The doctor's page has room for so many photos, and each kind of problem gets its share."""

from typing import Any

import pytest

from hogwear.evaluation.doctor_sections import (
    KINDS,
    MAX_PHOTOS,
    PER_GROUP,
    choose_sections,
    share_fairly,
)


def photo(name: str, **more: Any) -> dict[str, Any]:
    return {"file": name, "split": "train", "class": "boots", **more}


def report(**found: Any) -> dict[str, Any]:
    return {kind.key: [] for kind in KINDS} | found


@pytest.mark.parametrize(
    ("wanted", "shares"),
    [
        ([], []),
        ([5, 0, 10], [5, 0, 10]),
        ([100, 10, 100], [45, 10, 45]),
        ([101, 102, 103], [33, 33, 34]),
    ],
)
def test_each_gets_the_same_except_where_less_is_wanted(
    wanted: list[int], shares: list[int]
) -> None:
    assert share_fairly(wanted, 100) == shares


def test_a_clean_folder_has_no_sections() -> None:
    assert choose_sections(report()) == []
    assert choose_sections(report(contradicted=None)) == []


def test_photos_without_room_are_counted() -> None:
    many = report(
        blurred=[photo(f"{n}") for n in range(1000)],
        dark=[photo(f"dark {n}") for n in range(20)],
        duplicates=[[photo(f"{n} a"), photo(f"{n} b")] for n in range(1000)],
    )
    sections = {section.kind.key: section for section in choose_sections(many)}
    shown = {key: sum(map(len, section.groups)) for key, section in sections.items()}
    assert shown == {"blurred": 140, "dark": 20, "duplicates": 140} and sum(shown.values()) == 300
    assert sum(shown.values()) <= MAX_PHOTOS
    assert {key: section.left_out for key, section in sections.items()} == {
        "blurred": 860,
        "dark": 0,
        "duplicates": 930,
    }


def test_a_large_group_shows_some_of_its_photos() -> None:
    [section] = choose_sections(report(duplicates=[[photo(str(n)) for n in range(50)]]))
    assert [len(group) for group in section.groups] == [PER_GROUP]
    assert section.hidden == [50 - PER_GROUP] and section.left_out == 0


def test_duplicates_that_are_shown_as_leaked_are_not_shown_again() -> None:
    leaked = photo("test", in_train=photo("train"), exact=True)
    pair, other = [photo("train"), photo("test")], [photo("train"), photo("x")]
    first, second = choose_sections(report(leaked=[leaked], duplicates=[pair, other]))
    assert first.groups == [[leaked, photo("train")]]
    assert second.groups == [other] and second.repeated == 1 and second.left_out == 0
