"""The model folder is claimed by one train, and no checkpoint in it is lost."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from helpers import ForkedCall, hogwild_row, validated_state

from hogwear.system.errors import BadInput
from hogwear.training import checkpoint
from hogwear.training.model_folder import ModelFolder, keep_beside
from hogwear.training.run_state import RunState


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(tmp_path / "model")


@pytest.fixture
def state() -> RunState:
    return validated_state(hogwild_row(1), images_seen=8)


def claim_elsewhere(folder: ModelFolder) -> str:
    """In another process; the message of a refusal."""

    def claim() -> str:
        try:
            ModelFolder(folder.path).claim()
        except BadInput as error:
            return str(error)
        return ""

    message: str = ForkedCall(claim).result()
    return message


def test_a_claimed_folder_is_refused_to_another_process_until_it_is_released(
    folder: ModelFolder,
) -> None:
    folder.claim()
    folder.claim()  # once more does no harm
    assert f"{folder.path}: in use by another train" in claim_elsewhere(folder)
    folder.release()
    assert claim_elsewhere(folder) == ""


def test_the_lock_leaves_a_file_of_the_user_alone(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("mine")
    folder = ModelFolder(tmp_path)
    folder.claim()
    folder.release()
    assert (tmp_path / ".lock").read_text() == "mine"


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").touch()
    with pytest.raises(BadInput, match=rf"model: not writable by uid {os.getuid()} \(File exists"):
        ModelFolder(tmp_path / "model").claim()


def test_a_save_writes_checkpoint_and_metrics(folder: ModelFolder, state: RunState) -> None:
    folder.path.mkdir()
    folder.save(state)
    assert {file.name for file in folder.path.iterdir()} == {"checkpoint.pt", "metrics.csv"}


def test_the_first_save_sets_aside_checkpoints_newer_than_the_one_resumed_from(
    folder: ModelFolder, state: RunState, tmp_path: Path
) -> None:
    folder.path.mkdir()
    for _ in range(2):
        folder.save(state)
    for resumed, aside in (("checkpoint.pt", 0), ("checkpoint.previous.pt", 1), (None, 2)):
        copy = ModelFolder(Path(shutil.copytree(folder.path, tmp_path / str(aside))))
        copy.set_aside(checkpoint.read(copy.path / resumed) if resumed else None)
        assert all(file.exists() for file in copy.checkpoints), "until something replaces them"
        for _ in range(2):
            copy.save(state)
            assert len(list(copy.path.glob("checkpoint*-*.pt"))) == aside
        assert all(file.exists() for file in copy.checkpoints)


@pytest.mark.parametrize("has_hard_links", [True, False])
def test_a_checkpoint_of_other_classes_is_kept_and_in_place_until_it_is_replaced(
    has_hard_links: bool, folder: ModelFolder, state: RunState, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.path.mkdir()
    folder.save(state)
    current = folder.path / "checkpoint.pt"
    before = current.read_bytes()
    if not has_hard_links:
        refuse = Mock(side_effect=OSError("Operation not permitted"))
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    folder.set_aside(checkpoint.read(current), is_replaced=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save", Mock(side_effect=KeyboardInterrupt))
        folder.save(state)
    assert current.read_bytes() == before, "whatever happens before the new one is there"
    for _ in range(3):
        folder.save(replace(state, images_seen=9))
    assert current.read_bytes() != before
    kept = list(folder.path.glob("checkpoint-*.pt"))
    assert {file.read_bytes() for file in kept} == {before}


def test_two_new_runs_in_the_same_second_keep_both_old_checkpoints(tmp_path: Path) -> None:
    for content in (b"one", b"two", b"three"):
        (tmp_path / "checkpoint.pt").write_bytes(content)
        keep_beside(tmp_path / "checkpoint.pt")
    assert {file.read_bytes() for file in tmp_path.iterdir()} == {b"one", b"two", b"three"}
