"""What remains of a run whose classes have changed: weights, rows of the heads, history."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import CLASSES, flat, hogwild_row, new_state, validated_state

import model
from hogwear.data.class_changes import ClassChange, find_change
from hogwear.networks.network import Network
from hogwear.networks.parameters import OptimizerState
from hogwear.training import checkpoint
from hogwear.training.changed_classes import change_classes, move_flat_rows, move_rows
from hogwear.training.checkpoint import HEADER, Checkpoint
from hogwear.training.discriminant import Forecast
from hogwear.training.recovery import Snapshot
from hogwear.training.run_state import RunState


def change(*after: str, **renamed: str) -> ClassChange:
    found = find_change(CLASSES, tuple(sorted(after)), renamed, Path("data"))
    assert found
    return found


ADDED = change(*CLASSES, "dresses")  # between bottomwear and eyewear
REMOVED = change(*(name for name in CLASSES if name != "footwear"))
RENAMED = change(*(CLASSES[:2] + CLASSES[3:]), "umbrellas", footwear="umbrellas")  # to the end


def network(arch: str = "tinyvgg") -> Network:
    torch.manual_seed(0)
    net = model.build(arch, 5, 32)
    for p in net.parameters():
        torch.nn.init.normal_(p)
    return net


def interrupted(net: Network) -> RunState:
    """After 150 of 480 images; its average is twice its weights."""
    state = validated_state(hogwild_row(1), images_seen=150)
    assert state.snapshot and state.history.best
    net.load_state_dict(state.snapshot.weights)
    average = 2 * OptimizerState.create(net, 1).average
    momentum = torch.arange(2.0 * len(average)).view(2, -1)
    snapshot = replace(state.snapshot, optimizer=OptimizerState(momentum, average))
    return replace(
        state, snapshot=snapshot, images_seen=150, job_id="night", ridge=0.4,
        forecast=Forecast(0.7, 0.8, 120), start_loss=0.9, rollbacks=1,
    )  # fmt: skip


def finished(net: Network) -> RunState:
    return replace(interrupted(net), finished=True, snapshot=None)


@pytest.mark.parametrize("arch", ["tinyvgg", "efficientnet_lite0"])
def test_rows_move_with_their_classes_and_new_ones_are_zero(arch: str) -> None:
    weights = network(arch).state_dict()
    weights["novelty.curvature"] = torch.arange(25.0).view(5, 5)
    moved = move_rows(weights, ADDED.rows)
    heads = [name for name in weights if "head" in name or name == "novelty.offset"]
    assert len(heads) == (3 if arch == "tinyvgg" else 5)
    for name, before in weights.items():
        if name == "novelty.curvature":
            kept = moved[name][[0, 2, 3, 4, 5]]
            assert torch.equal(kept[:, [0, 2, 3, 4, 5]], before)
            assert not moved[name][1].any() and not moved[name][:, 1].any()
        elif name in heads:
            assert torch.equal(moved[name][[0, 2, 3, 4, 5]], before) and not moved[name][1].any()
        else:
            assert moved[name] is before
    net = model.build(arch, 6, 32)
    net.load_state_dict(moved)
    logits = net(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    assert logits[0, 1] == 0 and logits[0, [0, 2, 3, 4, 5]].all()


def test_a_finished_run_leaves_its_best_network_and_its_history_without_a_best() -> None:
    net = network()
    saved = finished(net)
    best = saved.history.best
    assert best
    changed = change_classes(saved, ADDED, net)
    assert changed.class_names == ADDED.after and changed.finished and not changed.history.best
    assert changed.job_id is None, "torchrun's job is not done"
    assert changed.history.rows == saved.history.rows and changed.forecast is None
    assert changed.initial and changed.initial.epoch == 1
    expected = move_rows(best.weights, ADDED.rows)
    assert torch.equal(flat(changed.initial.weights), flat(expected))
    resumed = replace(new_state(), class_names=ADDED.after).resume(changed)
    assert resumed.initial is changed.initial and resumed.first_epoch == 1 and not resumed.finished
    assert resumed.start_loss is None and resumed.rollbacks == 0 and resumed.job_id is None


def test_an_interrupted_run_is_over_and_leaves_its_averaged_weights() -> None:
    net = network()
    saved = interrupted(net)
    assert saved.snapshot
    before = saved.snapshot.weights
    changed = change_classes(saved, REMOVED, net)
    assert changed.finished and changed.snapshot is None and changed.initial
    assert changed.initial.epoch == 1.25, "150 of 120 photos, though the last validation was at 1"
    kept = [0, 1, 3, 4]
    assert torch.equal(changed.initial.weights["head.weight"], 2 * before["head.weight"][kept])
    conv = "layers.0.weight"
    assert torch.equal(changed.initial.weights[conv], 2 * before[conv])
    assert replace(new_state(), class_names=REMOVED.after).resume(changed).first_epoch == 2


def test_the_epoch_of_the_next_row_never_falls() -> None:
    net = network()
    saved = interrupted(net)
    assert saved.snapshot
    saved.history.rows = [hogwild_row(0.55)]
    for done, epoch in ((0.546, 0.55), (0.52, 0.55), (0.58, 0.58)):  # rounded; on other machines
        saved.snapshot = replace(saved.snapshot, epochs_done=done)
        changed = change_classes(saved, ADDED, net)
        assert changed.initial and changed.initial.epoch == epoch


@pytest.mark.parametrize(
    ("changed", "ridge"), [("head.bias", None), ("training_head.bias", None), ("last.bias", 0.4)]
)
def test_a_ridge_is_chosen_anew_only_for_features_that_were_never_trained(
    changed: str, ridge: float | None
) -> None:
    net = network("efficientnet_lite0")
    net.load_pretrained()
    with torch.no_grad():
        net.get_parameter(changed).add_(1)
    saved = finished(network())
    assert saved.history.best
    weights = {name: each.clone() for name, each in net.state_dict().items()}
    saved.history.best = replace(saved.history.best, weights=weights)
    assert change_classes(saved, ADDED, net).ridge == ridge


def test_the_network_keeps_the_image_size_of_its_best_weights() -> None:
    net = network()
    saved = finished(net)
    assert saved.history.best
    saved.history.best = replace(saved.history.best, image_size=96)
    assert change_classes(saved, ADDED, net).next_hyperparameters.image_size == 96


# --- renamed only


def test_a_renamed_class_keeps_everything_that_was_measured() -> None:
    net = network()
    saved = finished(net)
    changed = change_classes(saved, RENAMED, net)
    old, new = saved.history.best, changed.history.best
    assert old and new and changed.initial is None and changed.class_names == RENAMED.after
    order = [0, 1, 3, 4, 2]
    assert torch.equal(new.weights["head.weight"], old.weights["head.weight"][order])
    assert replace(new, weights={}) == replace(old, weights={})
    assert (changed.ridge, changed.forecast) == (saved.ridge, saved.forecast)
    assert changed.job_id is None, "torchrun's job is not done"


def test_an_interrupted_run_goes_on_with_the_rows_in_their_new_order(tmp_path: Path) -> None:
    net = network()
    saved = interrupted(net)
    changed = change_classes(saved, RENAMED, net)
    assert saved.snapshot and changed.snapshot and not changed.finished
    old, new = saved.snapshot, changed.snapshot
    order = [0, 1, 3, 4, 2]
    net.load_state_dict(new.weights)
    assert torch.equal(net.head.bias, old.weights["head.bias"][order])
    for before, after in zip(
        (old.optimizer.average, *old.optimizer.momentum),
        (new.optimizer.average, *new.optimizer.momentum),
        strict=True,
    ):
        # In the order of the parameters: the weight of the head, (5, 640), then its bias, (5,)
        assert torch.equal(after[: -5 * 641], before[: -5 * 641])
        assert torch.equal(after[-5:], before[-5:][order])
        weight = before[-5 * 641 : -5].view(5, 640)
        assert torch.equal(after[-5 * 641 : -5].view(5, 640), weight[order])
    assert (changed.images_seen, changed.rollbacks, changed.start_loss) == (150, 1, 0.9)
    state = {**HEADER, **changed.state_dict()}
    model.validate_checkpoint(Checkpoint(Path("checkpoint.pt"), state, ""))
    checkpoint.save(tmp_path, changed.state_dict())
    assert RunState.load_state_dict(checkpoint.load(tmp_path).state).class_names == RENAMED.after


def test_only_trained_heads_are_part_of_the_optimizer() -> None:
    """In a pretrained network, the head that predicts is solved, not trained."""
    net = network("efficientnet_lite0")
    size = sum(p.numel() for p in net.parameters() if p.requires_grad)
    before = torch.arange(float(size))
    after = move_flat_rows(before, RENAMED.rows, net)
    end = 5 * 1281
    assert torch.equal(after[:-end], before[:-end]) and not torch.equal(after, before)
    assert after[-5:].tolist() == before[-5:][[0, 1, 3, 4, 2]].tolist()


def test_averaged_weights_are_those_of_the_snapshot_where_nothing_is_trained() -> None:
    net = network("efficientnet_lite0")
    own = OptimizerState.create(net, 1)
    own.average.fill_(7.0)
    snapshot = Snapshot.take(net, own, 0, 0.0, validated_state(hogwild_row(1)).snapshot.metrics)  # type: ignore[union-attr]
    weights = snapshot.averaged_weights(net)
    assert (weights["last.weight"] == 7).all() and (weights["training_head.bias"] == 7).all()
    assert torch.equal(weights["head.weight"], net.head.weight)
    assert torch.equal(weights["stem.weight"], net.get_parameter("stem.weight"))
