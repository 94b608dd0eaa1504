"""Train a classifier on the photos in data/, with Hogwild on all CPUs, into model/checkpoint.pt.

python train.py                        # from ImageNet weights; goes on where an interrupted run stopped
python train.py --epochs 5 --image-size 160
python train.py --fresh                # starts over; the old checkpoint is kept beside the new one
"""

import fcntl
import importlib
import itertools
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from hogwear.cluster import membership
from hogwear.cluster.membership import Rank
from hogwear.cluster.peers import SINGLE_MACHINE, PeerLost, Peers, SingleMachine
from hogwear.commands.common import SharedSettings
from hogwear.data import dataset, leakage, loading
from hogwear.data.contents import shorten_hashes
from hogwear.data.loading import Loader
from hogwear.data.photos import Photos
from hogwear.data.pixels import Pixels
from hogwear.data.split_assignments import SplitAssignments
from hogwear.data.splitting import Splitter
from hogwear.system import command, machine, signals
from hogwear.system.artifacts import CHECKPOINT, PREVIOUS_CHECKPOINT
from hogwear.system.errors import BadInput
from hogwear.system.flags import flag
from hogwear.system.text import escape
from hogwear.training.hyperparameters import (
    ARCHITECTURES,
    RANGES,
    UNBALANCED,
    Hyperparameters,
    choose,
)
from hogwear.training.photo_sets import PhotoSet, PhotoSets

if TYPE_CHECKING:
    from hogwear.networks.network import Network
    from hogwear.training.checkpoint import Checkpoint
    from hogwear.training.time_budget import Budget
    from hogwear.training.trainer import Trainer

# torch takes seconds to import. Here that is done while the photos are decoded, so nothing above may import it.


@dataclass(frozen=True)
class Settings(SharedSettings):
    """Train a classifier on the photos in data/, with Hogwild on all CPUs; write model/checkpoint.pt.

    An interrupted run resumes where it stopped; a finished one is trained for --epochs more.
    """

    arch: str | None = flag(
        "network architecture", None, choices=ARCHITECTURES, default_help=Hyperparameters.arch
    )
    image_size: int | None = flag(
        "side length in pixels to which photos are scaled",
        None,
        **RANGES["image_size"],
        default_help=str(Hyperparameters.image_size),
    )
    epochs: int | None = flag(
        "passes over the training photos, shared by all workers",
        None,
        **RANGES["epochs"],
        default_help="until each machine has seen 4,000 photos; tinyvgg: 20,000",
    )
    time_budget: int | None = flag(
        "target duration in seconds, instead of --epochs; also chooses --image-size",
        None,
        **RANGES["time_budget"],
        default_help="none",
    )
    workers: int | None = flag(
        "training processes, with one thread each",
        None,
        kind=int,
        at_least=1,
        below=1025,
        default_help="one per CPU",
    )
    batch_size: int | None = flag(
        "photos per step",
        None,
        **RANGES["batch_size"],
        default_help=str(Hyperparameters.batch_size),
    )
    lr: float | None = flag(
        "peak learning rate", None, **RANGES["lr"], default_help="depends on --arch"
    )
    momentum: float | None = flag(
        "momentum of SGD", None, **RANGES["momentum"], default_help=str(Hyperparameters.momentum)
    )
    seed: int | None = flag(
        "random seed for shuffling, augmentation and initial weights",
        None,
        **RANGES["seed"],
        default_help=str(Hyperparameters.seed),
    )
    sync_every: int = flag(
        "under torchrun: photos, over all machines, between two averages of the weights",
        1024,
        kind=int,
        at_least=1,
    )
    fresh: bool = flag(
        "start a new run; the old checkpoint is kept beside it",
        False,
        kind=bool,
        default_help="off",
    )

    @property
    def processes(self) -> int:
        """That train."""
        return self.workers or machine.cpus()


SAME = (
    "arch",
    "image_size",
    "epochs",
    "batch_size",
    "lr",
    "momentum",
    "seed",
    "sync_every",
)  # on all machines of a cluster


@dataclass(frozen=True)
class Prepared:
    """All that a run begins with."""

    photos: Photos
    known: SplitAssignments  # how they are divided
    choices: Hyperparameters
    workers: int
    budget: "Budget | None"
    train: Pixels
    val: Pixels
    saved: "Checkpoint | None"
    photo_sets: PhotoSets
    val_of_best: (
        Pixels | None
    )  # to measure the saved best weights on again: other photos than they were measured on


def main(settings: Settings) -> None:
    started = time.monotonic()
    machine.keep_freed_memory()
    here = membership.read_rank()
    machines = here.machines if here else 1
    if here:
        join(here, settings)
    lock = claim(settings.model_dir) if here is None or here.number == 0 else None
    with Peers(here, "prepare") if here else SINGLE_MACHINE as others:
        prepared = prepare(settings, others, started)
        run = open_run(prepared, settings.cache_dir, others) if prepared else None
        others.barrier()
    if prepared is None or run is None:
        return
    if lock:
        set_aside(settings.model_dir, prepared.saved)
    with (
        nullcontext() if lock else suppress(OSError)
    ):  # other machines than rank 0 may be without a model folder
        prepared.known.write(settings.model_dir)
    run.take(prepared.known.version(), prepared.photos.train.contents.hashes)
    connect = connection(here, len(prepared.photos.train), settings.sync_every, run.epochs_done)
    with signals.Stop() as stop:
        try:
            run.fit(
                prepared.train,
                prepared.val,
                prepared.workers,
                settings.model_dir,
                stop,
                prepared.budget,
                connect,
            )
        except PeerLost:
            if run.session.images:
                with suppress(BadInput):  # of claim: rank 0 is there, and saves
                    lock = lock or claim(settings.model_dir)
                    run.write(settings.model_dir)
            raise
    if not run.finished:
        print(f"Stopped after {run.images_seen * machines} images; run train again to go on.")
        sys.exit(128 + stop.signal)
    if lock:
        lock.close()
    print(run.others.summary(), end="")
    print(
        f"Done: best validation accuracy {run.best['val_acc']:.4f} (epoch {run.best['epoch']}). Next: eval, infer."
    )


def prepare(settings: Settings, others: SingleMachine, started: float) -> Prepared | None:
    """Find the photos, what to go on from and what to do; decode. None where torchrun's job is done already."""
    saved, why_none = saved_run(settings)
    photos, splitter = divided(settings, others)
    if isinstance(others, Peers):
        saved = agreed(others, settings, photos, saved)
    state = saved.state if saved else None
    if state:
        splitter.initial.require(state["split"])
    if state and is_job_done(state):
        return None
    choices = choose(settings, state, photos.class_names, len(photos.train), others.machines)
    workers = settings.processes
    machine.require_memory(workers)
    print(escape(going_on(saved) if saved else f"Starting a new run: {why_none}."))
    budget = None
    if choices.time_budget and (state is None or state["finished"]):
        free = state is None and settings.image_size is None
        budget = plan_in_time(settings, choices, free, photos, started + choices.time_budget)
        choices = replace(
            choices,
            image_size=budget.image_size,
            epochs=math.ceil(budget.images / len(photos.train)),
        )
    print_plan(choices, workers, photos)

    loader = Loader(settings.cache, others.shard, others.heartbeat, shows_progress=others.rank == 0)
    decoding = loader.start(photos.train, choices.image_size)
    importlib.import_module("model")  # and torch, which takes seconds, while the workers decode
    train = loader.finish(decoding)
    seen = shorten_hashes(photos.train.contents.hashes)
    seen = np.union1d(seen, state["trained_on"].numpy()) if state else seen
    val = loading.exclude_trained_on(loader.load(photos.val, choices.image_size), seen, "val")
    if others.machines == 1:
        leakage.warn_about_leakage(train, val, "val")
    photo_sets = PhotoSets(
        photos.is_sample,
        *(PhotoSet.of(pixels, photos.class_names, others) for pixels in (train, val)),
    )
    val_of_best = None
    if state:
        before = PhotoSets.from_state(state["photos"])
        if changes := "; ".join(photo_sets.changes_since(before)):
            print(f"The photos have changed since the last run: {changes}.")
        if state["best"] and before.val != photo_sets.val:
            size = state["best"]["image_size"]
            val_of_best = (
                val
                if size == choices.image_size
                else loading.exclude_trained_on(loader.load(photos.val, size), seen, "val")
            )
    known = splitter.assignments
    return Prepared(
        photos, known, choices, workers, budget, train, val, saved, photo_sets, val_of_best
    )


def is_job_done(state: dict[str, Any]) -> bool:
    """Whether torchrun's job has finished the run already, which is then said."""
    job = membership.read_job_id()
    if not state["finished"] or job is None or state["job"] != job:
        return False
    print(
        f"Job {job} is done: validation accuracy {state['best']['val_acc']:.4f}. To train further, "
        "give the job another name: --rdzv-id, or HOGWEAR_JOB in compose."
    )
    return True


def divided(settings: Settings, others: SingleMachine) -> tuple[Photos, Splitter]:
    """The photos, and what has divided them: on all machines as rank 0 does, which knows what the one of them knows that knows most."""
    mine = SplitAssignments.read(settings.model_dir)
    known = max(
        (
            SplitAssignments.parse(content, mine.file)
            for content in others.all_gather_bytes(mine.to_json())
        ),
        key=len,
    )
    splitter = Splitter(known, settings.limits)
    photos = settings.photos(splitter) if others.rank == 0 else None
    content = others.broadcast_bytes(0, splitter.assignments.to_json())
    if photos is None:
        splitter.assignments = SplitAssignments.parse(content, mine.file)
        splitter.assigns_new = False
        photos = settings.photos(splitter)
    return photos, splitter


def connection(
    here: Rank | None, photos: int, sync_every: int, epochs_done: float | None
) -> "Callable[[Network], SingleMachine]":
    """What makes a network one of several machines', where there are several."""
    if here is None:
        return lambda net: SINGLE_MACHINE
    from hogwear.networks.parameters import trained_parameters

    syncs = max(1, round(photos / sync_every))
    return lambda net: Peers(here, "train", trained_parameters(net), syncs, epochs_done or 0.0)


def join(here: Rank, settings: Settings) -> None:
    """Be one of several machines: those of another rank than 0 say nothing but warnings."""
    if settings.time_budget:
        raise BadInput("--time-budget: plans for one machine; under torchrun give --epochs")
    if settings.fresh:
        raise BadInput(
            "--fresh: torchrun would start over whenever a machine comes or goes; move the checkpoint away instead"
        )
    print(f"Cluster: {here.machines} machines; this is rank {here.number}.", flush=True)
    if here.number == 0:
        membership.start_store()
    else:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115


def claim(model_dir: Path) -> TextIO:
    """A lock on the model folder, until it is closed or the process ends. BadInput if it cannot be had.

    It is a POSIX lock, which forked workers do not inherit: one that outlives its parent for a moment holds nothing.
    """
    try:
        model_dir.mkdir(parents=True, exist_ok=True)
        lock = (model_dir / ".lock").open("a")
    except OSError as error:
        raise BadInput(
            f"{model_dir}: not writable by uid {os.getuid()} ({error.strerror}); change its owner or choose another --model-dir"
        ) from None
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise BadInput(
            f"{model_dir}: another train is at work in it; wait until it has ended, or choose another --model-dir"
        ) from None
    return lock


def saved_run(settings: Settings) -> "tuple[Checkpoint | None, str]":
    """The checkpoint to go on from, or None and why a new run is started. BadInput for an empty data folder where the run was of real photos."""
    file = settings.model_dir / CHECKPOINT
    if not file.exists() and not file.with_name(PREVIOUS_CHECKPOINT).exists():
        return None, f"there is no {file} yet"
    if settings.fresh:
        return None, "--fresh"
    import torch

    import model

    torch.set_num_threads(1)  # for the workers too, which are forked from here
    saved = model.load_checkpoint(settings.model_dir)
    is_sample = saved.state["photos"]["is_sample"]
    if is_sample and not dataset.is_empty(settings.data_dir, settings.output_folders):
        return (
            None,
            f"{saved.file} was trained on the built-in sample, and now there are photos in {settings.data_dir}",
        )
    settings.require_same_kind(is_sample)
    return saved, ""


def agreed(
    others: Peers, settings: Settings, photos: Photos, saved: "Checkpoint | None"
) -> "Checkpoint | None":
    """The checkpoint that all machines go on from. Raises as membership.agree, and BadInput for one with odd content."""
    import model
    from hogwear.training import agreement

    saved = agreement.agree(others, photos, {name: getattr(settings, name) for name in SAME}, saved)
    return saved and model.validate_checkpoint(saved)


def going_on(saved: "Checkpoint") -> str:
    """What will be done with it, for people."""
    if saved.state["finished"]:
        return f"Resuming from {saved.file}, a finished run with validation accuracy {saved.state['best']['val_acc']:.4f}: training it further."
    return (
        f"Resuming the interrupted run in {saved.file} after {saved.state['images_seen']} images."
    )


def set_aside(model_dir: Path, saved: "Checkpoint | None") -> None:
    """Move what is newer than the checkpoint to go on from out of its way: a damaged one, or, with --fresh, all.

    Not before everything is known to be fit for the run that will write new ones.
    """
    files = [model_dir / CHECKPOINT, model_dir / PREVIOUS_CHECKPOINT]
    for file in itertools.takewhile(lambda file: saved is None or file != saved.file, files):
        keep_beside(file)


def keep_beside(file: Path) -> None:
    """Give an old checkpoint, if it is there, a name of its own."""
    if file.exists():
        stem = time.strftime(f"{file.stem}-%Y%m%d-%H%M%S")
        names = (
            file.with_name(f"{stem}{f'-{n}' if n > 1 else ''}{file.suffix}")
            for n in itertools.count(1)
        )
        kept = next(name for name in names if not name.exists())
        file.rename(kept)
        print(escape(f"The old checkpoint is kept as {kept}."))


def plan_in_time(
    settings: Settings, choices: Hyperparameters, free: bool, photos: Photos, deadline: float
) -> "Budget":
    """For --time-budget: how large the photos are (where that is `free`) and how many are trained on."""
    import model
    from hogwear.training import closed_form, time_budget

    net = model.build(
        choices.arch,
        len(photos.class_names),
        time_budget.PROBED_SIZE,
        model.choose_dtype(settings.cache_dir),
    )
    speed = time_budget.probe(net, photos.train, settings.limits, settings.processes)
    head = closed_form.PHOTOS_PER_CLASS * len(photos.class_names) if net.pretrained else 0
    sizes = time_budget.SIZES if free else ((choices.image_size, 0.25),)
    return time_budget.plan(speed, deadline, len(photos.train), len(photos.val), head, sizes)


def print_plan(choices: Hyperparameters, workers: int, photos: Photos) -> None:
    cpus = machine.cpus()
    source = "the built-in sample (data/ is empty)" if photos.is_sample else str(photos.folder)
    print(
        escape(
            f"Photos: {source}: {len(photos.train)} to train on, {len(photos.val)} to validate with."
        )
    )
    for note in photos.notes:
        print(escape(note))
    print(escape(f"Classes: {', '.join(photos.class_names)}."))
    counts = np.bincount(photos.train.labels)
    if counts.max() >= UNBALANCED * counts.min():
        least, most = (photos.class_names[i] for i in (counts.argmin(), counts.argmax()))
        print(
            escape(
                f"Balance: {counts.min()} photos of {least}, {counts.max()} of {most}: each class counts the same in training."
            )
        )
    length = (
        f"{choices.epochs} epochs"
        if choices.time_budget is None
        else f"about {choices.epochs} epochs in {choices.time_budget} s"
    )
    print(
        f"Plan: {choices.arch} at {choices.image_size} px, {length} in batches "
        f"of {choices.batch_size}, {workers} workers of one thread on {cpus} CPUs."
    )
    if workers > cpus:
        print(f"Warning: {workers} workers on {cpus} CPUs are slower than {cpus}", file=sys.stderr)


def open_run(prepared: Prepared, cache_dir: Path, others: SingleMachine) -> "Trainer":
    """A run with a network of its own: as it was saved, or from published or random weights."""
    import torch

    import model
    from hogwear.training.trainer import Trainer

    choices, class_names = prepared.choices, prepared.photos.class_names
    torch.set_num_threads(1)
    torch.manual_seed(choices.seed)
    dtype = model.choose_dtype(cache_dir)
    print(f"Arithmetic: {str(dtype).removeprefix('torch.')}, the fastest on this CPU as measured.")
    net = model.build(choices.arch, len(class_names), choices.image_size, dtype)
    run = Trainer(net, choices, class_names, prepared.photo_sets, others.machines)
    if prepared.saved is None:
        net.load_pretrained()
        return run
    state = prepared.saved.state
    if prepared.val_of_best is not None:
        before = state["best"]
        state["best"] = run.measure_best(before, prepared.val_of_best, prepared.workers, others)
        print(f"The best weights (epoch {before['epoch']}) were evaluated again, on the present validation photos: "
              f"accuracy {state['best']['val_acc']:.4f}, previously {before['val_acc']:.4f}.")  # fmt: skip
    run.restore(state)
    return run


if __name__ == "__main__":
    command.run(main, Settings)
