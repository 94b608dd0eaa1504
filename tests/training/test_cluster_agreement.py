"""Machines of a cluster agree on photos, flags and a checkpoint, or say on what they do not."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import CLASSES, hogwild_row, validated_state
from machines import run_machines

from hogwear.cluster.peers import Peers
from hogwear.data import dataset
from hogwear.data.photos import Photos
from hogwear.system.errors import BadInput
from hogwear.training import checkpoint
from hogwear.training.checkpoint import Checkpoint
from hogwear.training.cluster_agreement import agree, progress_of

FLAGS: dict[str, Any] = {"lr": 0.01, "epochs": None}


@pytest.fixture(scope="module")
def photos(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Photos:
    return dataset.find_photos(data, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Checkpoint]:
    """save("model", epochs=1): a checkpoint in a folder of that name."""

    def save(name: str, epochs: int = 0, images: int = 0, finished: bool = False) -> Checkpoint:
        rows = (hogwild_row(epoch) for epoch in range(epochs + 1))
        state = validated_state(*rows, images_seen=images)
        state.finished = finished
        (tmp_path / name).mkdir()
        checkpoint.save(tmp_path / name, state.state_dict())
        return checkpoint.load(tmp_path / name)

    return save


def agreed(
    photos: list[Photos], flags: list[dict[str, Any]], saved: list[Checkpoint | None]
) -> list[Any]:
    """On each machine: the hash of the checkpoint agreed on, or the text of a refusal."""

    def machine(peers: Peers) -> str | None:
        try:
            rank = peers.rank
            found = agree(peers, photos[rank], flags[rank], saved[rank])
        except BadInput as error:
            return str(error)
        return found.sha256 if found else None

    return run_machines(*[machine] * len(photos))


def test_without_a_checkpoint_all_start_a_new_run(photos: Photos) -> None:
    assert agreed([photos] * 2, [FLAGS] * 2, [None] * 2) == [None, None]


def test_all_resume_from_the_newest_checkpoint(
    photos: Photos, save: Callable[..., Checkpoint]
) -> None:
    older, newest = save("older", epochs=1), save("newest", epochs=2)
    found = agreed([photos] * 3, [FLAGS] * 3, [older, newest, None])
    assert found == [newest.sha256] * 3


def test_a_later_epoch_a_finished_run_and_more_images_are_newer(
    save: Callable[..., Checkpoint],
) -> None:
    states = [
        None,
        save("a", images=0),
        save("b", images=64),
        save("c", epochs=1, images=0, finished=True),
        save("d", epochs=1, images=120),
        save("e", epochs=2, images=8),
    ]
    ages = [progress_of(state) for state in states]
    assert ages == sorted(ages) and len(set(map(tuple, ages))) == len(ages)


def test_a_flag_that_differs_is_named_with_both_values(photos: Photos) -> None:
    for line in agreed([photos] * 2, [FLAGS, FLAGS | {"lr": None}], [None] * 2):
        assert line.startswith("--lr: not set on rank 1, 0.01 on rank 0; start all machines with")
    for line in agreed([photos] * 2, [FLAGS, FLAGS | {"epochs": 3}], [None] * 2):
        assert line.startswith("--epochs: 3 on rank 1, not set on rank 0;")


def test_other_photos_are_refused_and_another_folder_of_the_same_is_not(
    photos: Photos, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "copy")
    same = dataset.find_photos(tmp_path / "copy", tmp_path / "cache")
    assert agreed([photos, same], [FLAGS] * 2, [None] * 2) == [None, None]
    relabelled = replace(same, class_names=(*CLASSES[:4], "socks"))
    for other in relabelled, replace(same, train=same.val):
        for line in agreed([photos, other], [FLAGS] * 2, [None] * 2):
            assert ": rank 1 has other photos than rank 0" in line
