"""The parameters of a network in shared memory, where several processes see and change the same ones."""

import torch
from torch import Tensor, nn

from hogwear.system import machine


def share(net: nn.Module) -> None:
    """Move all parameters into one tensor in shared memory, of which they become views."""
    machine.require_shared_memory(sum(p.nbytes for p in net.parameters()))
    parameters = list(net.parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in parameters]).share_memory_()
    for p, view in zip(parameters, views(flat, parameters), strict=True):
        p.data = view


def share_momentum(net: nn.Module, workers: int, saved: Tensor | None) -> Tensor:
    """(workers, trained parameters) momentum buffers in shared memory; `saved` ones go on, as far as there are workers."""
    shape = (workers, sum(p.numel() for p in trained(net)))
    machine.require_shared_memory(4 * shape[0] * shape[1])
    buffers = torch.zeros(shape).share_memory_()
    if saved is not None:
        count = min(workers, len(saved))
        buffers[:count] = saved[:count]
    return buffers


def trained(net: nn.Module) -> list[nn.Parameter]:
    return [p for p in net.parameters() if p.requires_grad]


def views(flat: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """`flat` as tensors of the parameters' shapes, one after the other."""
    parts = flat.split([p.numel() for p in parameters])
    return [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]
