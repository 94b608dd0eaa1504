"""The parameters of a network in shared memory, where all worker processes update the same ones."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hogwear.system import machine


def share_parameters(net: nn.Module) -> None:
    """Move all parameters into one tensor in shared memory and make each of them a view of it.

    BadInput where /dev/shm is too small.
    """
    machine.require_shared_memory(sum(p.nbytes for p in net.parameters()))
    parameters = list(net.parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in parameters]).share_memory_()
    for p, view in zip(parameters, unflatten_like(flat, parameters), strict=True):
        p.data = view


@dataclass(frozen=True)
class OptimizerState:
    """What training keeps besides the parameters. All is float32."""

    momentum: Tensor  # (workers, trained parameters)
    average: Tensor  # (trained parameters,), of the weights so far

    @classmethod
    def create(cls, net: nn.Module, workers: int) -> "OptimizerState":
        """In shared memory: no momentum, and the present weights as their average.

        BadInput where /dev/shm is too small.
        """
        parameters = trained_parameters(net)
        size = sum(p.numel() for p in parameters)
        machine.require_shared_memory(4 * (workers + 1) * size)
        average = torch.cat([p.detach().reshape(-1) for p in parameters])
        return cls(torch.zeros(workers, size).share_memory_(), average.share_memory_())

    @property
    def is_finite(self) -> bool:
        """Whether nothing is NaN or infinite."""
        return all(bool(each.isfinite().all()) for each in (self.momentum, self.average))

    def for_worker(self, rank: int) -> "OptimizerState":
        """The row of momentum that belongs to a worker, (1, trained parameters)."""
        return OptimizerState(self.momentum[rank : rank + 1], self.average)

    def clone(self) -> "OptimizerState":
        return OptimizerState(self.momentum.clone(), self.average.clone())

    def copy_(self, other: "OptimizerState") -> None:
        """Take over another state, with the momentum of as many workers as both have."""
        workers = min(len(self.momentum), len(other.momentum))
        self.momentum.zero_()[:workers] = other.momentum[:workers]
        self.average.copy_(other.average)

    @contextmanager
    def averaged(self, net: nn.Module) -> Iterator[None]:
        """For a while, the network has the averaged weights. No worker may be training."""
        parameters = trained_parameters(net)
        live = [p.detach().clone() for p in parameters]
        set_parameters(parameters, unflatten_like(self.average, parameters))
        try:
            yield
        finally:
            set_parameters(parameters, live)


def set_parameters(parameters: list[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Copy the values into the parameters, in place."""
    with torch.no_grad():
        for p, value in zip(parameters, values, strict=True):
            p.copy_(value)


def trained_parameters(net: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen."""
    return [p for p in net.parameters() if p.requires_grad]


def unflatten_like(flat: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Split `flat` into consecutive views with the shapes of the parameters."""
    parts = flat.split([p.numel() for p in parameters])
    return [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]
