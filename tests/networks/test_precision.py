"""The choice of the dtype: measured once per CPU."""

from pathlib import Path

import pytest

import model
from hogwear.networks import precision


def test_the_fastest_dtype_is_measured_once_per_cpu(
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
