"""Private operations of PyTorch and their references: the same numbers, and training without them."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CLASSES, ROOT, SMALL_RUN, Call, at, saved
from torch import Tensor

import model
import train
from hogwear.networks import kernels
from hogwear.networks.kernels import Operands, PlainConvolution, random_tensors, select
from hogwear.training.history import HOGWILD

REFERENCES: dict[str, Any] = {
    "convolution": PlainConvolution,
    "relu6_backward": kernels.plain_relu6_backward,
    "sgd_step": kernels.plain_sgd_step,
}


@pytest.fixture
def references_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, reference in REFERENCES.items():
        monkeypatch.setattr(kernels, name, reference)


def test_this_version_of_pytorch_has_all_the_fast_operations() -> None:
    assert [name for name in REFERENCES if getattr(kernels, name) is REFERENCES[name]] == []


@pytest.mark.parametrize(
    "kernel_size, stride, groups", [(1, 1, 1), (3, 2, 1), (3, 1, 12), (5, 2, 12)]
)
@pytest.mark.parametrize("relu6", [True, False])
def test_a_fused_convolution_equals_its_reference(
    kernel_size: int, stride: int, groups: int, relu6: bool
) -> None:
    x, weight, bias = random_tensors(
        (3, 12, 11, 9), (12, 12 // groups, kernel_size, kernel_size), (12,)
    )
    x = 3 * x.contiguous(memory_format=torch.channels_last)
    padding = kernel_size // 2
    operands = Operands(weight, bias, (padding, padding), stride, groups)
    fast, reference = (
        kernel.apply(x, kernel.pack(operands, x.shape), relu6, None)
        for kernel in (kernels.OneDNNConvolution, PlainConvolution)
    )
    assert reference.std() > 1 and (reference.max() == 6) == relu6
    assert torch.allclose(fast, reference, atol=1e-4)


def test_a_fused_residual_equals_its_reference() -> None:
    x, weight, bias, residual = random_tensors((2, 8, 5, 7), (6, 8, 1, 1), (6,), (2, 6, 5, 7))
    channels_last = [t.contiguous(memory_format=torch.channels_last) for t in (x, residual)]
    operands = Operands(weight, bias, (0, 0), 1, 1)
    fast, reference = (
        kernel.apply(channels_last[0], operands, False, channels_last[1])
        for kernel in (kernels.OneDNNConvolution, PlainConvolution)
    )
    assert torch.allclose(fast, reference, atol=1e-5)
    assert not torch.allclose(reference, reference - residual, atol=0.1)


def test_the_gradient_of_relu6_is_autograds() -> None:
    grad, values = random_tensors((1000,), (1000,))
    for kernel in (kernels.hardtanh_backward, kernels.plain_relu6_backward):
        expected = torch.where((values > 0) & (values < 1), grad, 0)
        assert torch.equal(kernel(grad, (6 * values).clamp(0, 6)), expected)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("kernel", [kernels.fused_sgd_step, kernels.plain_sgd_step])
def test_a_step_of_sgd_equals_torchs_optimizer(kernel: kernels.SgdStep, momentum: float) -> None:
    shapes = (8, 4), (5,)
    ours, theirs = ([torch.nn.Parameter(t) for t in random_tensors(*shapes)] for _ in range(2))
    buffers = [torch.zeros_like(p) for p in ours]
    optimizer = torch.optim.SGD(
        theirs, lr=0.1, momentum=momentum, weight_decay=0.01, nesterov=momentum > 0
    )
    for step in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = (step + 1) * p.detach().cos()
            q.grad = p.grad.clone()
        kernel(ours, buffers, 0.1, momentum, 0.01)
        optimizer.step()
    for p, q, start in zip(ours, theirs, random_tensors(*shapes), strict=True):
        assert torch.allclose(p, q, atol=1e-6) and not torch.allclose(p, start, atol=0.1)


def missing_operation(x: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn.no_longer_there(x)
    return result


def wrong_operation(x: Tensor) -> Tensor:
    return 1.01 * x


@pytest.mark.parametrize(
    "fast, reason",
    [
        (missing_operation, "AttributeError: '_OpNamespace' 'mkldnn' object has no attribute"),
        (wrong_operation, "its result is off by 0.01"),
    ],
)
def test_an_operation_that_fails_is_replaced_and_the_reason_is_printed(
    fast: Callable[[Tensor], Tensor], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def reference(x: Tensor) -> Tensor:
        return x

    def example(kernel: Callable[[Tensor], Tensor]) -> Tensor:
        return kernel(torch.ones(3))

    assert select(fast, reference, example) is reference
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Warning: {fast.__name__} does not work here ({reason}")
    assert select(reference, reference, example) is reference and capsys.readouterr().err == ""


WITHOUT_THEM = """
import torch
torch._fused_sgd_ = None
torch.ops.mkldnn._convolution_pointwise = torch.relu
torch.ops.aten.hardtanh_backward = None
from hogwear.networks import kernels
"""


def test_a_pytorch_without_the_operations_is_noticed_at_import() -> None:
    code = WITHOUT_THEM + "\n".join(f"print(kernels.{name}.__name__)" for name in REFERENCES)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [reference.__name__ for reference in REFERENCES.values()]
    assert done.stderr.count("Warning: ") == len(REFERENCES) == done.stderr.count("\n")


def test_a_network_gives_the_same_logits_without_the_fast_operations(
    photo_files: list[Path], request: pytest.FixtureRequest
) -> None:
    torch.manual_seed(0)
    net = model.build("efficientnet_lite0", 5, 65).requires_grad_(False)
    net.load_pretrained()
    torch.nn.init.normal_(net.head.weight)
    pixels = torch.randint(0, 256, (3, 65, 65, 3), dtype=torch.uint8)
    with torch.inference_mode():
        fast = net(pixels)
        request.getfixturevalue("references_only")
        assert torch.allclose(net(pixels), fast, atol=1e-3), "packed weights are packed again"


@pytest.mark.long
def test_a_whole_training_run_works_without_the_fast_operations(
    data: Path, call: Call, references_only: None, tmp_path: Path
) -> None:
    answer = call(train, *SMALL_RUN, "--workers", 1, *at(data, tmp_path / "model", tmp_path / "c"))
    assert answer.code == 0, answer.stderr
    history: list[dict[str, Any]] = saved(tmp_path / "model")["history"]
    losses = [row["train_loss"] for row in history if row["stage"] == HOGWILD]
    assert losses[-1] < 0.5 * math.log(len(CLASSES)), "the loss of guessing"
    assert max(row["val_acc"] for row in history) > 0.7
