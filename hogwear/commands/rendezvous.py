"""The key-value store through which the machines of a cluster find each other; runs until stopped.

    python -m hogwear.commands.rendezvous --address 10.0.0.1

On each machine, then: torchrun --rdzv-endpoint=ADDRESS:29400 --rdzv-conf=is_host=false ...
Without this process, torchrun puts the store on the first machine, and the cluster ends with that
machine.
"""

import signal
import socket
from dataclasses import dataclass

from hogwear.cluster import membership
from hogwear.system import command
from hogwear.system.errors import BadInput
from hogwear.system.flags import Range, flag


@dataclass(frozen=True)
class Settings:
    """Let the machines of a cluster find each other, until Ctrl-C."""

    address: str | None = flag("address to listen on", None, default_help="of the host name")
    port: int = flag("port to listen on", 29400, Range(1, 65536))


def main(settings: Settings) -> None:
    host = settings.address or socket.gethostname()
    try:
        store = membership.open_store(host, settings.port)
    except OSError as error:
        raise BadInput(
            f"--address: cannot listen on {host}:{settings.port} ({error.strerror}); "
            "give an address of this machine and a free port"
        ) from None
    print(f"Rendezvous: {socket.gethostbyname(host)}:{settings.port}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del store


if __name__ == "__main__":
    command.run(main, Settings)
