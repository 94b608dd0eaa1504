"""Which hyperparameters a run has: the user's, the defaults, or those of the checkpoint."""

from dataclasses import replace
from typing import Any

import pytest

from hogwear.system.errors import BadInput
from hogwear.training.hyperparameters import Hyperparameters, choose_hyperparameters

SAVED = Hyperparameters(image_size=96, epochs=7, batch_size=8, lr=0.5, seed=3)


def test_a_new_run_trains_for_as_long_as_that_pays() -> None:
    assert choose_hyperparameters({}) == Hyperparameters() and Hyperparameters().epochs is None


def test_flags_come_before_defaults() -> None:
    chosen = choose_hyperparameters({"epochs": 3, "lr": 0.1})
    assert chosen == Hyperparameters(epochs=3, lr=0.1)
    assert choose_hyperparameters({"epochs": 0}).epochs == 0, "the closed form only"


def test_epochs_and_a_time_budget_exclude_each_other() -> None:
    with pytest.raises(BadInput, match="--epochs and --time-budget exclude each other"):
        choose_hyperparameters({"epochs": 3, "time_budget": 60})


def test_an_interrupted_run_keeps_all_its_hyperparameters() -> None:
    assert choose_hyperparameters({}, saved=SAVED) == SAVED
    assert choose_hyperparameters({"lr": 0.5, "seed": 3}, saved=SAVED) == SAVED


@pytest.mark.parametrize("name", ["image_size", "epochs", "batch_size", "lr", "momentum", "seed"])
def test_an_interrupted_run_refuses_other_hyperparameters(name: str) -> None:
    flag = f"--{name.replace('_', '-')} is 77, the interrupted run has {getattr(SAVED, name)}: "
    with pytest.raises(BadInput, match=f"^{flag}.*--fresh"):
        choose_hyperparameters({name: 77}, saved=SAVED)


def test_a_finished_run_is_trained_further_at_its_image_size_with_defaults_for_the_rest() -> None:
    chosen = choose_hyperparameters({"seed": 5}, saved=SAVED, finished=True)
    assert chosen == Hyperparameters(image_size=96, seed=5)
    assert choose_hyperparameters({"image_size": 64}, SAVED, True).image_size == 64


def test_what_a_mirror_image_means_is_kept_until_it_is_set_again() -> None:
    saved = replace(SAVED, no_mirror=True)
    assert choose_hyperparameters({}, saved, finished=True).no_mirror
    assert not choose_hyperparameters({"no_mirror": False}, saved, finished=True).no_mirror
    assert not choose_hyperparameters({"no_mirror": False}).no_mirror
    with pytest.raises(BadInput, match=r"^--no-mirror is True, the interrupted run has False"):
        choose_hyperparameters({"no_mirror": True}, saved=SAVED)


@pytest.mark.parametrize("flags", [{"arch": "efficientnet_lite0"}, {"image_size": 64}])
def test_what_a_finished_network_cannot_change_is_refused(flags: dict[str, Any]) -> None:
    tinyvgg = replace(SAVED, arch="tinyvgg")
    with pytest.raises(BadInput, match="the checkpoint has "):
        choose_hyperparameters(flags, saved=tinyvgg, finished=True)
