"""The layers: gradients equal to autograd's, and packed weights that follow the weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import FAST, ForkedCall, decode_some, pretrained_network

from hogwear.networks import kernels, layers


def depthwise_case(stride: int, kernel: int, height: int, width: int) -> tuple[Any, Any, Any]:
    """How far our output is from a plain convolution's, and the input's gradients: ours and autograd's; as arrays."""
    random = torch.Generator().manual_seed(0)
    conv = layers.Conv(4, 4, kernel, stride, groups=4).double()
    for p in conv.parameters():
        p.data = torch.randn(p.shape, generator=random, dtype=torch.float64)
    x = torch.randn(
        (2, height, width, 4), generator=random, dtype=torch.float64, requires_grad=True
    )
    y = conv(x)
    out = torch.randn(y.shape, generator=random, dtype=torch.float64)  # the gradient of the output
    pads = []
    for size in (width, height):  # F.pad begins with the last dimension
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    plain = F.relu6(
        F.conv2d(F.pad(x.permute(0, 3, 1, 2), pads), conv.weight, conv.bias, stride, groups=4)
    ).permute(0, 2, 3, 1)
    [ours], [expected] = torch.autograd.grad(y, x, out), torch.autograd.grad(plain, x, out)
    return (y - plain).detach().numpy(), ours.numpy(), expected.numpy()


DEPTHWISE = [
    (stride, kernel, *size)
    for stride in (1, 2)
    for kernel in (3, 5)
    for size in ((8, 8), (7, 9), (5, 12), (1, 2))
]


@pytest.fixture(scope="module")
def depthwise_cases() -> dict[tuple[int, ...], tuple[Any, Any, Any]]:
    return ForkedCall(lambda: {case: depthwise_case(*case) for case in DEPTHWISE}).result()


@pytest.mark.parametrize(
    "case", DEPTHWISE, ids="stride {0[0]}, kernel {0[1]}, {0[2]}x{0[3]}".format
)
def test_a_depthwise_gradient_equals_autograds(
    case: tuple[int, ...], depthwise_cases: dict[Any, Any]
) -> None:
    between, ours, expected = depthwise_cases[case]
    assert np.abs(between).max() < 1e-12
    assert np.abs(expected).max() > 0.1
    assert np.abs(ours - expected).max() < 1e-12


def test_packed_weights_of_frozen_layers_follow_the_weights(photo_files: list[Path]) -> None:
    net = pretrained_network(5, FAST)
    small, large = (torch.from_numpy(decode_some(photo_files, 3, size)) for size in (64, 65))
    other = pretrained_network(5, FAST)
    other.load_state_dict({name: 0.9 * p for name, p in net.state_dict().items()})
    fresh = [pretrained_network(5, FAST) for _ in range(2)]
    with torch.inference_mode():
        assert torch.equal(net(small), fresh[0](small)) and net.last.packed
        assert torch.equal(net(large), fresh[1](large)), "another padding"
        net.load_state_dict(other.state_dict())
        assert torch.equal(net(small), other(small))


def test_frozen_weights_are_packed_once_for_each_input_size(
    photo_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN wants another layout for another size, and reorders a wrong one in every call."""
    packed_for: list[tuple[int, ...]] = []
    pack = kernels.convolution.pack

    def count(operands: kernels.Operands, input_shape: Sequence[int]) -> kernels.Operands:
        packed_for.append(tuple(input_shape))
        return pack(operands, input_shape)

    monkeypatch.setattr(kernels.convolution, "pack", count)
    net = pretrained_network(5, FAST)
    net.requires_grad_(False)
    images = {size: torch.from_numpy(decode_some(photo_files, 1, size)) for size in (64, 96, 128)}
    with torch.inference_mode():
        for size in (64, 96, 64, 128, 96, 64):
            net(images[size])
    assert len(packed_for) == 3 * sum(
        isinstance(layer, layers.Conv | layers.Pointwise) for layer in net.modules()
    )


def test_a_layer_keeps_packed_weights_for_a_few_sizes_only() -> None:
    layer = layers.Conv(4, 4, 3, 1, groups=4)
    with torch.inference_mode():
        for size in range(1, 20):
            layer(torch.zeros(1, size, size, 4))
        assert len(layer.packed) == layers.PACKED_SIZES
        layer.weight.data = layer.weight.data.clone()
        layer(torch.zeros(1, 1, 1, 4))
        assert len(layer.packed) == 1, "of other weights, none are kept"
