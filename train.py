"""Train a classifier on the photos in data/, with Hogwild on all CPUs, into model/checkpoint.pt.

python train.py                     # starts from ImageNet weights, or resumes an interrupted run
python train.py --epochs 5 --image-size 160
python train.py --fresh             # starts a new run; the old checkpoint is kept beside it
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hogwear.cluster import membership
from hogwear.cluster.membership import Rank
from hogwear.cluster.peers import SINGLE_MACHINE, Peers, SingleMachine
from hogwear.commands.preparation import prepare
from hogwear.commands.train_settings import Settings
from hogwear.system import command, machine, signals
from hogwear.system.errors import BadInput
from hogwear.training.model_folder import ModelFolder

if TYPE_CHECKING:
    from hogwear.training.trainer import Trainer

__all__ = ["Settings", "main"]  # every command has these two


def main(settings: Settings) -> None:
    started = time.monotonic()
    machine.keep_freed_memory()
    rank = join_cluster(settings)
    is_first = rank is None or rank.number == 0
    folder = ModelFolder(settings.model_dir)
    if is_first:
        folder.claim()
    with Peers(rank, "prepare") if rank else SINGLE_MACHINE as cluster:
        prepared = prepare(settings, folder, cluster, started)
        cluster.barrier()
    if prepared is None:
        return
    trainer = prepared.trainer
    if is_first:
        folder.set_aside(prepared.checkpoint, prepared.is_replaced)
    with nullcontext() if is_first else suppress(OSError):  # others may have no model folder
        prepared.assignments.write(settings.model_dir)
    with signals.Stop() as stop, connect(rank, trainer, settings.sync_every) as cluster:
        trainer.fit(stop, cluster, prepared.budget)
    if not trainer.state.finished:
        print(f"Stopped after {trainer.state.images_seen} images; run train again to resume.")
        sys.exit(128 + stop.signal)
    folder.release()
    print(cluster.summary(), end="")
    print(f"Done: {trainer.state.history.describe_best()}. Next: eval, infer.")


def join_cluster(settings: Settings) -> Rank | None:
    """The rank of this machine, or None without a cluster. All but rank 0 print only warnings.

    BadInput for flags that a cluster does not support.
    """
    rank = membership.read_rank()
    if rank is None:
        return None
    if settings.time_budget:
        raise BadInput("--time-budget: plans for one machine; under torchrun, use --epochs")
    if settings.fresh:
        raise BadInput(
            "--fresh: under torchrun, every restart would start a new run; "
            "move the checkpoint away instead"
        )
    print(f"Cluster: {rank.machines} machines; this is rank {rank.number}.", flush=True)
    if rank.number == 0:
        membership.start_store()
    else:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    return rank


def connect(rank: Rank | None, trainer: Trainer, sync_every: int) -> SingleMachine:
    """The connection to the other machines that train the same network."""
    if rank is None:
        return SINGLE_MACHINE
    from hogwear.networks.parameters import trained_parameters

    state = trainer.state
    syncs_per_epoch = max(1, round(state.photos.train.count / sync_every))
    epochs_done = state.snapshot.epochs_done if state.snapshot else 0.0
    return Peers(rank, "train", trained_parameters(trainer.net), syncs_per_epoch, epochs_done)


if __name__ == "__main__":
    command.run(main, Settings)
