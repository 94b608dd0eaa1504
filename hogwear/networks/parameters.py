"""The parameters of a network in shared memory, where all worker processes update the same ones."""

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


def create_momentum_buffers(net: nn.Module, workers: int, saved: Tensor | None) -> Tensor:
    """Momentum in shared memory: (workers, trained parameters) float32.

    The rows of `saved` are copied, as many as there are workers; the other rows are zeros.
    BadInput where /dev/shm is too small.
    """
    shape = (workers, sum(p.numel() for p in trained_parameters(net)))
    machine.require_shared_memory(4 * shape[0] * shape[1])
    buffers = torch.zeros(shape).share_memory_()
    if saved is not None:
        count = min(workers, len(saved))
        buffers[:count] = saved[:count]
    return buffers


def trained_parameters(net: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen."""
    return [p for p in net.parameters() if p.requires_grad]


def unflatten_like(flat: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Split `flat` into consecutive views with the shapes of the parameters."""
    parts = flat.split([p.numel() for p in parameters])
    return [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]
