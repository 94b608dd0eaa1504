"""Which machine of a cluster this is, and the key-value store through which machines connect.

torchrun starts one train.py per machine and sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
"""

import os
import signal
import socket
from dataclasses import dataclass

from hogwear.system import signals
from hogwear.system.errors import BadInput
from hogwear.system.workers import FORK

TIMEOUT = 90.0  # seconds without a sign of life after which a machine counts as lost


@dataclass(frozen=True)
class Rank:
    """The number of this machine, from 0, and how many machines there are."""

    number: int
    machines: int


def read_rank() -> Rank | None:
    """The rank that torchrun has given this process; None without a cluster.

    BadInput where torchrun started several processes on this machine.
    """
    machines = int(os.environ.get("WORLD_SIZE", 1))
    if "RANK" not in os.environ or machines == 1:
        return None
    if (processes := int(os.environ.get("LOCAL_WORLD_SIZE", 1))) != 1:
        raise BadInput(
            f"torchrun started {processes} processes on this machine, expected 1: "
            "use --nproc-per-node=1; train starts its own workers"
        )
    return Rank(int(os.environ["RANK"]), machines)


def read_job_id() -> str | None:
    """torchrun's --rdzv-id, the same after every restart of a job; None where there is none."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if name == "none" else name


def start_store() -> None:
    """On rank 0: start a process that serves the key-value store until this process ends.

    The store has threads, and this process forks, so it may not have any. Where torchrun shares its
    own store, that is used; TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 turns it off, for with it,
    machines that join later wait for an address that they never get (torch 2.14).
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return

    def serve() -> None:
        signals.die_with_parent()
        store = open_store(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        signal.sigwait({signal.SIGUSR1})  # never sent: the process ends with its parent
        del store

    FORK.Process(target=serve, daemon=True).start()


def open_store(host: str, port: int) -> object:
    """torch's key-value store. It listens on this address only (torch: on every interface)."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listener = socket.create_server((socket.gethostbyname(host), port))
    return TCPStore(
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
