"""Private PyTorch operations that are faster on CPUs, each beside a plain reference.

Any release of PyTorch may change or drop a private operation. Each is therefore tried on a small
example when this module is imported. Where one is missing, raises or gives other numbers, its
reference takes its place, and the reason is printed once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hogwear.system.text import warn

TOLERANCE = 1e-4  # of the results of examples, which are of the order of 1
FUSED_DTYPES = (torch.float32, torch.bfloat16)  # that OneDNNConvolution computes in

Kernel = TypeVar("Kernel")
SgdStep = Callable[[list[nn.Parameter], list[Tensor], float, float, float], None]


def select(fast: Kernel, reference: Kernel, example: Callable[[Kernel], Tensor]) -> Kernel:
    """`fast`, or `reference` where `example(fast)` raises or differs from `example(reference)`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a pool of threads would make it unsafe to fork workers
    try:
        with torch.no_grad():
            difference = float((example(fast) - example(reference)).abs().max())
        if difference <= TOLERANCE:
            return fast
        reason = f"its result is off by {difference:.1g}"
    except Exception as error:  # a private operation may fail in any way
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    finally:
        torch.set_num_threads(threads)
    name = getattr(fast, "__name__", str(fast))
    warn(f"{name} does not work here ({reason}); using a slower operation instead")
    return reference


def random_tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    """The same numbers every time, for the examples."""
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random) for shape in shapes]


# --- Convolution with ReLU6 or a residual in the same pass over memory


@dataclass(frozen=True)
class Operands:
    """The operands of a convolution besides its input, in the input's dtype."""

    weight: Tensor
    bias: Tensor
    padding: tuple[int, int]  # rows above and below, columns left and right
    stride: int
    groups: int


class PlainConvolution:
    """A convolution over (B, C, H, W), followed by ReLU6 or by adding a residual."""

    @staticmethod
    def pack(operands: Operands, input_shape: Sequence[int]) -> Operands:
        """Prepare frozen operands for many calls of `apply` with inputs of about this shape."""
        return operands

    @staticmethod
    def apply(x: Tensor, operands: Operands, relu6: bool, residual: Tensor | None) -> Tensor:
        """(B, C, H, W) -> (B, D, H', W'), without gradients."""
        o = operands
        y = F.conv2d(x, o.weight, o.bias, o.stride, o.padding, groups=o.groups)
        if relu6:
            y = F.relu6(y)
        return y if residual is None else y + residual


class OneDNNConvolution(PlainConvolution):
    """The same as one oneDNN primitive with post-ops, the operation that torch.compile emits.

    Called directly, it needs no compiler. The trunk gains a third (docs/decisions/fused-trunk.md).
    """

    @staticmethod
    def pack(operands: Operands, input_shape: Sequence[int]) -> Operands:
        weight = torch.ops.mkldnn._reorder_convolution_weight(
            operands.weight, *geometry(operands), list(input_shape)
        )
        return replace(operands, weight=weight)

    @staticmethod
    def apply(x: Tensor, operands: Operands, relu6: bool, residual: Tensor | None) -> Tensor:
        arguments = operands.weight, operands.bias, *geometry(operands)
        if residual is not None:
            return torch.ops.mkldnn._convolution_pointwise.binary(
                x, residual, *arguments, "add", 1.0, None, [], None
            )
        post_op = ("hardtanh", [0.0, 6.0], "") if relu6 else ("none", [], "")
        return torch.ops.mkldnn._convolution_pointwise(x, *arguments, *post_op)


def geometry(operands: Operands) -> tuple[list[int], list[int], list[int], int]:
    """Padding, stride, dilation and groups."""
    return list(operands.padding), [operands.stride] * 2, [1, 1], operands.groups


def convolution_example(kernel: type[PlainConvolution]) -> Tensor:
    """A depthwise convolution with ReLU6, then a pointwise one with a residual."""
    x, depthwise, bias, pointwise = random_tensors((2, 8, 6, 6), (8, 1, 3, 3), (8,), (8, 8, 1, 1))
    x = x.contiguous(memory_format=torch.channels_last)
    packed = kernel.pack(Operands(depthwise, bias, (1, 1), 1, 8), x.shape)
    y = kernel.apply(x, packed, True, None)
    return kernel.apply(y, Operands(pointwise, bias, (0, 0), 1, 1), False, x)


convolution = select(OneDNNConvolution, PlainConvolution, convolution_example)


# --- The gradient of ReLU6


def plain_relu6_backward(grad: Tensor, y: Tensor) -> Tensor:
    """The gradient of x, where y = relu6(x), from the gradient of y."""
    return torch.where((y > 0) & (y < 6), grad, 0)


def hardtanh_backward(grad: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.hardtanh_backward(grad, y, 0.0, 6.0)


relu6_backward = select(
    hardtanh_backward, plain_relu6_backward, lambda kernel: kernel(*random_tensors((64,), (64,)))
)


# --- SGD


def plain_sgd_step(
    parameters: list[nn.Parameter],
    buffers: list[Tensor],
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """One step of SGD with Nesterov momentum and weight decay, in place.

    `buffers` hold the momentum of the parameters, all of which must have gradients.
    """
    with torch.no_grad():
        for p, gradient, buffer in zip(parameters, gradients_of(parameters), buffers, strict=True):
            update = gradient.add(p, alpha=weight_decay)
            if momentum:
                buffer.mul_(momentum).add_(update)
                update.add_(buffer, alpha=momentum)
            p.add_(update, alpha=-lr)


def fused_sgd_step(
    parameters: list[nn.Parameter],
    buffers: list[Tensor],
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """The operation behind torch.optim.SGD(fused=True).

    That class imports torch's compiler when it is first used: a second of CPU time per worker.
    """
    torch._fused_sgd_(
        [p.detach() for p in parameters],
        gradients_of(parameters),
        buffers if momentum else [],
        lr=lr,
        momentum=momentum,
        nesterov=momentum > 0,
        weight_decay=weight_decay,
        dampening=0.0,
        maximize=False,
        is_first_step=False,
    )


def gradients_of(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def sgd_example(kernel: SgdStep) -> Tensor:
    """Two steps with momentum, one without."""
    weight, gradient, buffer = random_tensors((8, 4), (8, 4), (8, 4))
    p = nn.Parameter(weight)
    p.grad = gradient
    for momentum in (0.9, 0.9, 0.0):
        kernel([p], [buffer], 0.1, momentum, 0.01)
    return torch.cat([p.detach(), buffer])


sgd_step: SgdStep = select(fused_sgd_step, plain_sgd_step, sgd_example)
