"""The other machines of a cluster, as the training process sees them.

Every machine trains as a single machine does, on its shard of the photos. From time to time the
machines average their parameters while their workers go on:

    snapshot = live parameters
    mean += all-reduce of (snapshot - mean) / machines
    live += mean - snapshot                             # keeps what was learned meanwhile

This is the update rule of LPP-SGD (arXiv 2203.06638). docs/decisions/cluster.md has the reasons and
measurements. The communication runs in a process of its own (collectives.py): gloo has threads,
and the training process forks its workers, so it may not have any (docs/decisions/fork.md).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from hogwear.cluster.membership import TIMEOUT, Rank
from hogwear.system.arrays import AnyArray
from hogwear.system.errors import BadInput
from hogwear.system.workers import FORK

if TYPE_CHECKING:
    from torch import nn


class PeerLost(BadInput):
    """Another machine is gone or cut off."""

    exit_code = 1

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"lost contact with another machine ({reason}): torchrun restarts the remaining "
            "machines from the last checkpoint"
        )


class SingleMachine:
    """The interface to the other machines where there are none: every call returns at once."""

    rank = 0
    machines = 1
    shard = slice(None)  # the rows of a split that this machine works on

    def heartbeat(self) -> None:
        """Tell the other machines that this one is making progress."""

    def barrier(self) -> None:
        """Wait until all machines have made this call."""

    def all_reduce(self, arrays: Sequence[AnyArray]) -> list[AnyArray]:
        """The sum of each array over all machines."""
        return list(arrays)

    def all_gather(self, arrays: Sequence[AnyArray]) -> list[AnyArray]:
        """Each array, (n, ...), with the rows of all machines in the order of their ranks."""
        return list(arrays)

    def all_gather_bytes(self, message: bytes) -> list[bytes]:
        """The messages of all machines, by rank."""
        return [message]

    def broadcast_bytes(self, source: int, message: bytes) -> bytes:
        """The message of the machine with rank `source`; those of the others do not matter."""
        return message

    def broadcast_parameters(self) -> None:
        """Copy the parameters of rank 0 to all machines."""

    def sync_if_due(self, epochs: float) -> None:
        """Start to average the parameters if it is time, now that `epochs` of the run are done."""

    def sync_parameters(self) -> None:
        """Average the parameters while no worker changes them: they are then equal everywhere."""

    def summary(self) -> str:
        """What averaging has cost, as a line to print; empty on a single machine."""
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


SINGLE_MACHINE = SingleMachine()


class Peers(SingleMachine):
    """The connection to the other machines: opened by all of them, until one of them closes it.

    All machines make the same calls in the same order. Each call waits until all have made it. It
    raises PeerLost at once when a machine dies, and after TIMEOUT when one is cut off.

    `parameters` are averaged `syncs_per_epoch` times in each pass of the cluster over its photos;
    `epochs_done` says where in the run this connection starts.
    """

    def __init__(
        self,
        rank: Rank,
        name: str,
        parameters: Sequence[nn.Parameter] = (),
        syncs_per_epoch: int = 1,
        epochs_done: float = 0.0,
    ) -> None:
        import torch  # takes seconds, so only where there is a cluster

        from hogwear.cluster.collectives import PeerProcess

        torch.set_num_threads(1)
        self.rank = rank.number
        self.machines = rank.machines
        # Not a block, for photos are sorted by class.
        self.shard = slice(rank.number, None, rank.machines)
        self.parameters = parameters
        self.syncs_per_epoch = syncs_per_epoch
        # Counted from the progress, not from calls, so that all machines sync equally often.
        self.syncs_started = int(epochs_done * syncs_per_epoch)
        self.sync_under_way = False
        self.syncs = 0
        self.sync_seconds = 0.0
        self.waited_seconds = 0.0  # the part of them in which training waited
        self.opened = time.monotonic()
        self.peer = PeerProcess(rank, name, parameters)
        self.pipe, child_end = FORK.Pipe()
        ends = child_end, self.pipe
        self.process = FORK.Process(target=self.peer.serve, args=ends, daemon=True)
        self.process.start()
        child_end.close()

    def heartbeat(self) -> None:
        self.peer.heartbeats.value += 1

    def barrier(self) -> None:
        self.request("all_gather_bytes", b"")

    def all_reduce(self, arrays: Sequence[AnyArray]) -> list[AnyArray]:
        return self.request("all_reduce", arrays)

    def all_gather(self, arrays: Sequence[AnyArray]) -> list[AnyArray]:
        return self.request("all_gather", arrays)

    def all_gather_bytes(self, message: bytes) -> list[bytes]:
        return self.request("all_gather_bytes", message)

    def broadcast_bytes(self, source: int, message: bytes) -> bytes:
        return self.request("broadcast_bytes", source, message)

    def broadcast_parameters(self) -> None:
        self.request("broadcast_parameters")

    def sync_if_due(self, epochs: float) -> None:
        self.heartbeat()
        if self.pipe.poll():  # an average is ready, or a machine is lost
            self.finish_sync()
        for number in range(self.syncs_started + 1, int(epochs * self.syncs_per_epoch) + 1):
            self.syncs_started = number
            if self.sync_under_way:
                started = time.monotonic()
                self.finish_sync()
                self.waited_seconds += time.monotonic() - started
            self.send("average_parameters", False)
            self.syncs += 1
            self.sync_under_way = True

    def sync_parameters(self) -> None:
        started = time.monotonic()
        self.sync_seconds += self.request("average_parameters", True)
        self.syncs += 1
        self.waited_seconds += time.monotonic() - started

    def finish_sync(self) -> None:
        """Wait for the average that is under way."""
        self.sync_seconds += self.receive()
        self.sync_under_way = False

    def summary(self) -> str:
        share = self.waited_seconds / (time.monotonic() - self.opened)
        # An all-reduce of bfloat16 numbers sends them in two rounds.
        size = 2 * sum(2 * p.numel() for p in self.parameters)
        megabytes = size * (self.machines - 1) / self.machines / 1e6
        return (
            f"Averaging: {self.syncs} times, {megabytes:.1f} MB sent per machine "
            f"in {self.sync_seconds / max(1, self.syncs):.2f} s each time; "
            f"training waited {self.waited_seconds:.1f} s, {share:.1%} of the time.\n"
        )

    def request(self, command: str, *arguments: Any) -> Any:
        """Send a command to the peer process and wait for its result."""
        if self.sync_under_way:
            self.finish_sync()
        self.heartbeat()
        self.send(command, *arguments)
        return self.receive()

    def send(self, command: str, *arguments: Any) -> None:
        with suppress(BrokenPipeError):  # the process has ended: `receive` finds out why
            self.pipe.send((command, *arguments))

    def receive(self) -> Any:
        """The result of the oldest command. PeerLost instead where there will be none."""
        try:
            while not self.pipe.poll(1.0):
                if time.monotonic() - self.peer.last_contact.value > 3 * TIMEOUT:
                    raise PeerLost(f"no sign of life for {3 * TIMEOUT:.0f} s")
            reply = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise PeerLost("the communication process has died") from None
        if isinstance(reply, str):
            raise PeerLost(reply)
        return reply

    def __exit__(self, *error: object) -> None:
        self.pipe.close()
        self.process.join(timeout=0 if any(error) else 5)
        self.process.kill()
        self.process.join()
