"""The connection between the machines of a cluster, each of which trains as one alone does, on its part of the photos.

Now and then they average what they have learnt:

    snapshot = live parameters;  mean += all-reduce of (snapshot - mean) / machines;  live += mean - snapshot

while the workers go on, so that what they learn meanwhile is not lost (LPP-SGD, arXiv 2203.06638). A process of its own does
it, for gloo has threads, and the parent of the workers may have none (docs/decisions/fork.md). Nothing that comes from
another machine is unpickled. Why so: docs/decisions/cluster.md.
"""

import os
import re
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from hogwear.data.pixels import ALL_ROWS
from hogwear.system import machine
from hogwear.system.arrays import AnyArray
from hogwear.system.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor, nn


TIMEOUT = 90.0  # seconds without a sign of life, after which a machine is given up
STALLED = 600.0  # seconds in which no machine of all gets anything done, after which all are
PULSE = 0.25  # seconds between two signs of life while nothing is asked for; each takes a millisecond of CPU time


class PeerLost(BadInput):
    """Another machine is gone. torchrun goes on, from the last checkpoint, with those that are left."""

    exit_code = 1

    def __init__(self, why: str) -> None:
        super().__init__(
            f"another machine is gone, cut off or stuck ({why}): torchrun starts again with those that are left, from the last checkpoint"
        )


@dataclass(frozen=True)
class Rank:
    """Which of the machines this is."""

    rank: int
    machines: int


class SingleMachine:
    """No other machines: what there is to share is shared."""

    rank, machines = 0, 1
    shard = ALL_ROWS  # of a split's rows, what this machine trains or validates with

    def __init__(self, net: "nn.Module | None" = None) -> None:
        pass

    def heartbeat(self) -> None:
        """Something has been done."""

    def barrier(self) -> None:
        """For all others to come to this point, too."""

    def all_reduce(self, parts: Sequence[AnyArray]) -> list[AnyArray]:
        """The sums of these arrays over all machines."""
        return list(parts)

    def all_gather_bytes(self, message: bytes) -> list[bytes]:
        """The messages of all, by rank."""
        return [message]

    def broadcast_bytes(self, rank: int, content: bytes) -> bytes:
        """The content that this rank has."""
        return content

    def all_gather(self, parts: Sequence[AnyArray]) -> list[AnyArray]:
        """[(n, ...), ...] -> the same with the rows of all machines, in the order of their ranks."""
        return list(parts)

    def sync_if_due(self, epochs: float) -> None:
        """So much of the run is done: average if it is time."""

    def broadcast_parameters(self) -> None:
        """All have the same parameters, rank 0's."""

    def sync_parameters(self) -> None:
        """Average now, while no worker is at work: afterwards all machines have the same parameters."""

    def summary(self) -> str:
        """What the others have cost, a line for people."""
        return ""

    def __enter__(self) -> "SingleMachine":
        return self

    def __exit__(self, *error: object) -> None:
        pass


SINGLE_MACHINE = SingleMachine()


class Peers(SingleMachine):
    """This machine's connection to the others, from when all of them have made one until one of them closes it.

    All make the same calls in the same order. A process carries them out: several times a second it exchanges with the others
    how many calls its parent has made and how much it has done; as soon as all have made a call, it is carried out. So a slow
    machine is waited for, a dead one is noticed at once, and one cut off after TIMEOUT.

    `syncs_per_epoch`: averages of `net` in one pass of the cluster over its photos.
    """

    def __init__(
        self,
        here: Rank,
        name: str,
        net: "nn.Module | None" = None,
        syncs_per_epoch: int = 1,
        epochs_done: float = 0.0,
    ) -> None:
        import torch  # here, and not once more in the process

        from hogwear.networks.parameters import trained_parameters
        from hogwear.system.workers import FORK

        torch.set_num_threads(1)
        self.rank, self.machines, self.name, self.syncs_per_epoch = (
            here.rank,
            here.machines,
            name,
            syncs_per_epoch,
        )
        self.shard = slice(
            here.rank, None, here.machines
        )  # every so-manieth photo, so that classes are spread
        self.parameters = trained_parameters(net) if net else []
        self.synced = int(
            epochs_done * syncs_per_epoch
        )  # the same for all: whatever a machine has left out, they call as often
        self.averaging = False
        self.averages, self.seconds, self.waited = (
            0,
            0.0,
            0.0,
        )  # of the seconds in averages, those that the parent waited
        self.started = time.monotonic()
        self.heartbeats = FORK.RawValue("Q", 0)  # how much the parent has done
        self.alive = FORK.RawValue(
            "d", time.monotonic()
        )  # when the process last heard from all others
        self.pipe, theirs = FORK.Pipe()
        self.process = FORK.Process(target=self.serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    # --- in the parent

    @property
    def bytes_per_sync(self) -> int:
        """Sent by each machine: the all-reduce's two rounds."""
        size = sum(2 * p.numel() for p in self.parameters)
        return 2 * size * (self.machines - 1) // self.machines

    def heartbeat(self) -> None:
        self.heartbeats.value += 1

    def barrier(self) -> None:
        self.ask("all_gather_bytes", b"")

    def all_gather_bytes(self, message: bytes) -> list[bytes]:
        messages: list[bytes] = self.ask("all_gather_bytes", message)
        return messages

    def broadcast_bytes(self, rank: int, content: bytes) -> bytes:
        handed: bytes = self.ask("broadcast_bytes", rank, content)
        return handed

    def all_reduce(self, parts: Sequence[AnyArray]) -> list[AnyArray]:
        totals: list[AnyArray] = self.ask("all_reduce", list(parts))
        return totals

    def all_gather(self, parts: Sequence[AnyArray]) -> list[AnyArray]:
        gathered: list[AnyArray] = self.ask("all_gather", list(parts))
        return gathered

    def sync_if_due(self, epochs: float) -> None:
        self.heartbeat()
        if self.pipe.poll():  # an average is done, or the others are gone
            self.finish()
        for number in range(self.synced + 1, int(epochs * self.syncs_per_epoch) + 1):
            self.synced = number
            if number % self.syncs_per_epoch:  # at the end of an epoch all settle
                if self.averaging:
                    started = time.monotonic()
                    self.finish()
                    self.waited += time.monotonic() - started
                with suppress(BrokenPipeError):
                    self.pipe.send(("average", False))
                self.averages += 1
                self.averaging = True

    def broadcast_parameters(self) -> None:
        self.ask("broadcast_parameters")

    def sync_parameters(self) -> None:
        started = time.monotonic()
        self.seconds += self.ask("average", True)
        self.averages += 1
        self.waited += time.monotonic() - started

    def finish(self) -> None:
        """The average under way."""
        self.seconds += self.answer()
        self.averaging = False

    def summary(self) -> str:
        share = self.waited / (time.monotonic() - self.started)
        return (
            f"Averages: {self.averages}, for each of which every machine sent {self.bytes_per_sync / 1e6:.1f} MB in {self.seconds / max(1, self.averages):.2f} s; "
            f"training waited {self.waited:.1f} s for them, {share:.1%} of the time.\n"
        )

    def ask(self, command: str, *arguments: Any) -> Any:
        if self.averaging:
            self.finish()
        self.heartbeat()
        with suppress(BrokenPipeError):  # it has left a word, or none: `answer` tells
            self.pipe.send((command, *arguments))
        return self.answer()

    def answer(self) -> Any:
        try:
            while not self.pipe.poll(1.0):
                if time.monotonic() - self.alive.value > 3 * TIMEOUT:
                    raise PeerLost(f"nothing heard for {3 * TIMEOUT:.0f} s")
            reply = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise PeerLost("the process that is the connection has died") from None
        if isinstance(reply, str):
            raise PeerLost(reply)
        return reply[0]

    def __exit__(self, *error: object) -> None:
        self.pipe.close()
        self.process.join(timeout=0 if any(error) else 5)
        self.process.kill()
        self.process.join()

    # --- in the process of its own

    def serve(self, pipe: Any) -> None:
        """Until the parent is gone, or another machine."""
        import torch.distributed as dist

        machine.die_with_parent()
        self.pipe.close()
        for ignored in (signal.SIGINT, signal.SIGTERM):  # the parent decides
            signal.signal(ignored, signal.SIG_IGN)
        waiting = timedelta(seconds=TIMEOUT)
        try:
            store = dist.TCPStore(  # type: ignore[attr-defined]
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                is_master=False,
                timeout=waiting,
            )
            dist.init_process_group(
                "gloo",
                store=dist.PrefixStore(self.name, store),  # type: ignore[attr-defined]
                rank=self.rank,
                world_size=self.machines,
                timeout=waiting,
            )
            self.obey(pipe)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass  # the parent is gone
        except RuntimeError as error:  # gloo's, and the store's
            with suppress(BrokenPipeError):
                pipe.send(
                    re.sub(r"^\[\S*\] ", "", str(error).strip()).partition(". ")[0]
                )  # without torch's source line, and its advice
        os._exit(0)  # gloo's threads may hang at exit

    def obey(self, pipe: Any) -> None:
        """Carry out what the parents of all machines have asked for."""
        asked: list[tuple[Any, ...]] = []
        obeyed, done, moved = 0, -1, time.monotonic()
        while True:
            if pipe.poll(
                0 if asked else PULSE
            ):  # who has asked already waits in the exchange, for those that have not
                asked.append(pipe.recv())
            counts = self.do_all_gather(
                [np.array([[obeyed + len(asked), self.heartbeats.value]])], equal=True
            )[0]
            self.alive.value = now = time.monotonic()
            if counts[:, 1].sum() != done:
                done, moved = counts[:, 1].sum(), now
            elif now - moved > STALLED:
                raise RuntimeError(f"no machine has got anything done for {STALLED:.0f} s")
            if counts[:, 0].min() > obeyed:
                command, *arguments = asked.pop(0)
                pipe.send((getattr(self, f"do_{command}")(*arguments),))
                obeyed += 1

    def do_all_reduce(self, parts: list[AnyArray]) -> list[AnyArray]:
        import torch
        import torch.distributed as dist

        for part in parts:
            dist.all_reduce(torch.from_numpy(part))
        return parts

    def do_all_gather(self, parts: list[AnyArray], equal: bool = False) -> list[AnyArray]:
        """`equal`: all have as many rows."""
        import torch
        import torch.distributed as dist

        gathered = []
        for part in parts:
            counts = np.full(self.machines, len(part))
            if not equal:
                counts = self.do_all_gather([np.array([len(part)])], equal=True)[0]
            padded = np.zeros((counts.max(), *part.shape[1:]), part.dtype)
            padded[: len(part)] = part
            received = [torch.from_numpy(np.empty_like(padded)) for _ in counts]
            dist.all_gather(received, torch.from_numpy(padded))
            gathered.append(
                np.concatenate(
                    [rows.numpy()[:count] for rows, count in zip(received, counts, strict=True)]
                )
            )
        return gathered

    def do_all_gather_bytes(self, message: bytes) -> list[bytes]:
        lengths, content = self.do_all_gather(
            [np.array([len(message)]), np.frombuffer(message, np.uint8)]
        )
        return [part.tobytes() for part in np.split(content, np.cumsum(lengths)[:-1])]

    def do_broadcast_bytes(self, rank: int, content: bytes) -> bytes:
        import torch
        import torch.distributed as dist

        size = self.do_all_gather([np.array([len(content)])], equal=True)[0][rank]
        handed = np.empty(size, np.uint8)
        if rank == self.rank:
            handed[:] = np.frombuffer(content, np.uint8)
        dist.broadcast(torch.from_numpy(handed), src=rank)
        return handed.tobytes()

    def do_broadcast_parameters(self) -> None:
        """With rank 0's parameters."""
        import torch.distributed as dist

        self.anchor = self.snapshot()
        dist.broadcast(self.anchor, src=0)
        self.move(self.anchor, replace=True)

    def do_average(self, exactly: bool) -> float:
        """Seconds it took. Sent is, in bfloat16, how far the parameters have come since the last average; what is no number does not count."""
        import torch
        import torch.distributed as dist

        started = time.monotonic()
        snapshot = self.snapshot()
        sound = bool(snapshot.isfinite().all())
        sums = torch.zeros(
            len(snapshot) + 1, dtype=torch.bfloat16
        )  # the last is the number of sound machines
        if sound:
            sums[:-1] = snapshot - self.anchor
            sums[-1] = 1
        dist.all_reduce(sums)
        self.anchor += sums[:-1].float() / max(1.0, float(sums[-1]))
        self.move(
            self.anchor if exactly or not sound else self.anchor - snapshot,
            replace=exactly or not sound,
        )
        return time.monotonic() - started

    def snapshot(self) -> "Tensor":
        """(n,) float32, all parameters that are trained."""
        import torch

        return torch.cat([p.detach().reshape(-1) for p in self.parameters])

    def move(self, flat: "Tensor", replace: bool) -> None:
        """The live parameters to `flat`, (n,), or by it."""
        from hogwear.networks.parameters import unflatten_like

        for p, part in zip(self.parameters, unflatten_like(flat, self.parameters), strict=True):
            if replace:
                p.data.copy_(part)
            else:
                p.data.add_(part)
