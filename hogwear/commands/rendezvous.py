"""Where the machines of a cluster find each other: torch's key-value store, until it is stopped.

    python -m hogwear.commands.rendezvous [ADDRESS]        # then, on each machine: torchrun --rdzv-endpoint=ADDRESS:29400 --rdzv-conf=is_host=false ...

torchrun would have the first machine be it, and the cluster would end with that machine. ADDRESS is the interface it
listens on, and a port if it has one; without it, the one that this machine's own name stands for.
"""

import signal
import socket
import sys

from hogwear.cluster import membership

PORT = 29400  # torchrun's own default

if __name__ == "__main__":
    host, _, port = (sys.argv[1] if len(sys.argv) > 1 else socket.gethostname()).partition(":")
    store = membership.open_store(host, int(port or PORT))
    print(f"Rendezvous: {socket.gethostbyname(host)}:{port or PORT}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
