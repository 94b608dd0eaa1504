"""Hogwild (Niu et al., arXiv 1106.5730): worker processes that update one set of parameters in shared memory without locks.

The parent hands out batch numbers, each worker over a pipe of its own, and a worker answers when a batch is done. So
an epoch is one pass by all workers together, a slow worker simply gets fewer batches, and nobody ever holds a lock
that could die with them: a worker that is killed is replaced, and its batches are handed out again.

Shared: the parameters. Private to a worker: gradients, and momentum, which lies in shared memory only so that the
parent can save it. The learning rate follows the images that all workers together have seen.
"""

import math
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hogwear import machine
from hogwear.errors import BadInput
from hogwear.pixels import augment

QUEUED = 2  # batches a worker has been given: the one it works on, and the next, so that it never waits for the parent
DEATHS_IN_A_ROW = 3
WARM_UP = 0.1  # share of the images over which the learning rate rises
WEIGHT_DECAY = 1e-4
LABEL_SMOOTHING = 0.1


@dataclass(frozen=True)
class Course:
    """What is trained on, in which order and at which learning rate: all that makes a batch, and its step, reproducible."""

    images: Path  # .npy of (N, S, S, 3) uint8
    rows: np.ndarray[Any, np.dtype[np.int64]]  # (n,) photos of the split, as rows of `images`
    labels: np.ndarray[Any, np.dtype[np.int64]]  # (n,)
    batch_size: int
    epochs: int
    lr: float
    head_lr_scale: float
    momentum: float
    seed: int
    first_epoch: int  # epochs trained in earlier runs; their shuffles are not repeated

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def images_before(self, step: int) -> int:
        """Images seen when `step` begins; the last batch of an epoch may be smaller."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return epoch * len(self.rows) + min(batch * self.batch_size, len(self.rows))

    def step_at(self, images_seen: int) -> int:
        """The inverse of `images_before`, rounded down where the photos are no longer the same."""
        epoch, images = divmod(images_seen, len(self.rows))
        return epoch * self.steps_per_epoch + images // self.batch_size

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 0, by images seen."""
        done = self.images_before(step) / (self.epochs * len(self.rows))
        warm_up = min(1.0, (done + 1 / self.steps) / WARM_UP)
        return self.lr * warm_up * (0.5 + 0.5 * math.cos(math.pi * max(0.0, done - WARM_UP) / (1 - WARM_UP)))

    def batch(self, step: int, images: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[Tensor, Tensor]:
        """Augmented pixels (B, S, S, 3) and labels (B,) of a step, the same whichever worker makes them."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.seed, self.first_epoch + epoch)).permutation(len(self.rows))
        chosen = np.sort(order[batch * self.batch_size : (batch + 1) * self.batch_size])  # sorted: the file is read forwards
        random = np.random.default_rng((self.seed, self.first_epoch + epoch, batch))
        return augment(images[self.rows[chosen]], random), torch.from_numpy(self.labels[chosen])


@dataclass(frozen=True)
class Result:
    """What came of one batch."""

    step: int
    images: int
    loss: float  # mean over the batch
    correct: int


def share(net: nn.Module) -> Tensor:
    """Move all parameters into one flat tensor in shared memory, of which they become views; returns it."""
    flat = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    machine.require_shared_memory(flat.nbytes)
    attach(net, flat.share_memory_())
    return flat


def share_momentum(net: nn.Module, workers: int, saved: Tensor | None) -> Tensor:
    """(workers, trained parameters) momentum buffers in shared memory; `saved` ones go on, as far as there are workers."""
    shape = (workers, sum(p.numel() for p in trained(net)))
    machine.require_shared_memory(4 * shape[0] * shape[1])
    buffers = torch.zeros(shape).share_memory_()
    if saved is not None:
        count = min(workers, len(saved))
        buffers[:count] = saved[:count]
    return buffers


def attach(net: nn.Module, flat: Tensor) -> None:
    """Make every parameter of `net` a view into `flat`, as `share` laid them out."""
    offset = 0
    for p in net.parameters():
        p.data = flat[offset : offset + p.numel()].view(p.shape)
        offset += p.numel()


def trained(net: nn.Module) -> list[nn.Parameter]:
    return [p for p in net.parameters() if p.requires_grad]


def make_optimizer(net: nn.Module, head: nn.Module, course: Course, momentum: Tensor) -> torch.optim.SGD:
    """SGD with Nesterov momentum, its buffers views into the flat `momentum`, the head in a group of its own."""
    in_head = {id(p) for p in head.parameters()}
    groups = [
        {"params": [p for p in trained(net) if id(p) not in in_head], "lr_scale": 1.0},
        {"params": [p for p in trained(net) if id(p) in in_head], "lr_scale": course.head_lr_scale},
    ]
    optimizer = torch.optim.SGD(
        groups, lr=course.lr, momentum=course.momentum, nesterov=course.momentum > 0, weight_decay=WEIGHT_DECAY, fused=True
    )
    offset = 0
    for p in trained(net):
        optimizer.state[p]["momentum_buffer"] = momentum[offset : offset + p.numel()].view(p.shape)
        offset += p.numel()
    return optimizer


def work(make_net: Callable[[], Any], flat: Tensor, momentum: Tensor, course: Course, pipe: Connection) -> None:
    """A worker's life: take a step number, train on that batch, say so; until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal; the parent decides when we stop
    torch.set_num_threads(1)
    machine.keep_freed_memory()
    net = make_net()
    attach(net, flat)
    assert all(p.is_shared() for p in net.parameters())
    optimizer = make_optimizer(net, net.head, course, momentum)
    images = np.load(course.images, mmap_mode="r")
    try:
        while True:
            step = pipe.recv()
            pixels, labels = course.batch(step, images)
            for group in optimizer.param_groups:
                group["lr"] = course.lr_at(step) * group["lr_scale"]
            logits = net(pixels)
            loss = F.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            pipe.send(Result(step, len(labels), loss.item(), int((logits.argmax(1) == labels).sum())))
    except (EOFError, BrokenPipeError):  # the parent has closed its end, or is gone
        return


class Slot:
    """One worker's place: its process, our end of its pipe, and the steps it has been given and not yet answered."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments
        self.given: deque[int] = deque()
        self.deaths = 0
        self.start()

    def start(self) -> None:
        self.pipe, theirs = context().Pipe()
        self.process = context().Process(target=work, args=(*self.arguments, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, step: int) -> None:
        self.given.append(step)
        with suppress(BrokenPipeError):  # it has just died; its steps are handed out again when that is noticed
            self.pipe.send(step)


def context() -> Any:
    """A server process that has imported all a worker needs and computed nothing; workers are forked from it."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["hogwear.hogwild"])
    return forkserver


class Workers:
    """P processes training `net`; a context manager that leaves none behind.

    `momentum` is (P, trained parameters) float32 in shared memory, row r private to worker r.
    """

    def __init__(self, make_net: Callable[[], Any], flat: Tensor, momentum: Tensor, course: Course) -> None:
        assert flat.is_shared() and momentum.is_shared()
        self.slots = [Slot((make_net, flat, row, course)) for row in momentum]

    def train(self, steps: Iterable[int], pause: Callable[[], bool]) -> Iterator[Result]:
        """Hand out `steps`, yield each result as it comes; once `pause()` is true hand out no more.

        Ends when everything that was handed out is done, so what has been trained is always a prefix of `steps`.
        Raises BadInput when the same worker dies three times in a row.
        """
        waiting = deque(steps)
        while True:
            paused = pause()
            for slot in sorted(self.slots, key=lambda slot: len(slot.given)):
                while not paused and waiting and len(slot.given) < QUEUED:
                    slot.give(waiting.popleft())
            busy = [slot for slot in self.slots if slot.given]
            if not busy:
                return
            by_handle = {handle: slot for slot in busy for handle in (slot.pipe, slot.process.sentinel)}
            ready = {id(by_handle[h]): by_handle[h] for h in wait(list(by_handle), timeout=1.0)}
            for slot in ready.values():
                try:
                    result = slot.pipe.recv() if slot.pipe.poll() else None
                except (EOFError, ConnectionResetError):
                    result = None
                if result is not None:
                    slot.given.remove(result.step)
                    slot.deaths = 0
                    yield result
                elif not slot.process.is_alive():
                    self.replace(slot)

    def replace(self, slot: Slot) -> None:
        """A new process for a dead one, with the same steps to do."""
        slot.process.join()
        slot.pipe.close()
        slot.deaths += 1
        if slot.deaths == DEATHS_IN_A_ROW:
            code = slot.process.exitcode
            why = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
            raise BadInput(f"a worker died {DEATHS_IN_A_ROW} times in a row ({why}); if that is SIGKILL, memory ran out: use fewer --workers")
        steps, slot.given = slot.given, deque()
        slot.start()
        for step in steps:
            slot.give(step)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        for slot in self.slots:
            slot.pipe.close()
        for slot in self.slots:
            slot.process.join(timeout=5)
            slot.process.kill()
            slot.process.join()
