"""The key-value store through which the machines of a cluster find each other; runs until stopped.

    python -m hogwear.commands.rendezvous [ADDRESS[:PORT]]

On each machine, then: torchrun --rdzv-endpoint=ADDRESS:29400 --rdzv-conf=is_host=false ...
Without this process, torchrun puts the store on the first machine, and the cluster ends with that
machine. ADDRESS is the interface to listen on, by default that of this machine's host name.
"""

import signal
import socket
import sys

from hogwear.cluster import membership

PORT = 29400  # torchrun's default

if __name__ == "__main__":
    host, _, port = (sys.argv[1] if len(sys.argv) > 1 else socket.gethostname()).partition(":")
    store = membership.open_store(host, int(port or PORT))
    print(f"Rendezvous: {socket.gethostbyname(host)}:{port or PORT}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
