"""model/split.json: written and read back, grown, changed and damaged."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from split_folders import copy, find

from hogwear.data.split_assignments import SplitAssignments
from hogwear.system.artifacts import SPLIT
from hogwear.system.errors import BadInput


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tmp_path / "model"


def test_written_assignments_are_read_back(tens: Path, model: Path) -> None:
    copy(tens / "handbag" / "0.jpg", tens / "handbag" / "0-worse.jpg", 50)
    find(tens, model)
    known = SplitAssignments.read(model)
    assert known.to_json() == (model / SPLIT).read_bytes() and len(known) == 21
    assert (
        known.version()
        == SplitAssignments.parse(known.to_json(), Path("there")).version()
        == SplitAssignments.read(model).version()
    )


def test_a_grown_split_is_accepted_and_a_changed_one_is_refused(
    tens: Path, model: Path, photo_files: list[Path]
) -> None:
    find(tens, model)
    small = SplitAssignments.read(model)
    shutil.copy(photo_files[0], tens / "footwear" / "more.jpg")
    find(tens, model)
    grown = SplitAssignments.read(model)
    assert (
        len(grown) == 21
        and grown.require(small.version()) is grown
        and grown.require(grown.version())
    )
    told = json.loads(grown.to_json())
    first = next(iter(told["split"]))
    changed = {
        "changed": told
        | {"split": told["split"] | {first: "val" if told["split"][first] != "val" else "test"}},
        "another order": told | {"split": dict(reversed(told["split"].items()))},
        "another group": told | {"group": {first: first}},
        "shorter": told | {"split": dict(list(told["split"].items())[1:])},
    }
    for what, content in changed.items():
        with pytest.raises(
            BadInput, match=r"split\.json: changed since the checkpoint was trained"
        ):
            SplitAssignments.parse(json.dumps(content).encode(), model / SPLIT).require(
                small.version()
            )
            pytest.fail(what)
    with pytest.raises(BadInput, match=r"split\.json: missing since the checkpoint was trained"):
        SplitAssignments.read(model / "elsewhere").require(small.version())


def test_a_file_without_products_is_read_and_is_the_same_version(tens: Path, model: Path) -> None:
    find(tens, model)
    new = json.loads((model / SPLIT).read_text())
    assert (new["format"], new.pop("product")) == (2, {})
    old = SplitAssignments.parse(json.dumps(new | {"format": 1}).encode(), model / SPLIT)
    assert old.file == model / SPLIT and old.to_json() == (model / SPLIT).read_bytes()
    digest = hashlib.sha256(
        b"".join(entries.tobytes() for entries in (old.hashes, old.splits, old.groups))
    )
    assert old.version() == {"count": 20, "sha256": digest.hexdigest()}, "as before products"


def test_products_are_written_and_are_part_of_the_version(tens: Path, model: Path) -> None:
    for i, photo in enumerate(sorted(tens.glob("*/*.jpg"))):
        (photo.parent / f"p{i}").mkdir()
        photo.rename(photo.parent / f"p{i}" / photo.name)
    find(tens, model)
    known = SplitAssignments.read(model)
    told = json.loads((model / SPLIT).read_text())
    names = {f"{name}/p{i}" for i, name in enumerate(["footwear"] * 10 + ["handbag"] * 10)}
    assert set(told["product"].values()) == {
        hashlib.blake2b(name.encode(), digest_size=16).hexdigest() for name in names
    }
    assert told["product"].keys() == told["split"].keys() and told["group"] == {}
    assert known.to_json() == (model / SPLIT).read_bytes()
    first, second = list(told["product"])[:2]
    changed = told | {"product": told["product"] | {first: told["product"][second]}}
    with pytest.raises(BadInput, match="changed since the checkpoint was trained"):
        SplitAssignments.parse(json.dumps(changed).encode(), model).require(known.version())


@pytest.mark.parametrize("content", [
    b" ", b"{", b"[]", b'"text"', b'{"format": 2, "split": {}, "group": {}}', b'{"format": 3, "split": {}, "group": {}, "product": {}}',
    b'{"format": 1, "split": {"00": "test"}, "group": {}}', b"\xff",
    b'{"format": 1, "split": {"%b": "train"}, "group": {}}' % (b"x" * 32), b'{"format": 1, "split": {"%b": 7}, "group": {}}' % (b"0" * 32),
    b'{"format": 2, "split": {"%b": "train"}, "group": {}, "product": {"%b": "p1"}}' % (b"0" * 32, b"0" * 32),
    b'{"format": 1, "split": {"%b": "train"}, "group": {"%b": 7}}' % (b"0" * 32, b"0" * 32), b'{"format": 1, "split": [], "group": {}}',
])  # fmt: skip
def test_a_damaged_file_is_named_with_the_fix(content: bytes, tmp_path: Path) -> None:
    (tmp_path / SPLIT).write_bytes(content)
    with pytest.raises(
        BadInput,
        match=r"split\.json: damaged \(.*\); restore it, or move it away and train with --fresh",
    ) as error:
        SplitAssignments.read(tmp_path)
    assert "\n" not in str(error.value)
