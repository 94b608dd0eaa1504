"""Collective operations over the machines: sum, gather, broadcast, and the average of parameters.

A process of its own carries them out with gloo, on behalf of the training process. Nothing that
comes from another machine is unpickled: only arrays and bytes are exchanged.
"""

import os
import re
import signal
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hogwear.cluster.membership import TIMEOUT, Rank
from hogwear.networks.parameters import unflatten_like
from hogwear.system import signals
from hogwear.system.arrays import AnyArray
from hogwear.system.workers import FORK

STALLED = 600.0  # seconds without progress on any machine after which the cluster gives up
PULSE = 0.25  # seconds between signs of life while idle; each takes a millisecond of CPU time


class PeerProcess:
    """Carries out the commands of its parent together with the peer processes of all machines.

    It is created in the parent; `serve` is the body of the forked process. A command is the name of
    a method below and its arguments. The reply is the method's result, or a str: why there is none.
    """

    def __init__(self, rank: Rank, name: str, parameters: Sequence[nn.Parameter]) -> None:
        self.rank = rank
        self.name = name
        self.parameters = list(parameters)
        # In shared memory: what the parent has done, and when all machines last answered.
        self.heartbeats = FORK.RawValue("Q", 0)
        self.last_contact = FORK.RawValue("d", time.monotonic())
        self.mean: Tensor  # (n,) float32, the last average

    def serve(self, pipe: Connection, parent_end: Connection) -> None:
        """Connect to the other machines; serve until the parent or another machine is gone."""
        signals.die_with_parent()
        parent_end.close()
        for ignored in (signal.SIGINT, signal.SIGTERM):  # the parent decides when to stop
            signal.signal(ignored, signal.SIG_IGN)
        try:
            self.connect()
            self.execute_commands(pipe)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass  # the parent is gone
        except RuntimeError as error:  # from gloo or the store
            # Their message starts with a source line, and its second sentence is advice.
            reason = re.sub(r"^\[\S*\] ", "", str(error).strip()).partition(". ")[0]
            with suppress(BrokenPipeError):
                pipe.send(reason)
        os._exit(0)  # gloo's threads can hang at exit

    def connect(self) -> None:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        timeout = timedelta(seconds=TIMEOUT)
        store = dist.TCPStore(host, port, timeout=timeout)  # type: ignore[attr-defined]
        prefixed = dist.PrefixStore(self.name, store)  # type: ignore[attr-defined]
        dist.init_process_group(
            "gloo",
            store=prefixed,
            timeout=timeout,
            rank=self.rank.number,
            world_size=self.rank.machines,
        )

    def execute_commands(self, pipe: Connection) -> None:
        """Execute each command once the parents of all machines have sent it.

        Several times per second, all machines exchange how many commands and heartbeats their
        parents have sent. RuntimeError if no parent makes progress for STALLED seconds.
        """
        commands: deque[tuple[Any, ...]] = deque()
        executed = 0
        total_heartbeats = -1
        last_progress = time.monotonic()
        while True:
            # With a command at hand, the exchange itself waits for the machines without one.
            if pipe.poll(0 if commands else PULSE):
                commands.append(pipe.recv())
            counts = np.array([[executed + len(commands), self.heartbeats.value]])
            sent, heartbeats = self.gather_equal(counts).T
            self.last_contact.value = now = time.monotonic()
            if heartbeats.sum() != total_heartbeats:
                total_heartbeats, last_progress = heartbeats.sum(), now
            elif now - last_progress > STALLED:
                raise RuntimeError(f"no machine has made progress for {STALLED:.0f} s")
            if sent.min() > executed:
                command, *arguments = commands.popleft()
                pipe.send(getattr(self, command)(*arguments))
                executed += 1

    def all_reduce(self, arrays: Sequence[AnyArray]) -> Sequence[AnyArray]:
        for array in arrays:
            dist.all_reduce(torch.from_numpy(array))
        return arrays

    def all_gather(self, arrays: Sequence[AnyArray]) -> list[AnyArray]:
        gathered = []
        for array in arrays:
            counts = self.gather_equal(np.array([len(array)]))
            padded = np.zeros((counts.max(), *array.shape[1:]), array.dtype)
            padded[: len(array)] = array
            parts = np.split(self.gather_equal(padded), self.rank.machines)
            parts = [part[:count] for part, count in zip(parts, counts, strict=True)]
            gathered.append(np.concatenate(parts))
        return gathered

    def gather_equal(self, array: AnyArray) -> AnyArray:
        """(n, ...) -> (machines * n, ...); `n` must be equal on all machines."""
        parts = [torch.from_numpy(np.empty_like(array)) for _ in range(self.rank.machines)]
        dist.all_gather(parts, torch.from_numpy(array))
        return np.concatenate([part.numpy() for part in parts])

    def all_gather_bytes(self, message: bytes) -> list[bytes]:
        length, content = np.array([len(message)]), np.frombuffer(message, np.uint8)
        lengths, content = self.all_gather([length, content])
        return [part.tobytes() for part in np.split(content, np.cumsum(lengths)[:-1])]

    def broadcast_bytes(self, source: int, message: bytes) -> bytes:
        size = self.gather_equal(np.array([len(message)]))[source]
        content = np.empty(size, np.uint8)
        if source == self.rank.number:
            content[:] = np.frombuffer(message, np.uint8)
        dist.broadcast(torch.from_numpy(content), src=source)
        return content.tobytes()

    def broadcast_parameters(self) -> None:
        self.mean = self.snapshot()
        dist.broadcast(self.mean, src=0)
        self.set_parameters(self.mean)

    def average_parameters(self, replace: bool) -> float:
        """Average the parameters over all machines; returns the seconds that took.

        `replace` sets the live parameters to the mean; otherwise they move by the difference, and
        so keep what workers have learned meanwhile. Machines send the change since the last
        average, in bfloat16; one with NaN or infinite parameters takes the mean of the others.
        """
        started = time.monotonic()
        snapshot = self.snapshot()
        is_finite = bool(snapshot.isfinite().all())
        sums = torch.zeros(len(snapshot) + 1, dtype=torch.bfloat16)  # and the number of summands
        if is_finite:
            sums[:-1] = snapshot - self.mean
            sums[-1] = 1
        dist.all_reduce(sums)
        self.mean += sums[:-1].float() / max(1.0, float(sums[-1]))
        if replace or not is_finite:
            self.set_parameters(self.mean)
        else:
            changes = unflatten_like(self.mean - snapshot, self.parameters)
            for p, change in zip(self.parameters, changes, strict=True):
                p.data.add_(change)
        return time.monotonic() - started

    def snapshot(self) -> Tensor:
        """A copy of all parameters, (n,) float32."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])

    def set_parameters(self, flat: Tensor) -> None:
        for p, value in zip(self.parameters, unflatten_like(flat, self.parameters), strict=True):
            p.data.copy_(value)
