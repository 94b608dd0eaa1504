"""The layers of a network for CPUs. All take and return (B, H, W, C).

Frozen weights are kept in oneDNN's own layout; ReLU6 and residual sums are part of the convolution
(docs/decisions/fused-trunk.md).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hogwear.networks import kernels
from hogwear.networks.kernels import Operands, PlainConvolution


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Rows to add before and after for ceil(size / stride) rows out: TensorFlow's "same"."""
    total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


class FrozenDepthwise(torch.autograd.Function):
    """A depthwise `Conv` with its ReLU6: gradients for the input, none for the weights.

    The input's gradient is a forward convolution, too: of the output's gradient, spread out by the
    stride, with the kernel turned by 180 degrees. oneDNN's forward kernels are 2 to 4 times as fast
    as its backward ones, and the gradient of the weights, which would cost as much as 15 forward
    passes, is never computed (docs/decisions/frozen-depthwise.md).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: "Conv") -> Tensor:
        y = fused_conv(x, layer, relu6=True)
        ctx.layer, ctx.shape = layer, x.shape
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (y,), layer = ctx.saved_tensors, ctx.layer
        _, height, width, channels = ctx.shape
        stride, kernel_size = layer.stride, layer.kernel_size
        weight = layer.weight.to(y.dtype).flip(2, 3)
        grad = kernels.relu6_backward(grads[0], y).permute(0, 3, 1, 2)  # (B, C, H/stride, W/stride)
        if stride == 1:
            x_grad = F.conv2d(grad, weight, None, 1, kernel_size // 2, groups=channels)
            return x_grad.permute(0, 2, 3, 1), None
        top, left = (
            kernel_size - 1 - same_padding(size, kernel_size, stride)[0] for size in (height, width)
        )
        shape = len(grad), height + kernel_size - 1, width + kernel_size - 1, channels
        spread = grad.new_zeros(shape).permute(0, 3, 1, 2)
        rows = slice(top, top + grad.shape[2] * stride, stride)
        columns = slice(left, left + grad.shape[3] * stride, stride)
        spread[:, :, rows, columns] = grad
        return F.conv2d(spread, weight, groups=channels).permute(0, 2, 3, 1), None


PACKED_SIZES = 4  # of inputs, that a layer keeps packed operands for; training alternates between 2

# Packed operands by the kernel, the dtype and size of the input, and the version of the weights.
Packed = dict[tuple[object, ...], Operands]


class Conv(nn.Module):
    """A frozen convolution with "same" padding, followed by ReLU6."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int = 1
    ) -> None:
        super().__init__()
        weight = torch.zeros(out_channels, in_channels // groups, kernel_size, kernel_size)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(out_channels), requires_grad=False)
        self.kernel_size, self.stride, self.groups = kernel_size, stride, groups
        self.packed: Packed = {}

    def forward(self, x: Tensor) -> Tensor:
        return FrozenDepthwise.apply(x, self)


class Pointwise(nn.Linear):
    """A 1x1 convolution, in the dtype of its input. With gradients it is a matrix product."""

    kernel_size, stride, groups = 1, 1, 1

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.packed: Packed = {}

    def forward(self, input: Tensor, relu6: bool = False, residual: Tensor | None = None) -> Tensor:
        if not torch.is_grad_enabled():
            return fused_conv(input, self, relu6, residual)
        y = F.linear(input, self.weight.to(input.dtype), self.bias.to(input.dtype))
        if relu6:
            y = F.relu6(y)
        return y if residual is None else residual + y


def fused_conv(
    x: Tensor, layer: Conv | Pointwise, relu6: bool, residual: Tensor | None = None
) -> Tensor:
    """A layer followed by ReLU6 or the sum with `residual`, without gradients."""
    kernel_size, stride, groups = layer.kernel_size, layer.stride, layer.groups
    x = x.permute(0, 3, 1, 2)  # (B, C, H, W), channels_last
    kernel = kernels.convolution if x.dtype in kernels.FUSED_DTYPES else PlainConvolution
    version = layer.weight.data_ptr(), layer.weight._version
    key = *version, kernel, x.dtype, x.shape[2:]
    (top, bottom), (left, right) = (same_padding(size, kernel_size, stride) for size in x.shape[2:])
    zeros = 0, 0
    if groups > 1:  # zeros before the kernel are cheaper than a padded copy of x
        zeros = right - left, bottom - top
    elif (top, left) != (bottom, right):
        x, bottom, right = F.pad(x, (left, right, top, bottom)), 0, 0
    operands = layer.packed.get(key)
    if operands is None:
        weight = layer.weight if layer.weight.dim() == 4 else layer.weight[:, :, None, None]
        weight = F.pad(weight.to(x.dtype), (zeros[0], 0, zeros[1], 0))
        weight = weight.contiguous(memory_format=torch.channels_last)
        operands = Operands(weight, layer.bias.to(x.dtype), (bottom, right), stride, groups)
        if not layer.weight.requires_grad:  # frozen: packed once per size, until the weight changes
            operands = kernel.pack(operands, x.shape)
            kept = [item for item in layer.packed.items() if item[0][:2] == version]
            layer.packed = dict([*kept[1 - PACKED_SIZES :], (key, operands)])
    if residual is not None:
        residual = residual.permute(0, 3, 1, 2)
    return kernel.apply(x, operands, relu6, residual).permute(0, 2, 3, 1)
