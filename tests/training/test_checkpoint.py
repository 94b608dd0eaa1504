"""The checkpoint file: complete or absent, verified to the last byte, and never executed."""

import hashlib
import io
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import damage_file

from hogwear.system.errors import BadInput, NoCheckpoint
from hogwear.training import checkpoint

Damage = Callable[[bytes], bytes]


def state(number: int = 0, size: int = 1000) -> dict[str, Any]:
    full = torch.from_numpy(
        np.full(size, number, np.float32)
    )  # NumPy has no threads, which a forked process would lack
    weights = {"w": full, "b": torch.arange(3, dtype=torch.float64)}
    return {
        "number": number,
        "weights": weights,
        "class_names": ["a", "b"],
        "best": None,
        "history": [{"epoch": 1}],
    }


def write_with_checksum(folder: Path, body: bytes) -> None:
    (folder / "checkpoint.pt").write_bytes(body + hashlib.sha256(body).digest())


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(7))
    loaded = checkpoint.load(tmp_path).state
    assert {name: loaded[name] for name in ("number", "class_names", "best", "history")} == {
        "number": 7, "class_names": ["a", "b"], "best": None, "history": [{"epoch": 1}],
    }  # fmt: skip
    assert torch.equal(loaded["weights"]["w"], torch.full((1000,), 7.0))
    assert loaded["weights"]["b"].dtype == torch.float64
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_files_of_a_killed_save_are_deleted_and_a_users_file_with_a_similar_name_is_not(
    tmp_path: Path,
) -> None:
    for name in ("backup", "unfinished-x1_abcde", "unfinished-previous"):
        (tmp_path / f".checkpoint.pt.{name}").write_bytes(b"old")
    checkpoint.save(tmp_path, state(1))
    checkpoint.save(tmp_path, state(2))
    assert {file.name for file in tmp_path.iterdir()} == {
        "checkpoint.pt",
        "checkpoint.previous.pt",
        ".checkpoint.pt.backup",
    }
    assert (tmp_path / ".checkpoint.pt.backup").read_bytes() == b"old"


def test_a_new_checkpoint_replaces_the_old_one_and_its_hash(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(1))
    first = checkpoint.load(tmp_path).sha256
    checkpoint.save(tmp_path, state(2))
    assert checkpoint.load(tmp_path).state["number"] == 2
    assert checkpoint.load(tmp_path).sha256 != first
    assert (
        checkpoint.load(tmp_path).sha256
        == hashlib.sha256((tmp_path / "checkpoint.pt").read_bytes()).hexdigest()
    )


def test_a_reader_of_the_old_checkpoint_can_read_all_of_it(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(1))
    content = (tmp_path / "checkpoint.pt").read_bytes()
    with (tmp_path / "checkpoint.pt").open("rb") as reader:
        checkpoint.save(tmp_path, state(2))
        assert reader.read() == content


def test_other_users_may_read_the_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state())
    assert (tmp_path / "checkpoint.pt").stat().st_mode & 0o777 == 0o644


def test_one_changed_byte_anywhere_is_noticed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state())
    file = tmp_path / "checkpoint.pt"
    content = file.read_bytes()
    places = [
        0,
        1,
        len(content) // 2,
        *range(-34, 0),
        *random.Random(0).sample(range(len(content)), 50),
    ]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << random.Random(place).randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"checkpoint\.pt: damaged .*--fresh"):
            checkpoint.load(tmp_path)


CUTS: list[Damage] = [
    lambda c: b"", lambda c: c[:31], lambda c: c[:32], lambda c: c[: len(c) // 2], lambda c: c[:-1], lambda c: c[1:],
    lambda c: c + b"\0",
]  # fmt: skip


@pytest.mark.parametrize("cut", CUTS)
def test_a_truncated_or_longer_file_is_refused(tmp_path: Path, cut: Damage) -> None:
    checkpoint.save(tmp_path, state())
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(cut(file.read_bytes()))
    with pytest.raises(BadInput, match=r"checkpoint\.pt: damaged"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [{"format": 0}, {"weights": {}}, [1, 2], torch.zeros(3)],
    ids=["old", "foreign", "list", "tensor"],
)
def test_other_content_is_refused_though_its_checksum_is_right(
    tmp_path: Path, content: object
) -> None:
    body = io.BytesIO()
    torch.save(content, body)
    write_with_checksum(tmp_path, body.getvalue())
    with pytest.raises(BadInput, match=r"checkpoint\.pt"):
        checkpoint.load(tmp_path)


def test_a_checkpoint_of_an_older_format_is_refused_in_one_line_and_left_where_it_is(
    tmp_path: Path,
) -> None:
    body = io.BytesIO()
    torch.save({"format": 3, "weights": {}}, body)
    write_with_checksum(tmp_path, body.getvalue())
    with pytest.raises(BadInput) as error:
        checkpoint.load(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/checkpoint.pt: not a checkpoint of format {checkpoint.FORMAT}, which this version "
        "reads (found: 3); move it away, or train with --fresh"
    )
    assert (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize("share", [0.001, 0.5])
def test_saving_takes_a_small_share_of_the_time(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    timer = checkpoint.SaveTimer()
    with timer:
        now[0] += share
    assert not timer.is_due()
    now[0] += 49 * share
    assert not timer.is_due()
    now[0] += 2 * share
    assert timer.is_due(), "after 50 times as long as the save took"


def test_bytes_that_torch_cannot_read_are_refused_though_their_checksum_is_right(
    tmp_path: Path,
) -> None:
    write_with_checksum(tmp_path, b"not a checkpoint")
    with pytest.raises(BadInput, match=r"checkpoint\.pt"):
        checkpoint.load(tmp_path)


class Payload:
    """Creates a file when it is unpickled without care."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_code_in_a_checkpoint_does_not_run_though_its_checksum_is_right(tmp_path: Path) -> None:
    body = io.BytesIO()
    torch.save({"format": checkpoint.FORMAT, "weights": Payload(tmp_path / "ran")}, body)
    write_with_checksum(tmp_path, body.getvalue())
    with pytest.raises(BadInput, match=r"checkpoint\.pt: not a Hogwear checkpoint \(.+\);"):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "ran").exists()
    torch.load(io.BytesIO(body.getvalue()), weights_only=False)
    assert (tmp_path / "ran").exists(), "the payload works"


@pytest.mark.parametrize("content", [{"format": "6"}, {}, [6]], ids=["text", "none", "list"])
def test_content_without_a_format_is_named_as_such(content: object, tmp_path: Path) -> None:
    body = io.BytesIO()
    torch.save(content, body)
    write_with_checksum(tmp_path, body.getvalue())
    with pytest.raises(BadInput, match=r"\(found: none\); move it away, or train with --fresh$"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("error", "reason"), [(EOFError(), "EOFError"), (ValueError("\n one\ntwo"), "one")]
)
def test_an_error_of_torch_is_named_by_its_first_line_or_its_type(
    error: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    write_with_checksum(tmp_path, b"anything")
    with pytest.raises(BadInput) as raised:
        checkpoint.load(tmp_path)
    assert f": not a Hogwear checkpoint ({reason}); move it away" in str(raised.value)


def test_a_damaged_checkpoint_is_replaced_by_the_one_before_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(tmp_path, state(1))
    checkpoint.save(tmp_path, state(2))
    write_with_checksum(tmp_path, b"")
    damage_file(tmp_path / "checkpoint.pt", -1)
    found = checkpoint.load(tmp_path)
    assert found.state["number"] == 1 and found.file == tmp_path / "checkpoint.previous.pt"
    assert capsys.readouterr().err == (
        f"Warning: {tmp_path}/checkpoint.pt: damaged (its checksum does not match); "
        "using the previous checkpoint, checkpoint.previous.pt\n"
    )


def test_a_missing_checkpoint_has_its_own_exit_code(tmp_path: Path) -> None:
    with pytest.raises(
        NoCheckpoint, match=r"checkpoint\.pt: no checkpoint; run train first"
    ) as error:
        checkpoint.load(tmp_path)
    assert error.value.exit_code == 3
