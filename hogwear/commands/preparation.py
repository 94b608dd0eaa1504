"""The preparation of a run, up to its first training step."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hogwear.cluster import membership
from hogwear.cluster.peers import SingleMachine
from hogwear.commands.image_size import choose_image_size
from hogwear.commands.starting_point import find_starting_point, is_job_done, print_start
from hogwear.commands.train_settings import Settings
from hogwear.data import leakage
from hogwear.data.cache import DecodingJob
from hogwear.data.leakage import exclude_trained_on
from hogwear.data.loading import Loader
from hogwear.data.photos import Photos
from hogwear.data.pixels import Pixels
from hogwear.data.split_assignments import SplitAssignments
from hogwear.system import machine
from hogwear.system.arrays import Int64Array
from hogwear.system.text import escape, plural, warn
from hogwear.training.hyperparameters import UNBALANCED, Hyperparameters, choose_hyperparameters
from hogwear.training.model_folder import ModelFolder
from hogwear.training.photo_sets import PhotoSet, PhotoSets, add_photos

if TYPE_CHECKING:
    from hogwear.networks.network import Network
    from hogwear.training.checkpoint import Checkpoint
    from hogwear.training.history import History
    from hogwear.training.run_state import RunState
    from hogwear.training.time_budget import Budget
    from hogwear.training.trainer import Trainer, TrainingData

# torch takes seconds to import, so nothing above imports it: it is imported while the photos are
# decoded, or to load a checkpoint.


@dataclass(frozen=True)
class Prepared:
    """A trainer, and what else the start of training needs."""

    trainer: Trainer
    budget: Budget | None
    checkpoint: Checkpoint | None  # to resume from
    is_replaced: bool  # its network has other classes
    assignments: SplitAssignments


def prepare(
    settings: Settings, folder: ModelFolder, cluster: SingleMachine, started: float
) -> Prepared | None:
    """Find checkpoint and photos, plan, decode, create a trainer. None for a job that is done."""
    start = find_starting_point(settings, folder, cluster)
    saved, photos = start.saved, start.photos
    if saved and is_job_done(saved):
        return None

    hyperparameters = choose_hyperparameters(
        settings.hyperparameter_flags,
        saved.next_hyperparameters if saved else None,
        finished=bool(saved and saved.finished),
    )
    machine.require_memory(settings.num_workers)
    print_start(start)
    print_photos(photos)
    loader = Loader(settings.cache, cluster.shard, cluster.heartbeat, cluster.rank == 0)
    if saved or settings.image_size or settings.time_budget:
        hyperparameters, budget = plan_time(settings, hyperparameters, photos, saved, started)
        decoding = loader.start(photos.train, hyperparameters.image_size)
    else:
        decoding, budget = choose_image_size(settings, photos, loader, cluster), None
        hyperparameters = replace(hyperparameters, image_size=decoding.folder.size)
    print_plan(hyperparameters, settings.num_workers)

    trained_on = add_photos(saved.trained_on if saved else None, photos.train)
    data = load_data(loader, photos, decoding, trained_on)
    if cluster.machines == 1:
        leakage.warn_about_leakage(data.train, data.val, "val")

    from hogwear.training.run_state import RunState
    from hogwear.training.trainer import Trainer

    state = RunState(
        class_names=photos.class_names,
        hyperparameters=hyperparameters,
        photos=find_photo_sets(photos, data, photos.class_names, cluster),
        split=start.assignments.version(),
        trained_on=trained_on,
        job_id=membership.read_job_id(),
    )
    if saved:
        if start.change:
            before = find_photo_sets(photos, data, start.change.names_before, cluster)
            saved = replace(saved, photos=state.photos.renamed_from(before, saved.photos))
        if changes := "; ".join(state.photos.changes_since(saved.photos)):
            print(f"The photos have changed since the last run: {changes}.")
        state = state.resume(saved)
    net = build_network(settings, state)
    best = state.history.best
    if saved and best and saved.photos.val != state.photos.val:
        same_size = best.image_size == hyperparameters.image_size
        val = data.val if same_size else load_val(loader, photos, best.image_size, trained_on)
        measure_best_again(state.history, net, val, settings.num_workers, cluster)
    trainer = Trainer(net, state, data, settings.num_workers, folder)
    return Prepared(trainer, budget, start.checkpoint, bool(state.initial), start.assignments)


def plan_time(
    settings: Settings,
    hyperparameters: Hyperparameters,
    photos: Photos,
    saved: RunState | None,
    started: float,
) -> tuple[Hyperparameters, Budget | None]:
    """With --time-budget: choose the image size, unless it is fixed.

    An interrupted run keeps its length. BadInput where the time is too short.
    """
    if not hyperparameters.time_budget or (saved and not saved.finished):
        return hyperparameters, None
    import model
    from hogwear.training import time_budget

    num_classes = len(photos.class_names)
    dtype = model.choose_dtype(settings.cache_dir)
    net = model.build(hyperparameters.arch, num_classes, time_budget.MEASURED_SIZE, dtype)
    speed = time_budget.measure_speed(net, photos.train, settings.limits, settings.num_workers)
    work = time_budget.Workload(len(photos.train), len(photos.val), net.pretrained)
    is_fixed = saved or settings.image_size
    sizes = (hyperparameters.image_size,) if is_fixed else time_budget.SIZES
    budget = time_budget.plan_run(speed, started + hyperparameters.time_budget, work, sizes)
    return replace(hyperparameters, image_size=budget.image_size), budget


def print_photos(photos: Photos) -> None:
    """Print the photos and their classes."""
    source = "the built-in sample (data/ is empty)" if photos.is_sample else f"{photos.folder}/"
    print(
        f"Dataset: {escape(source)}: {len(photos.train)} training, {len(photos.val)} validation "
        f"photos in {len(photos.class_names)} classes."
    )
    for note in photos.notes:
        print(escape(note))
    if photos.corrections:
        print(escape(photos.corrections.describe()))
    for warning in photos.warnings:
        warn(warning)
    print(escape(f"Classes: {', '.join(photos.class_names)}."))
    counts = photos.train.count_per_class(photos.class_names)
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[most] >= UNBALANCED * counts[fewest]:
        print(
            f"Class balance: {plural(counts[fewest], 'photo')} of {escape(fewest)}, {counts[most]} "
            f"of {escape(most)}; all classes count equally in the training loss."
        )


def print_plan(hyperparameters: Hyperparameters, num_workers: int) -> None:
    """Print how the network will be trained."""
    length = "while val loss falls"
    if hyperparameters.epochs is not None:
        length = plural(hyperparameters.epochs, "epoch")
    elif hyperparameters.time_budget:
        length = f"for {hyperparameters.time_budget} s"
    cpus = machine.cpus()
    print(
        f"Plan: {hyperparameters.arch} at {hyperparameters.image_size} px, {length}, "
        f"batch size {hyperparameters.batch_size}, {'not mirrored, ' * hyperparameters.no_mirror}"
        f"{plural(num_workers, 'worker')} on {plural(cpus, 'CPU')}."
    )
    if num_workers > cpus:
        warn(f"{num_workers} workers on {plural(cpus, 'CPU')} are slower than {cpus}")


def load_data(
    loader: Loader, photos: Photos, decoding: DecodingJob, trained_on: Int64Array
) -> TrainingData:
    """Decode the photos that are not in the cache; `decoding` has already begun with train."""
    importlib.import_module("model")  # and torch, which takes seconds, while the workers decode
    from hogwear.training.trainer import TrainingData

    train = loader.finish(decoding)
    return TrainingData(train, load_val(loader, photos, decoding.folder.size, trained_on))


def load_val(loader: Loader, photos: Photos, image_size: int, trained_on: Int64Array) -> Pixels:
    return exclude_trained_on(loader.load(photos.val, image_size), trained_on, "val")


def find_photo_sets(
    photos: Photos, data: TrainingData, class_names: tuple[str, ...], cluster: SingleMachine
) -> PhotoSets:
    """The photos of all machines, with these names of their classes."""
    sets = (PhotoSet.from_pixels(each, class_names, cluster) for each in (data.train, data.val))
    return PhotoSets(photos.is_sample, *sets)


def build_network(settings: Settings, state: RunState) -> Network:
    """A network for the classes of the run, with random weights that depend on its seed."""
    import torch

    import model

    torch.set_num_threads(1)
    torch.manual_seed(state.hyperparameters.seed)
    dtype = model.choose_dtype(settings.cache_dir)
    print(f"Precision: {str(dtype).removeprefix('torch.')}, the fastest on this CPU.")
    arch, image_size = state.hyperparameters.arch, state.hyperparameters.image_size
    return model.build(arch, len(state.class_names), image_size, dtype)


def measure_best_again(
    history: History, net: Network, val: Pixels, num_workers: int, cluster: SingleMachine
) -> None:
    """Measure the best weights on other validation photos. BadInput for NaN or infinite outputs."""
    from hogwear.evaluation import predict
    from hogwear.training.history import Best

    old = history.best
    assert old
    net.load_state_dict(old.weights)
    logits = predict.predict_logits(net, val.images, val.rows, num_workers, cluster.heartbeat)
    logits, labels = cluster.all_gather([logits, val.labels])
    history.best = Best.measure(old.weights, old.epoch, old.image_size, logits, labels)
    print(
        f"The best weights (epoch {old.epoch:.4g}) were evaluated again, on the current "
        f"validation photos: accuracy {history.best.val_acc:.4f}, previously {old.val_acc:.4f}."
    )
