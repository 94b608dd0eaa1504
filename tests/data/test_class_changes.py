"""Classes that were added, removed or renamed, and renamings that fit neither side."""

from pathlib import Path

import pytest

from hogwear.data.class_changes import (
    ClassChange,
    find_change,
    parse_renames,
    require_same_classes,
)
from hogwear.system.errors import BadInput

FOLDER = Path("data")
BEFORE = ("boots", "hats", "shoes")


def change(after: str, **renamed: str) -> ClassChange:
    found = find_change(BEFORE, tuple(after.split()), renamed, FOLDER)
    assert found
    return found


def test_the_same_classes_have_not_changed() -> None:
    assert find_change(BEFORE, BEFORE, {}, FOLDER) is None
    require_same_classes(BEFORE, BEFORE, FOLDER)


def test_a_class_keeps_its_row_wherever_its_name_is_sorted() -> None:
    added = change("bags boots hats shoes")
    assert added.rows.tolist() == [-1, 0, 1, 2] and added.describe() == "added bags"
    removed = change("boots shoes")
    assert removed.rows.tolist() == [0, 2] and removed.describe() == "removed hats"
    renamed = change("boots caps shoes", hats="caps")
    assert renamed.rows.tolist() == [0, 1, 2] and renamed.describe() == "renamed hats to caps"
    assert change("boots sneakers umbrellas", shoes="sneakers", hats="umbrellas").rows.tolist() == [
        0, 2, 1,
    ]  # fmt: skip


def test_only_a_renaming_leaves_the_network_as_it_is() -> None:
    assert change("aprons boots shoes", hats="aprons").is_renaming
    both = change("aprons bags boots shoes", hats="aprons")
    assert not both.is_renaming and both.rows.tolist() == [1, -1, 0, 2]
    assert both.names_before == ("hats", "bags", "boots", "shoes")
    assert both.describe() == "added bags; renamed hats to aprons"
    assert not change("boots caps shoes").is_renaming, "only the user knows that it is one"
    assert change("boots caps shoes").describe() == "added caps; removed hats"


def test_many_classes_are_counted() -> None:
    many = tuple(f"b{i}" for i in range(30))
    found = find_change(BEFORE, tuple(sorted((*BEFORE, *many))), {}, FOLDER)
    assert found and found.describe().endswith("b17 and 20 more")


@pytest.mark.parametrize(
    ("before", "after", "keeps"),
    [
        ("a b", "a c", True),
        ("a b c", "a d", False),
        ("a b c d", "a b", True),
        ("a b c d e", "a b x y z", False),
        ("a b", "a b c d e f g", True),
    ],
)
def test_at_least_half_of_the_classes_must_remain(before: str, after: str, keeps: bool) -> None:
    names = tuple(before.split()), tuple(after.split())
    expected = f"data: classes {', '.join(names[1])}, but the checkpoint was trained on "
    if keeps:
        assert find_change(*names, {}, FOLDER)
        with pytest.raises(BadInput, match=f"{expected}.*or run train, which adapts the network"):
            require_same_classes(*names, FOLDER)
    else:
        for check in find_change, lambda a, b, _, folder: require_same_classes(a, b, folder):
            with pytest.raises(BadInput, match=f"{expected}.*or start over with train --fresh"):
                check(*names, {}, FOLDER)


def test_a_renamed_class_remains() -> None:
    assert find_change(("a", "b", "c"), ("a", "x", "y"), {"b": "x"}, FOLDER)
    with pytest.raises(BadInput, match="--fresh"):
        find_change(("a", "b", "c"), ("a", "x", "y"), {}, FOLDER)


@pytest.mark.parametrize(
    ("renamed", "after", "message"),
    [
        ("hat=caps", "boots caps shoes", "no class hat; its classes are boots, hats, shoes"),
        ("hats=shoes", "boots shoes", "has a class shoes already; to merge both, move"),
        ("hats=caps", "boots shoes", "there is no class caps in data; rename hats there first"),
        ("hats=caps", "boots caps hats shoes", "there is a class hats in data, too; move its"),
        ("hat=shoes", "boots hat hats shoes", "no class hat;"),
    ],
)
def test_a_renaming_that_fits_neither_side_is_refused(
    renamed: str, after: str, message: str
) -> None:
    with pytest.raises(BadInput, match=f"^--rename {renamed}: .*{message}"):
        find_change(BEFORE, tuple(after.split()), parse_renames([renamed]), FOLDER)


def test_a_renaming_that_was_saved_already_is_done() -> None:
    assert find_change(BEFORE, BEFORE, {"caps": "hats"}, FOLDER) is None
    found = find_change(BEFORE, (*BEFORE, "socks"), {"caps": "hats"}, FOLDER)
    assert found and found.describe() == "added socks"


def test_renamings_are_parsed_and_compared_in_one_unicode_form() -> None:
    assert parse_renames([]) == {}
    assert parse_renames(["hats=caps", "a=b=c"]) == {"hats": "caps", "a": "b=c"}
    assert parse_renames(["cafe\u0301=hats"]) == {"caf\u00e9": "hats"}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["hats"], "'hats' is not OLD=NEW"),
        (["=caps"], "'=caps' is not OLD=NEW"),
        (["hats="], "'hats=' is not OLD=NEW"),
        (["hats=hats"], "'hats=hats' is not OLD=NEW, two different names"),
        (["hats=caps", "hats=lids"], "hats=lids: hats occurs twice"),
        (["hats=caps", "lids=caps"], "lids=caps: caps occurs twice"),
    ],
)
def test_what_is_no_renaming_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_renames(texts)
