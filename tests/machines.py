"""Several machines on one host: each is a torchrun with a model folder and a cache of its own."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from helpers import ROOT, ForkedCall, at, descendants, is_running, saved, wait_until
from torch import nn

from bench import network
from hogwear.cluster import membership
from hogwear.cluster.membership import Rank
from hogwear.cluster.peers import PeerLost, Peers


def run_machines(*functions: Callable[[Peers], Any]) -> list[Any]:
    """Call each function with the connection of a machine of its own, a forked process, to the others.

    Returns what they return, or the text of a PeerLost. Each averages the weight of a layer of its own, (1, 2), filled with its rank.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run_machine(rank: int) -> Any:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
        if rank == 0:
            membership.start_store()
        net = nn.Linear(2, 1, bias=False)
        nn.init.constant_(net.weight, float(rank))
        net.share_memory()
        try:
            with Peers(Rank(rank, len(functions)), "test", list(net.parameters()), 4) as peers:
                result = functions[rank](peers)
                peers.barrier()
                return result
        except PeerLost as error:
            return str(error)

    started = [ForkedCall(run_machine, rank) for rank in range(len(functions))]
    return [machine.result() for machine in started]


LISTENING = "0A"  # TCP_LISTEN
LOOPBACK = "0100007F"  # 127.0.0.1


class Cluster:
    """Machines on the loopback interface, or in a simulated network.

    The rendezvous runs on machine number 0.
    """

    def __init__(
        self, folder: Path, data: Path, *flags: object, net: network.Network | None = None
    ) -> None:
        self.folder, self.data, self.flags, self.net = folder, data, flags, net
        self.torchruns: dict[int, subprocess.Popen[str]] = {}
        self.seen: set[int] = set()  # all processes of all machines so far
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            host, port = self.address(0), free.getsockname()[1]
        self.endpoint = f"{host}:{port}"
        command = ("-m", "hogwear.commands.rendezvous", "--address", host, "--port", port)
        self.rendezvous = self.run(0, *command, cwd=ROOT, stdout=subprocess.PIPE)
        assert self.rendezvous.stdout
        assert self.rendezvous.stdout.readline() == f"Rendezvous: {self.endpoint}\n"

    def address(self, number: int) -> str:
        return network.address(number) if self.net else "127.0.0.1"

    def run(self, number: int, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """Start Python on a machine."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("HOGWEAR_")}
        env |= {
            "GLOO_SOCKET_IFNAME": "line0" if self.net else "lo",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        command = [sys.executable, *map(str, arguments)]
        return subprocess.Popen(
            self.net.command_on(number, *command) if self.net else command,
            env=env,
            text=True,
            start_new_session=True,
            **options,
        )

    def start(
        self, number: int, *flags: object, nnodes: str = "1:4", restarts: int = 5
    ) -> subprocess.Popen[str]:
        """Start torchrun on a machine, with train.py."""
        torchrun = [
            "-m",
            "torch.distributed.run",
            f"--nnodes={nnodes}",
            "--nproc-per-node=1",
            f"--max-restarts={restarts}",
            "--monitor-interval=0.2",
            "--rdzv-id=test",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={self.endpoint}",
            "--rdzv-conf=is_host=false,last_call_timeout=3",
            f"--local-addr={self.address(number)}",
        ]
        folders = at(self.data, self.model(number), self.folder / f"cache-{number}")
        train = [ROOT / "train.py", *folders, *self.flags, *flags]
        with (self.folder / f"{number}.out").open("a") as out:
            self.torchruns[number] = self.run(
                number, *torchrun, *train, stdout=out, stderr=subprocess.STDOUT
            )
        return self.torchruns[number]

    def model(self, number: int) -> Path:
        return self.folder / f"model-{number}"

    def output(self, number: int | None = None) -> str:
        """What one machine has printed, or all of them."""
        return "".join(
            file.read_text()
            for file in sorted(self.folder.glob("*.out"))
            if number is None or file.stem == str(number)
        )

    def first(self) -> int:
        """The number of the machine that is rank 0."""
        [number] = [
            number
            for number in self.torchruns
            if "this is rank 0" in self.output(number).rpartition("Cluster:")[2]
        ]
        return number

    def wait_for(self, pattern: str, seconds: float = 120) -> None:
        """Wait until the output of the machines matches."""
        try:
            wait_until(lambda: re.search(pattern, self.look().output()), seconds)
        except AssertionError:
            raise AssertionError(f"no {pattern!r} in:\n{self.output()}") from None

    def look(self) -> "Cluster":
        """Note which processes there are."""
        self.seen |= {
            pid
            for torchrun in self.torchruns.values()
            for pid in {torchrun.pid, *descendants(torchrun.pid)}
        }
        return self

    def kill(self, number: int) -> None:
        """Kill all processes of a machine at once, as if it lost power."""
        family = {self.torchruns[number].pid, *descendants(self.torchruns[number].pid)}
        self.seen |= family
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def listening(self) -> set[str]:
        """Addresses on which processes of the machines listen, in the kernel's notation."""
        self.look()
        inodes = set()
        for pid in {self.rendezvous.pid, *self.seen}:
            with suppress(OSError):
                inodes |= {
                    str(descriptor.readlink()) for descriptor in Path(f"/proc/{pid}/fd").iterdir()
                }
        found = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *_, inode = line.split()[:10]
                if state == LISTENING and f"socket:[{inode}]" in inodes:
                    found.add(local.partition(":")[0])
        return found

    def codes(self, seconds: float = 180) -> dict[int, int]:
        """Wait until all machines have ended: their exit codes."""
        try:
            wait_until(
                lambda: all(
                    torchrun.poll() is not None for torchrun in self.look().torchruns.values()
                ),
                seconds,
            )
        except AssertionError:
            raise AssertionError(f"still running:\n{self.output()}") from None
        return {number: torchrun.returncode for number, torchrun in self.torchruns.items()}

    def require_nothing_left(self) -> None:
        """Wait until no process of any machine is left."""
        wait_until(lambda: not any(map(is_running, self.seen)))

    def result(self) -> dict[str, Any]:
        """The newest checkpoint of a finished run."""
        states = [
            saved(folder)
            for folder in sorted(self.folder.glob("model-*"))
            if (folder / "checkpoint.pt").exists()
        ]
        return max(states, key=lambda state: (len(state["history"]), state["finished"]))

    def end(self) -> None:
        self.look()
        for pid in {self.rendezvous.pid, *self.seen}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in (self.rendezvous, *self.torchruns.values()):
            process.wait()
