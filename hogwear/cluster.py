"""How the machines of a cluster meet: torchrun says who they are, and they agree on what to go on from.

torchrun starts one train.py a machine and gives it RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. What then goes on between
them: link.py.
"""

import hashlib
import json
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hogwear import machine
from hogwear.dataset import Photos
from hogwear.errors import BadInput
from hogwear.link import Link, Place

if TYPE_CHECKING:
    from hogwear.checkpoint import Checkpoint


def place() -> Place | None:
    """Where torchrun has put this process; None where it is alone. BadInput for several processes on one machine."""
    environment = os.environ
    if "RANK" not in environment or int(environment.get("WORLD_SIZE", 1)) == 1:
        return None
    if int(environment.get("LOCAL_WORLD_SIZE", 1)) != 1:
        raise BadInput(
            f"torchrun started {environment['LOCAL_WORLD_SIZE']} processes here; use --nproc-per-node=1: train has workers of its own"
        )
    return Place(int(environment["RANK"]), int(environment["WORLD_SIZE"]))


def job() -> str | None:
    """torchrun's name of the job, --rdzv-id, the same after every restart; None where it has none."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if name == "none" else name


def host_store() -> None:
    """On rank 0: a process that is the key-value store of this start, until this one is gone. (It has threads, so it cannot be this one.)

    torchrun offers its own, but then machines that join later wait for an address that nobody tells them (torch 2.14), so
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 has to be set; where it is not, torchrun's is used.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return

    def serve() -> None:
        machine.die_with_parent()
        serving = listen(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        signal.sigwait({signal.SIGUSR1})  # which nobody sends
        del serving

    from hogwear.workers import FORK

    FORK.Process(target=serve, daemon=True).start()


def listen(host: str, port: int) -> object:
    """torch's key-value store, on this address only: torch itself would listen on every interface."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listening = socket.create_server((socket.gethostbyname(host), port))
    return TCPStore(
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
    )


def agree(
    others: "Link", photos: Photos, flags: dict[str, Any], saved: "Checkpoint | None"
) -> "Checkpoint | None":
    """The newest checkpoint that any of the machines has. BadInput where they see different photos, or were started with different `flags`."""
    from hogwear import checkpoint

    hello = {
        "photos": fingerprint(photos),
        "flags": flags,
        "age": age(saved),
        "checkpoint": saved.sha256 if saved else None,
    }
    hellos = [json.loads(text) for text in others.tell(json.dumps(hello).encode())]
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
    content = others.hand_on(
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
        for path in split.paths.texts():
            digest.update(os.fsencode(os.path.relpath(path, photos.folder)) + b"\0")
        digest.update(split.labels.tobytes())
    return digest.hexdigest()


def age(saved: "Checkpoint | None") -> list[float]:
    """Orders checkpoints: of one run, and of runs that went on from it."""
    if saved is None:
        return [-1, 0, 0]
    state = saved.state
    return [len(state["history"]), not state["finished"], state["images_seen"]]
