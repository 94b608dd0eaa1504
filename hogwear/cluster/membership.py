"""How the machines of a cluster meet: torchrun says who they are, and they agree on what to go on from.

torchrun starts one train.py a machine and gives it RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. What then goes on between
them: link.py.
"""

import os
import signal
import socket

from hogwear.cluster.peers import Rank
from hogwear.system import machine
from hogwear.system.errors import BadInput
from hogwear.system.workers import FORK


def read_rank() -> Rank | None:
    """Where torchrun has put this process; None where it is alone. BadInput for several processes on one machine."""
    environment = os.environ
    if "RANK" not in environment or int(environment.get("WORLD_SIZE", 1)) == 1:
        return None
    if int(environment.get("LOCAL_WORLD_SIZE", 1)) != 1:
        raise BadInput(
            f"torchrun started {environment['LOCAL_WORLD_SIZE']} processes here; use --nproc-per-node=1: train has workers of its own"
        )
    return Rank(int(environment["RANK"]), int(environment["WORLD_SIZE"]))


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

    FORK.Process(target=serve, daemon=True).start()


def listen(host: str, port: int) -> object:
    """torch's key-value store, on this address only: torch itself would listen on every interface."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listening = socket.create_server((socket.gethostbyname(host), port))
    return TCPStore(
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach()
    )
