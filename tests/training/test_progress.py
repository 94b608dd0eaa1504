"""The training bar on a terminal."""

import io
from contextlib import redirect_stderr

import pytest

from hogwear.cluster.peers import SINGLE_MACHINE, SingleMachine
from hogwear.training.history import RunningMetrics
from hogwear.training.progress import TrainingBar

METRICS = RunningMetrics(images=60, loss=30.0, correct=40, seconds=0.5)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


def test_the_bar_has_the_speed_and_the_loss_that_the_epoch_line_will_have(
    terminal: Terminal,
) -> None:
    with redirect_stderr(terminal), TrainingBar(SINGLE_MACHINE) as bar:
        bar.update(60, 240, METRICS)
        bar.bar.refresh()
        shown = terminal.getvalue().rpartition("\r")[2]
    assert shown.startswith("training:  25%|") and " 60/240 images [" in shown
    assert "120 images/s, train loss 0.500]" in shown


def test_a_run_whose_end_depends_on_its_losses_has_no_time_left_to_show(
    terminal: Terminal,
) -> None:
    with redirect_stderr(terminal), TrainingBar(SINGLE_MACHINE) as bar:
        bar.update(60, None, METRICS)
        bar.bar.refresh()
        shown = terminal.getvalue().rpartition("\r")[2]
    assert shown.startswith("training: 60 images [00:0") and "%" not in shown and "?" not in shown
    assert shown.rstrip().endswith(", 120 images/s, train loss 0.500]")


def test_nothing_of_the_bar_stays_on_the_screen(terminal: Terminal) -> None:
    with redirect_stderr(terminal), TrainingBar(SINGLE_MACHINE) as bar:
        bar.update(240, 240, METRICS)
        assert "training:" in terminal.getvalue()
    assert terminal.getvalue().rpartition("\r")[2].strip() == ""


def test_the_bar_counts_the_images_of_all_machines(terminal: Terminal) -> None:
    cluster = SingleMachine()
    cluster.machines = 3
    with redirect_stderr(terminal), TrainingBar(cluster) as bar:
        bar.update(20, 80, METRICS)
        assert (bar.bar.n, bar.bar.total) == (60, 240)
        bar.update(5, 100, METRICS)
        assert (bar.bar.n, bar.bar.total) == (15, 300), "back after divergence, and a longer run"


def test_other_machines_than_rank_0_have_no_bar(terminal: Terminal) -> None:
    cluster = SingleMachine()
    cluster.rank = 1
    with redirect_stderr(terminal), TrainingBar(cluster) as bar:
        bar.update(20, 80, METRICS)
    assert terminal.getvalue() == ""


def test_without_a_terminal_there_are_lines_only(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingBar(SINGLE_MACHINE) as bar:
        bar.update(240, 240, METRICS)
        bar.print("epoch 1")
    assert capsys.readouterr() == ("epoch 1\n", "")
