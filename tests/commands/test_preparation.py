"""What train prints before it trains."""

import pytest

from hogwear.commands.preparation import print_plan
from hogwear.system import machine
from hogwear.training.hyperparameters import Hyperparameters


@pytest.mark.parametrize(
    ("length", "hyperparameters"),
    [
        ("while val loss falls", Hyperparameters(image_size=1024, batch_size=4096)),
        ("10000 epochs", Hyperparameters(image_size=1024, batch_size=4096, epochs=10_000)),
        ("for 86400 s", Hyperparameters(image_size=1024, batch_size=4096, time_budget=86_400)),
    ],
)
def test_the_plan_fits_into_a_line_of_a_terminal(
    length: str,
    hyperparameters: Hyperparameters,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(machine, "cpus", lambda: 64)
    print_plan(hyperparameters, 64)
    line = capsys.readouterr().out.rstrip("\n")
    assert line == (
        f"Plan: efficientnet_lite0 at 1024 px, {length}, batch size 4096, 64 workers on 64 CPUs."
    )
    assert len(line) <= 100
