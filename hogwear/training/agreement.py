"""What the machines of a cluster agree on before they train: photos, flags, and the checkpoint to go on from."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from hogwear.cluster.peers import Peers
from hogwear.data.photos import Photos
from hogwear.system.errors import BadInput
from hogwear.training import checkpoint
from hogwear.training.checkpoint import Checkpoint


def agree(
    others: Peers, photos: Photos, flags: dict[str, Any], saved: Checkpoint | None
) -> Checkpoint | None:
    """The newest checkpoint that any of the machines has. BadInput where they see different photos, or were started with different `flags`."""
    hello = {
        "photos": fingerprint(photos),
        "flags": flags,
        "age": age(saved),
        "checkpoint": saved.sha256 if saved else None,
    }
    hellos = [json.loads(text) for text in others.all_gather_bytes(json.dumps(hello).encode())]
    for rank, theirs in enumerate(hellos):
        for name, value in theirs["flags"].items():
            if value != (first := hellos[0]["flags"][name]):
                raise BadInput(
                    f"--{name.replace('_', '-')}: {value} on rank {rank}, {first} on rank 0; start all machines with the same flags"
                )
        if theirs["photos"] != hellos[0]["photos"]:
            raise BadInput(
                f"{photos.folder}: rank {rank} has other photos, or others in train and val, than rank 0; give all machines the same"
            )
    newest = max(range(others.machines), key=lambda rank: (hellos[rank]["age"], -rank))
    if len({hello["checkpoint"] for hello in hellos}) == 1:
        return saved
    content = others.broadcast_bytes(
        newest, saved.file.read_bytes() if saved and newest == others.rank else b""
    )
    return (
        saved
        if newest == others.rank
        else checkpoint.parsed(Path(f"the checkpoint of rank {newest}"), content)
    )


def fingerprint(photos: Photos) -> str:
    """Of the photos' names and classes; their times may differ between machines, and the folder they are in."""
    digest = hashlib.sha256(json.dumps(photos.class_names).encode())
    for split in (photos.train, photos.val):
        for path in split.paths.strings():
            digest.update(os.fsencode(os.path.relpath(path, photos.folder)) + b"\0")
        digest.update(split.labels.tobytes())
    return digest.hexdigest()


def age(saved: Checkpoint | None) -> list[float]:
    """Orders checkpoints: of one run, and of runs that went on from it."""
    if saved is None:
        return [-1, 0, 0]
    state = saved.state
    return [len(state["history"]), not state["finished"], state["images_seen"]]
