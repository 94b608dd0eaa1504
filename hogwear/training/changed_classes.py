"""A run whose classes have changed: its network goes on, with the rows of the new classes."""

from dataclasses import replace

import torch
from torch import Tensor

from hogwear.data.class_changes import ClassChange
from hogwear.networks.network import Network
from hogwear.networks.parameters import OptimizerState, trained_parameters, unflatten_like
from hogwear.system.arrays import Int64Array
from hogwear.training.history import History
from hogwear.training.recovery import Snapshot
from hogwear.training.run_state import InitialNetwork, RunState

HEADS = ("head.", "training_head.", "novelty.")  # whose tensors have one row per class


def change_classes(saved: RunState, change: ClassChange, net: Network) -> RunState:
    """The saved run with the classes as they are now. `net` is any network for those before.

    If classes were only renamed, the run is the same. Otherwise it is over, even if it was
    interrupted: a new one starts from its network, and nothing that was measured is comparable.
    """
    changed = replace(saved, class_names=change.after, job_id=None)
    history, snapshot, best = saved.history, saved.snapshot, saved.history.best
    assert best
    if change.is_renaming:
        moved = replace(best, weights=move_rows(best.weights, change.rows))
        changed.history = History(history.rows, moved)
        changed.snapshot = snapshot and rename_snapshot(snapshot, change.rows, net)
        return changed
    weights, epoch = best.weights, history.epochs
    if snapshot:
        weights = snapshot.averaged_weights(net)
        epoch = max(epoch, round(saved.first_epoch + snapshot.epochs_done, 2))
    return replace(
        changed,
        hyperparameters=saved.next_hyperparameters,
        finished=True,
        history=History(history.rows),
        snapshot=None,
        forecast=None,
        novelty_auroc=None,
        # Photos left out can choose a ridge only for features that were not trained on them
        ridge=None if is_pretrained(weights, net) else saved.ridge,
        initial=InitialNetwork(move_rows(weights, change.rows), epoch),
    )


def is_pretrained(weights: dict[str, Tensor], net: Network) -> bool:
    """Whether nothing but the heads has been trained. Overwrites the weights of `net`."""
    net.load_pretrained()
    return all(
        torch.equal(weights[name], each)
        for name, each in net.state_dict().items()
        if not name.startswith(HEADS)
    )


def rename_snapshot(snapshot: Snapshot, rows: Int64Array, net: Network) -> Snapshot:
    old = snapshot.optimizer
    momentum = torch.stack([move_flat_rows(each, rows, net) for each in old.momentum])
    optimizer = OptimizerState(momentum, move_flat_rows(old.average, rows, net))
    return replace(snapshot, weights=move_rows(snapshot.weights, rows), optimizer=optimizer)


def move_flat_rows(flat: Tensor, rows: Int64Array, net: Network) -> Tensor:
    """A vector with a value for each trained parameter, with the rows of its heads moved."""
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    parts = dict(zip(names, unflatten_like(flat, trained_parameters(net)), strict=True))
    return torch.cat([part.reshape(-1) for part in move_rows(parts, rows).values()])


def move_rows(weights: dict[str, Tensor], rows: Int64Array) -> dict[str, Tensor]:
    """The weights of a network for other classes, whose `rows` are those of ClassChange."""
    moved = {
        name: pick_rows(each, rows) if name.startswith(HEADS) else each
        for name, each in weights.items()
    }
    if "novelty.curvature" in moved:  # (classes, classes)
        moved["novelty.curvature"] = pick_rows(moved["novelty.curvature"].T, rows).T.contiguous()
    return moved


def pick_rows(parameter: Tensor, rows: Int64Array) -> Tensor:
    """(classes before, ...) -> (classes, ...), with zeros in the rows of new classes."""
    picked = parameter.new_zeros(len(rows), *parameter.shape[1:])
    kept = torch.from_numpy(rows >= 0)
    picked[kept] = parameter[torch.from_numpy(rows)[kept]]
    return picked
