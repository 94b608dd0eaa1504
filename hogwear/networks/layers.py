"""The layers of a network for CPUs: convolutions whose frozen weights are kept as oneDNN wants them, with ReLU6 and sums in the same pass.

All take and give (B, H, W, C). Measurements: docs/decisions/fused-trunk.md and frozen-depthwise.md.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Rows to add before and after for ceil(size / stride) rows out: TensorFlow's "same", the weights' own."""
    total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


class FrozenConv(torch.autograd.Function):
    """A depthwise `Conv` with its ReLU6 that passes gradients on to its input and has none of its own.

    That gradient is a forward convolution too: the kernel turned by 180 degrees over the output's gradient, spread
    out by the stride. oneDNN's forward kernels are 2 to 4 times as fast as its backward ones here, and the kernel's
    own gradient, 15 times a forward pass, is never computed (docs/decisions/frozen-depthwise.md).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: "Conv") -> Tensor:
        y = fused(x, layer, relu6=True) if can_fuse(x) else layer.plain(x)
        ctx.layer, ctx.shape = layer, x.shape
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (y,), (_, height, width, channels) = ctx.saved_tensors, ctx.shape
        grad = torch.ops.aten.hardtanh_backward(grads[0], y, 0.0, 6.0).permute(
            0, 3, 1, 2
        )  # (B, C, H / stride, W / stride)
        turned, stride = ctx.layer.weight.to(y.dtype).flip(2, 3), ctx.layer.stride
        kernel_size = turned.shape[-1]
        if stride == 1:
            return F.conv2d(grad, turned, None, 1, kernel_size // 2, groups=channels).permute(
                0, 2, 3, 1
            ), None
        top, left = (
            kernel_size - 1 - same_padding(size, kernel_size, stride)[0] for size in (height, width)
        )
        spread = grad.new_zeros(
            len(grad), height + kernel_size - 1, width + kernel_size - 1, channels
        ).permute(0, 3, 1, 2)
        spread[
            :,
            :,
            top : top + grad.shape[2] * stride : stride,
            left : left + grad.shape[3] * stride : stride,
        ] = grad
        return F.conv2d(spread, turned, groups=channels).permute(0, 2, 3, 1), None


def can_fuse(x: Tensor) -> bool:
    """Whether gradients, the dtype and this build of torch leave the choice; the plain layers are the reference."""
    fits = x.dtype in (torch.bfloat16, torch.float32)
    return fits and not torch.is_grad_enabled() and torch.backends.mkldnn.is_available()


def fused(
    x: Tensor, layer: "Conv | Pointwise", relu6: bool, residual: Tensor | None = None
) -> Tensor:
    """A layer, its ReLU6 and the sum with `residual` in one pass over memory; (B, H, W, C) in and out, no gradients.

    This is the operation that torch.compile makes of them on CPUs, oneDNN's convolution with "post-ops"; called by
    hand, nothing needs compiling. The trunk gains a third by it (docs/decisions/fused-trunk.md).
    """
    kernel_size, stride, groups = layer.kernel_size, layer.stride, layer.groups
    x = x.permute(0, 3, 1, 2)  # (B, C, H, W), channels_last
    (top, bottom), (left, right) = (same_padding(size, kernel_size, stride) for size in x.shape[2:])
    if groups == 1:
        zeros = 0, 0
        if (top, left) != (bottom, right):
            x, bottom, right = F.pad(x, (left, right, top, bottom)), 0, 0
    else:
        zeros = (
            right - left,
            bottom - top,
        )  # before a depthwise kernel: cheaper than a padded copy of x
    geometry = [bottom, right], [stride, stride], [1, 1], groups
    weight, bias = operands(layer, x, geometry, zeros)
    if residual is None:
        post_op = ("hardtanh", [0.0, 6.0], "") if relu6 else ("none", [], "")
        y = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, *post_op)
    else:
        other = residual.permute(0, 3, 1, 2)
        y = torch.ops.mkldnn._convolution_pointwise.binary(
            x, other, weight, bias, *geometry, "add", 1.0, None, [], None
        )
    return y.permute(0, 2, 3, 1)


def operands(
    layer: "Conv | Pointwise", x: Tensor, geometry: tuple[Any, ...], zeros: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Weight, with so many columns and rows of zeros before it, and bias, as oneDNN takes them for x, (B, C, H, W).

    Those of a frozen layer are kept as they are needed, in oneDNN's own layout, until they change.
    """
    key = x.dtype, zeros, layer.weight.data_ptr(), layer.weight._version
    if layer.kept is not None and layer.kept[0] == key:
        return layer.kept[1:]
    weight = layer.weight if layer.weight.dim() == 4 else layer.weight[:, :, None, None]
    weight = F.pad(weight.to(x.dtype), (zeros[0], 0, zeros[1], 0)).contiguous(
        memory_format=torch.channels_last
    )
    bias = layer.bias.to(x.dtype)
    if not layer.weight.requires_grad:
        weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(x.shape))
        layer.kept = key, weight, bias
    return weight, bias


Kept = tuple[tuple[Any, ...], Tensor, Tensor]  # what it was made for, weight, bias; see `operands`


class Conv(nn.Module):
    """A convolution with "same" padding and its ReLU6, over (B, H, W, C), with weights that are not trained."""

    kept: Kept | None = None

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int = 1
    ) -> None:
        super().__init__()
        weight = torch.zeros(out_channels, in_channels // groups, kernel_size, kernel_size)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(out_channels), requires_grad=False)
        self.kernel_size, self.stride, self.groups = kernel_size, stride, groups

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = FrozenConv.apply(x, self)
        return y

    def plain(self, x: Tensor) -> Tensor:
        """The same in torch's own words."""
        x = x.permute(0, 3, 1, 2)  # (B, C, H, W), a channels_last view
        (top, bottom), (left, right) = (
            same_padding(size, self.kernel_size, self.stride) for size in x.shape[2:]
        )
        x = F.pad(x, (left, right, top, bottom))
        y = F.conv2d(
            x, self.weight.to(x.dtype), self.bias.to(x.dtype), self.stride, groups=self.groups
        )
        return F.relu6(y).permute(0, 2, 3, 1)


class Pointwise(nn.Linear):
    """A 1x1 convolution over (B, H, W, C), as the matrix product it is, in the dtype of its input."""

    kernel_size, stride, groups = 1, 1, 1
    kept: Kept | None = None

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype), self.bias.to(input.dtype))
