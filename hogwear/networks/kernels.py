"""Private PyTorch operations that are faster on CPUs, each beside a plain reference.

Any release of PyTorch may change or drop a private operation. Each is therefore tried on a small
example when this module is imported. Where one is missing, raises or gives other numbers, its
reference takes its place, and the reason is printed once.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOLERANCE = 1e-4  # of a result in the examples, which are of the order of 1
Kernel = TypeVar("Kernel")


def select(fast: Kernel, reference: Kernel, example: Callable[[Kernel], Tensor]) -> Kernel:
    """`fast`, or `reference` where `example(fast)` raises or differs from `example(reference)`."""
    try:
        with single_thread(), torch.no_grad():
            difference = float((example(fast) - example(reference)).abs().max())
        if difference <= TOLERANCE:
            return fast
        reason = f"its result is off by {difference:.1g}"
    except Exception as error:  # a private operation may fail in any way
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    name = getattr(fast, "__name__", str(fast))
    print(
        f"Warning: {name} does not work here ({reason}); using a slower operation instead",
        file=sys.stderr,
    )
    return reference


@contextmanager
def single_thread() -> Iterator[None]:
    """Compute without a thread pool, which would make it unsafe to fork workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def random_tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    """For the examples; the same numbers every time."""
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random) for shape in shapes]


# --- Convolution with ReLU6 and a residual in the same pass over memory


class Geometry(NamedTuple):
    """The geometry of a convolution."""

    padding: tuple[int, int]  # rows above and below, columns left and right
    stride: int
    groups: int


class PlainConvolution:
    """A convolution over (B, C, H, W), followed by ReLU6 or by adding a residual."""

    @staticmethod
    def pack(weight: Tensor, geometry: Geometry, input_shape: Sequence[int]) -> Tensor:
        """Prepare a frozen weight for many calls of `apply` with inputs of about this shape."""
        return weight

    @staticmethod
    def apply(
        x: Tensor,
        operands: tuple[Tensor, Tensor],
        geometry: Geometry,
        relu6: bool,
        residual: Tensor | None,
    ) -> Tensor:
        """x (B, C, H, W), operands (weight, bias) in its dtype -> (B, D, H', W')."""
        padding, stride, groups = geometry
        y = F.conv2d(x, *operands, stride, padding, groups=groups)
        if relu6:
            y = F.relu6(y)
        return y if residual is None else y + residual


class OneDNNConvolution(PlainConvolution):
    """The same as one oneDNN primitive with post-ops, the operation that torch.compile emits.

    Called directly, it needs no compiler. The trunk gains a third (docs/decisions/fused-trunk.md).
    """

    @staticmethod
    def pack(weight: Tensor, geometry: Geometry, input_shape: Sequence[int]) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_weight(
            weight, *expanded(geometry), list(input_shape)
        )

    @staticmethod
    def apply(
        x: Tensor,
        operands: tuple[Tensor, Tensor],
        geometry: Geometry,
        relu6: bool,
        residual: Tensor | None,
    ) -> Tensor:
        arguments = *operands, *expanded(geometry)
        if residual is not None:
            return torch.ops.mkldnn._convolution_pointwise.binary(
                x, residual, *arguments, "add", 1.0, None, [], None
            )
        post_op = ("hardtanh", [0.0, 6.0], "") if relu6 else ("none", [], "")
        return torch.ops.mkldnn._convolution_pointwise(x, *arguments, *post_op)


def expanded(geometry: Geometry) -> tuple[list[int], list[int], list[int], int]:
    """Padding, stride, dilation and groups, as oneDNN's operations take them."""
    return list(geometry.padding), [geometry.stride] * 2, [1, 1], geometry.groups


def convolution_example(kernel: type[PlainConvolution]) -> Tensor:
    """Depthwise with ReLU6, then pointwise with a residual."""
    x, depthwise, bias, pointwise = random_tensors((2, 8, 6, 6), (8, 1, 3, 3), (8,), (8, 8, 1, 1))
    channels_last = x.contiguous(memory_format=torch.channels_last)
    first, second = Geometry((1, 1), 1, 8), Geometry((0, 0), 1, 1)
    y = kernel.apply(
        channels_last, (kernel.pack(depthwise, first, x.shape), bias), first, True, None
    )
    return kernel.apply(y, (pointwise, bias), second, False, channels_last)


convolution = select(OneDNNConvolution, PlainConvolution, convolution_example)
FUSED_DTYPES = (torch.float32, torch.bfloat16)  # that the fast one takes


# --- The gradient of ReLU6


def plain_relu6_backward(grad: Tensor, y: Tensor) -> Tensor:
    """The gradient of the input of y = relu6(x), from the gradient of y."""
    return torch.where((y > 0) & (y < 6), grad, 0)


def hardtanh_backward(grad: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.hardtanh_backward(grad, y, 0.0, 6.0)


def relu6_backward_example(kernel: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    x, grad = random_tensors((64,), (64,))
    return kernel(grad, F.relu6(6 * x))


relu6_backward = select(hardtanh_backward, plain_relu6_backward, relu6_backward_example)


# --- SGD


def plain_sgd_step(
    parameters: list[nn.Parameter],
    buffers: list[Tensor],
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """One step of SGD with Nesterov momentum and weight decay, in place.

    `buffers` are the momentum of the parameters, which must have gradients.
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


SgdStep = Callable[[list[nn.Parameter], list[Tensor], float, float, float], None]


def sgd_example(kernel: SgdStep) -> Tensor:
    """Two steps with momentum, one without."""
    weight, gradient, buffer = random_tensors((8, 4), (8, 4), (8, 4))
    p = nn.Parameter(weight)
    p.grad = gradient
    for momentum in (0.9, 0.9, 0.0):
        kernel([p], [buffer], 0.1, momentum, 0.01)
    return torch.cat([p.detach(), buffer])


sgd_step: SgdStep = select(fused_sgd_step, plain_sgd_step, sgd_example)


# --- Norms and scaling of many tensors at once


def plain_norms(tensors: list[Tensor]) -> Tensor:
    """The L2 norm of each tensor, (len(tensors),)."""
    return torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors])


def foreach_norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors))


norms = select(foreach_norms, plain_norms, lambda kernel: kernel(random_tensors((8, 4), (3,))))


def plain_scale(tensors: list[Tensor], factors: Tensor) -> None:
    """Multiply each tensor by its factor, (len(tensors),), in place."""
    for tensor, factor in zip(tensors, factors, strict=True):
        tensor.mul_(factor)


def foreach_scale(tensors: list[Tensor], factors: Tensor) -> None:
    torch._foreach_mul_(tensors, list(factors.unbind()))


def scale_example(kernel: Callable[[list[Tensor], Tensor], None]) -> Tensor:
    tensors = random_tensors((8, 4), (3,))
    kernel(tensors, torch.tensor([0.5, 2.0]))
    return torch.cat([tensor.flatten() for tensor in tensors])


scale = select(foreach_scale, plain_scale, scale_example)
