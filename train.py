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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from hogwear import cluster, dataset, machine, progress, settings
from hogwear.choices import ARCHITECTURES, CHECKPOINT, PREVIOUS, UNBALANCED, Choices, choose
from hogwear.contents import short
from hogwear.dataset import Photos
from hogwear.decoding import Limits
from hogwear.division import Known
from hogwear.errors import BadInput
from hogwear.link import ALONE, Alone, Cut, Link, Place
from hogwear.pixels import Pixels
from hogwear.settings import flag
from hogwear.shared_settings import SharedSettings
from hogwear.text import escaped

if TYPE_CHECKING:
    from hogwear.budget import Budget
    from hogwear.checkpoint import Checkpoint
    from hogwear.run import Run

# torch takes seconds to import. Here that is done while the photos are decoded, so nothing above may import it.


@dataclass(frozen=True)
class Settings(SharedSettings):
    """Train a classifier on the photos in data/ with Hogwild on all CPUs; write model/checkpoint.pt.

    An interrupted run goes on where it stopped; a finished one is trained --epochs more.
    """

    arch: str | None = flag("the network", None, choices=ARCHITECTURES, default_help=Choices.arch)
    image_size: int | None = flag("side of the photos in pixels", None, kind=int, at_least=32, below=1025, default_help=str(Choices.image_size))
    epochs: int | None = flag("passes over the photos, by all workers together", None, kind=int, at_least=1, default_help="enough for each machine to see 4,000 photos (tinyvgg: 20,000)")
    time_budget: int | None = flag("seconds to make the most of, instead of --epochs", None, kind=int, at_least=5, default_help="as long as it takes")
    workers: int | None = flag("processes that train, one thread each", None, kind=int, at_least=1, below=1025, default_help="one per CPU")
    batch_size: int | None = flag("photos a step", None, kind=int, at_least=1, below=4097, default_help=str(Choices.batch_size))
    lr: float | None = flag("peak learning rate", None, kind=float, at_least=1e-7, below=10, default_help="the network's own")
    momentum: float | None = flag("of SGD", None, kind=float, at_least=0, below=1, default_help=str(Choices.momentum))
    seed: int | None = flag("of the shuffles, changes to photos and first weights", None, kind=int, at_least=0, below=2**63, default_help=str(Choices.seed))
    sync_every: int = flag("images of all machines between two averages, under torchrun", 1024, kind=int, at_least=1)
    fresh: bool = flag("start over instead of going on", False, kind=bool, default_help="off")


SAME = ("arch", "image_size", "epochs", "batch_size", "lr", "momentum", "seed", "sync_every")  # on all machines of a cluster


@dataclass(frozen=True)
class Prepared:
    """All that a run begins with."""

    photos: Photos
    known: Known  # how they are divided
    choices: Choices
    workers: int
    budget: "Budget | None"
    train: Pixels
    val: Pixels
    saved: "Checkpoint | None"


def main(settings: Settings) -> None:
    started = time.monotonic()
    machine.keep_freed_memory()
    here = cluster.place()
    machines = here.machines if here else 1
    if here:
        join(here, settings)
    lock = claim(settings.model_dir) if here is None or here.rank == 0 else None
    with Link(here, "prepare") if here else ALONE as others:
        prepared = prepare(settings, others, started)
        others.wait()
    if prepared is None:
        return
    if lock:
        set_aside(settings.model_dir, prepared.saved)
    with nullcontext() if lock else suppress(OSError):  # other machines than rank 0 may be without a model folder
        prepared.known.write(settings.model_dir)
    run = open_run(prepared.choices, prepared.photos.class_names, prepared.saved, settings.cache_dir, machines)
    run.take(prepared.known.identity(), prepared.photos.train.contents.hashes)
    connect = connection(here, len(prepared.photos.train), settings.sync_every, run.epochs_done)
    with machine.Stop() as stop:
        try:
            run.fit(prepared.train, prepared.val, prepared.workers, settings.model_dir, stop, prepared.budget, connect)
        except Cut:
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
    print(f"Done: validation accuracy {run.best['val_acc']:.4f} (epoch {run.best['epoch']}). Next: eval, infer.")


def prepare(settings: Settings, others: Alone, started: float) -> Prepared | None:
    """Find the photos, what to go on from and what to do; decode. None where torchrun's job is done already."""
    photos, known = divided(settings, others)
    limits = settings.limits
    saved = saved_run(settings)
    if isinstance(others, Link):
        saved = cluster.agree(others, photos, {name: getattr(settings, name) for name in SAME}, saved)
    state = saved.state if saved else None
    if state:
        known.require(state["split"])
    if state and state["finished"] and cluster.job() and state.get("job") == cluster.job():
        print(f"Job {cluster.job()} is done: validation accuracy {state['best']['val_acc']:.4f}. "
              "To train further give the job another name: --rdzv-id, or HOGWEAR_JOB in compose.")  # fmt: skip
        return None
    choices = choose(settings, state, photos.class_names, len(photos.train), others.machines)
    workers = settings.workers or machine.cpus()
    machine.require_memory(workers)
    budget = None
    if choices.time_budget and (state is None or state["finished"]):
        free = state is None and settings.image_size is None
        budget = plan_in_time(choices, free, photos, limits, settings.cache_dir, workers, started + choices.time_budget)
        choices = replace(choices, image_size=budget.image_size, epochs=math.ceil(budget.images / len(photos.train)))
    print_plan(choices, workers, photos)

    def decoded(split: dataset.Split) -> Pixels:
        return progress.decoded(split, choices.image_size, limits, settings.cache_dir, lambda: importlib.import_module("model"), others)

    train, val = decoded(photos.train), decoded(photos.val)
    seen = short(photos.train.contents.hashes)
    val = progress.unseen(val, np.union1d(seen, state["trained_on"].numpy()) if state else seen, "val")
    if others.machines == 1:
        progress.warn_of_leakage(train, val, "val")
    return Prepared(photos, known, choices, workers, budget, train, val, saved)


def divided(settings: Settings, others: Alone) -> tuple[Photos, Known]:
    """The photos, and the split that rank 0 makes for all machines, out of what the one of them knows that knows most."""
    divide = settings.divider(places_new=others.rank == 0)
    if others.machines == 1:
        return settings.photos(divide), divide.known
    file = divide.known.file
    divide.known = max((Known.parse(content, file) for content in others.tell(divide.known.written())), key=lambda known: len(known.sides))
    photos = settings.photos(divide) if others.rank == 0 else None
    divide.known = Known.parse(others.hand_on(0, divide.known.written()), file)
    return photos or settings.photos(divide), divide.known


def connection(here: Place | None, photos: int, sync_every: int, epochs_done: float | None) -> Callable[[Any], Alone]:
    """What makes a network one of several machines', where there are several."""
    if here is None:
        return Alone
    return partial(Link, here, "train", syncs_per_epoch=max(1, round(photos / sync_every)), epochs_done=epochs_done or 0.0)


def join(here: Place, settings: Settings) -> None:
    """Be one of several machines: those of another rank than 0 say nothing but warnings."""
    if settings.time_budget:
        raise BadInput("--time-budget: plans for one machine; under torchrun give --epochs")
    if settings.fresh:
        raise BadInput("--fresh: torchrun would start over whenever a machine comes or goes; move the checkpoint away instead")
    print(f"Cluster: {here.machines} machines; this is rank {here.rank}.", flush=True)
    if here.rank == 0:
        cluster.host_store()
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
        raise BadInput(f"{model_dir}: not writable by uid {os.getuid()} ({error.strerror}); change its owner or choose another --model-dir") from None
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise BadInput(f"{model_dir}: another train is at work in it; wait until it has ended, or choose another --model-dir") from None
    return lock


def saved_run(settings: Settings) -> "Checkpoint | None":
    """The checkpoint to go on from, if there is one and nobody wants to start over. Says what will be done."""
    file = settings.model_dir / CHECKPOINT
    if not file.exists() and not file.with_name(PREVIOUS).exists():
        print(f"Starting a new run: there is no {file} yet.")
        return None
    if settings.fresh:
        print("Starting a new run: --fresh.")
        return None
    from hogwear import checkpoint

    saved = checkpoint.load(settings.model_dir)
    if saved.state["finished"]:
        print(f"Resuming from {saved.file}, a finished run with validation accuracy {saved.state['best']['val_acc']:.4f}: training it further.")
    else:
        print(f"Resuming the interrupted run in {saved.file} after {saved.state['images_seen']} images.")
    return saved


def set_aside(model_dir: Path, saved: "Checkpoint | None") -> None:
    """Move what is newer than the checkpoint to go on from out of its way: a damaged one, or, with --fresh, all.

    Not before everything is known to be fit for the run that will write new ones.
    """
    files = [model_dir / CHECKPOINT, model_dir / PREVIOUS]
    for file in itertools.takewhile(lambda file: saved is None or file != saved.file, files):
        keep_beside(file)


def keep_beside(file: Path) -> None:
    """Give an old checkpoint, if it is there, a name of its own."""
    if file.exists():
        stem = time.strftime(f"{file.stem}-%Y%m%d-%H%M%S")
        names = (file.with_name(f"{stem}{f'-{n}' if n > 1 else ''}{file.suffix}") for n in itertools.count(1))
        kept = next(name for name in names if not name.exists())
        file.rename(kept)
        print(f"The old checkpoint is kept as {kept}.")


def plan_in_time(
    choices: Choices, free: bool, photos: Photos, limits: Limits, cache_dir: Path, workers: int, deadline: float
) -> "Budget":
    """For --time-budget: how large the photos are (where that is `free`) and how many are trained on."""
    import model
    from hogwear import budget, closed_form

    net = model.build(choices.arch, len(photos.class_names), budget.PROBED_SIZE, model.fast_dtype(cache_dir))
    speed = budget.probe(net, photos.train, limits, workers)
    head = closed_form.PHOTOS_A_CLASS * len(photos.class_names) if net.pretrained else 0
    sizes = budget.SIZES if free else ((choices.image_size, 0.25),)
    return budget.plan(speed, deadline, len(photos.train), len(photos.val), head, sizes)


def print_plan(choices: Choices, workers: int, photos: Photos) -> None:
    cpus = machine.cpus()
    source = "the built-in sample (data/ is empty)" if photos.is_sample else str(photos.folder)
    print(escaped(f"Photos: {source}: {len(photos.train)} to train on, {len(photos.val)} to validate with."))
    for note in photos.notes:
        print(escaped(note))
    print(escaped(f"Classes: {', '.join(photos.class_names)}."))
    counts = np.bincount(photos.train.labels)
    if counts.max() >= UNBALANCED * counts.min():
        least, most = (photos.class_names[i] for i in (counts.argmin(), counts.argmax()))
        print(escaped(f"Balance: {counts.min()} photos of {least}, {counts.max()} of {most}: each class counts the same in training."))
    length = f"{choices.epochs} epochs" if choices.time_budget is None else f"about {choices.epochs} epochs in {choices.time_budget} s"
    print(
        f"Plan: {choices.arch} at {choices.image_size} px, {length} in batches "
        f"of {choices.batch_size}, {workers} workers of one thread on {cpus} CPUs."
    )
    if workers > cpus:
        print(f"Warning: {workers} workers on {cpus} CPUs are slower than {cpus}", file=sys.stderr)


def open_run(choices: Choices, class_names: tuple[str, ...], saved: "Checkpoint | None", cache_dir: Path, machines: int) -> "Run":
    """A run with a network of its own: as it was `saved`, or from published or random weights."""
    import torch

    import model
    from hogwear.run import Run

    torch.set_num_threads(1)  # for the workers too, which are forked from here
    torch.manual_seed(choices.seed)
    dtype = model.fast_dtype(cache_dir)
    print(f"Arithmetic: {str(dtype).removeprefix('torch.')}, the fastest on this CPU as measured.")
    run = Run(model.build(choices.arch, len(class_names), choices.image_size, dtype), choices, class_names, machines)
    if saved is None:
        run.net.load_pretrained()
    else:
        run.restore(saved.state)
    return run


if __name__ == "__main__":
    settings.run(main, Settings)
