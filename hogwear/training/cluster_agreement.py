"""What the machines of a cluster agree on before they train: photos, flags, and the checkpoint."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from hogwear.cluster.peers import SingleMachine
from hogwear.data.photos import Photos
from hogwear.system.errors import BadInput
from hogwear.training import checkpoint
from hogwear.training.checkpoint import Checkpoint
from hogwear.training.run_state import RunState


def agree(
    cluster: SingleMachine, photos: Photos, flags: dict[str, Any], saved: Checkpoint | None
) -> Checkpoint | None:
    """The newest checkpoint of all machines, to resume from on each of them.

    BadInput where machines have different photos or were started with different `flags`.
    """
    mine = {
        "photos": hash_photos(photos),
        "flags": flags,
        "progress": progress_of(saved),
        "checkpoint": saved.sha256 if saved else None,
    }
    everyone = [json.loads(text) for text in cluster.all_gather_bytes(json.dumps(mine).encode())]
    for rank, theirs in enumerate(everyone):
        for name, value in theirs["flags"].items():
            if value != (expected := everyone[0]["flags"][name]):
                here, there = ("not set" if x is None else x for x in (value, expected))
                raise BadInput(
                    f"--{name.replace('_', '-')}: {here} on rank {rank}, {there} on rank 0; "
                    "start all machines with the same flags"
                )
        if theirs["photos"] != everyone[0]["photos"]:
            raise BadInput(
                f"{photos.folder}: rank {rank} has other photos than rank 0, or another split of "
                "them; give all machines the same photos"
            )
    if all(theirs["checkpoint"] == mine["checkpoint"] for theirs in everyone):
        return saved
    newest = max(range(cluster.machines), key=lambda rank: everyone[rank]["progress"])
    is_mine = newest == cluster.rank
    content = cluster.broadcast_bytes(newest, saved.file.read_bytes() if saved and is_mine else b"")
    return saved if is_mine else checkpoint.parse(Path(f"the checkpoint of rank {newest}"), content)


def hash_photos(photos: Photos) -> str:
    """A hash of names, classes and splits. File times and the data folder itself may differ."""
    digest = hashlib.sha256(json.dumps(photos.class_names).encode())
    for split in (photos.train, photos.val):
        for path in split.paths.strings():
            digest.update(os.fsencode(os.path.relpath(path, photos.folder)) + b"\0")
        digest.update(split.labels.tobytes())
    return digest.hexdigest()


def progress_of(saved: Checkpoint | None) -> list[int]:
    """Sorts checkpoints of one run, and of runs that continued it, by age."""
    if saved is None:
        return [-1, 0, 0]
    state = RunState.load_state_dict(saved.state)
    return [len(state.history.rows), not state.finished, state.images_seen]
