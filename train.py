"""Train a classifier on the photos in data/, with Hogwild on all CPUs, into model/checkpoint.pt.

python train.py                     # starts from ImageNet weights, or resumes an interrupted run
python train.py --epochs 5 --image-size 160
python train.py --fresh             # starts a new run; the old checkpoint is kept beside it
"""

from __future__ import annotations

import importlib
import math
import os
import sys
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hogwear.cluster import membership
from hogwear.cluster.membership import Rank
from hogwear.cluster.peers import SINGLE_MACHINE, Peers, SingleMachine
from hogwear.commands.shared_settings import SharedSettings, require_same_classes
from hogwear.data import dataset, leakage
from hogwear.data.leakage import exclude_trained_on
from hogwear.data.loading import Loader
from hogwear.data.photos import Photos
from hogwear.data.pixels import Pixels
from hogwear.data.split_assignments import SplitAssignments
from hogwear.data.splitting import Splitter
from hogwear.system import command, machine, signals
from hogwear.system.arrays import Int64Array
from hogwear.system.errors import BadInput
from hogwear.system.flags import flag
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


def hyperparameter(name: str) -> Any:
    """The flag of a hyperparameter. Its value is None until the user sets it."""
    declared = Hyperparameters.__dataclass_fields__[name]
    default_help = declared.metadata["default_help"] or str(declared.default)
    return field(default=None, metadata={**declared.metadata, "default_help": default_help})


@dataclass(frozen=True)
class Settings(SharedSettings):
    """Train a classifier on the photos in data/ with Hogwild; write model/checkpoint.pt.

    An interrupted run resumes where it stopped; a finished one is trained for --epochs more epochs.
    """

    arch: str | None = hyperparameter("arch")
    image_size: int | None = hyperparameter("image_size")
    epochs: int | None = hyperparameter("epochs")
    time_budget: int | None = hyperparameter("time_budget")
    workers: int | None = flag(
        "training processes, with one thread each",
        None,
        kind=int,
        at_least=1,
        below=1025,
        default_help="one per CPU",
    )
    batch_size: int | None = hyperparameter("batch_size")
    lr: float | None = hyperparameter("lr")
    momentum: float | None = hyperparameter("momentum")
    seed: int | None = hyperparameter("seed")
    sync_every: int = flag(
        "clusters only: photos seen by all machines together between two averages of the weights",
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
    def num_workers(self) -> int:
        return self.workers or machine.cpus()

    @property
    def hyperparameter_flags(self) -> dict[str, Any]:
        """The hyperparameters that the user has set."""
        values = {each.name: getattr(self, each.name) for each in fields(Hyperparameters)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def cluster_flags(self) -> dict[str, Any]:
        """The flags that must be equal on all machines of a cluster."""
        names = "arch image_size epochs batch_size lr momentum seed sync_every"
        return {name: getattr(self, name) for name in names.split()}


@dataclass(frozen=True)
class Prepared:
    """A trainer, and what else the start of training needs."""

    trainer: Trainer
    budget: Budget | None
    checkpoint: Checkpoint | None  # to resume from
    assignments: SplitAssignments


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
        folder.set_aside(prepared.checkpoint)
    with nullcontext() if is_first else suppress(OSError):  # others may have no model folder
        prepared.assignments.write(settings.model_dir)
    with signals.Stop() as stop, connect(rank, trainer, settings.sync_every) as cluster:
        trainer.fit(stop, cluster, prepared.budget)
    if not trainer.state.finished:
        print(f"Stopped after {trainer.state.images_seen} images; run train again to resume.")
        sys.exit(128 + stop.signal)
    folder.release()
    print(cluster.summary(), end="")
    print(f"Done: best {trainer.state.history.describe_best()}. Next: eval, infer.")


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


def prepare(
    settings: Settings, folder: ModelFolder, cluster: SingleMachine, started: float
) -> Prepared | None:
    """Find checkpoint and photos, plan, decode, create a trainer. None for a job that is done."""
    checkpoint, reason = find_checkpoint(settings, folder)
    photos, splitter = find_photos(settings, cluster)
    checkpoint = agree_on_checkpoint(settings, cluster, photos, checkpoint)
    saved = load_state(checkpoint) if checkpoint else None
    if saved:
        splitter.initial.require(saved.split)
        require_same_classes(saved.class_names, photos)
        if is_job_done(saved):
            return None

    hyperparameters = choose_hyperparameters(
        settings.hyperparameter_flags,
        len(photos.train),
        cluster.machines,
        saved.next_hyperparameters if saved else None,
        finished=bool(saved and saved.finished),
    )
    machine.require_memory(settings.num_workers)
    print_start(checkpoint, saved, reason)
    hyperparameters, budget = plan_time(settings, hyperparameters, photos, saved, started)
    print_plan(hyperparameters, settings.num_workers, photos)

    loader = Loader(settings.cache, cluster.shard, cluster.heartbeat, cluster.rank == 0)
    trained_on = add_photos(saved.trained_on if saved else None, photos.train)
    data = load_data(loader, photos, hyperparameters.image_size, trained_on)
    if cluster.machines == 1:
        leakage.warn_about_leakage(data.train, data.val, "val")

    from hogwear.training.run_state import RunState
    from hogwear.training.trainer import Trainer

    state = RunState(
        class_names=photos.class_names,
        hyperparameters=hyperparameters,
        photos=PhotoSets(
            photos.is_sample,
            train=PhotoSet.from_pixels(data.train, photos.class_names, cluster),
            val=PhotoSet.from_pixels(data.val, photos.class_names, cluster),
        ),
        split=splitter.assignments.version(),
        trained_on=trained_on,
        job_id=membership.read_job_id(),
        total_images=budget.images if budget else None,
    )
    if saved:
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
    return Prepared(trainer, budget, checkpoint, splitter.assignments)


def find_checkpoint(settings: Settings, folder: ModelFolder) -> tuple[Checkpoint | None, str]:
    """The checkpoint to resume from, or None and why a new run starts.

    BadInput for an empty data folder if the checkpoint was trained on real photos.
    """
    if not any(file.exists() for file in folder.checkpoints):
        return None, f"there is no {folder.checkpoints[0]} yet"
    if settings.fresh:
        return None, "--fresh"
    import torch

    import model

    torch.set_num_threads(1)  # in the workers too, which are forked from here
    checkpoint = model.load_checkpoint(folder.path)
    is_sample = load_state(checkpoint).photos.is_sample
    if is_sample and not dataset.is_empty(settings.data_dir, settings.output_folders):
        return None, (
            f"{checkpoint.file} was trained on the built-in sample, "
            f"and now there are photos in {settings.data_dir}"
        )
    settings.require_same_kind(is_sample)
    return checkpoint, ""


def load_state(checkpoint: Checkpoint) -> RunState:
    from hogwear.training.run_state import RunState

    return RunState.load_state_dict(checkpoint.state)


def find_photos(settings: Settings, cluster: SingleMachine) -> tuple[Photos, Splitter]:
    """The photos, and the splitter that has assigned new ones to train, val and test.

    All machines of a cluster split as rank 0 does, which starts from the longest split.json.
    """
    mine = SplitAssignments.read(settings.model_dir)
    contents = cluster.all_gather_bytes(mine.to_json())
    assignments = max((SplitAssignments.parse(text, mine.file) for text in contents), key=len)
    splitter = Splitter(assignments, settings.limits)
    photos = settings.photos(splitter) if cluster.rank == 0 else None
    content = cluster.broadcast_bytes(0, splitter.assignments.to_json())
    if photos is None:
        splitter.assignments = SplitAssignments.parse(content, mine.file)
        splitter.assigns_new = False
        photos = settings.photos(splitter)
    return photos, splitter


def agree_on_checkpoint(
    settings: Settings, cluster: SingleMachine, photos: Photos, checkpoint: Checkpoint | None
) -> Checkpoint | None:
    """The newest checkpoint of all machines. Raises like cluster_agreement.agree and model.load."""
    if cluster.machines == 1:
        return checkpoint
    import model
    from hogwear.training import cluster_agreement

    newest = cluster_agreement.agree(cluster, photos, settings.cluster_flags, checkpoint)
    return newest and model.validate_checkpoint(newest)


def is_job_done(saved: RunState) -> bool:
    """Whether torchrun restarts a job that has finished its run; if so, says it."""
    job_id = membership.read_job_id()
    if not saved.finished or job_id is None or saved.job_id != job_id:
        return False
    print(
        f"Job {job_id} is done: {saved.history.describe_best()}. To train further, "
        "give the job another name: --rdzv-id, or HOGWEAR_JOB in compose."
    )
    return True


def plan_time(
    settings: Settings,
    hyperparameters: Hyperparameters,
    photos: Photos,
    saved: RunState | None,
    started: float,
) -> tuple[Hyperparameters, Budget | None]:
    """With --time-budget: choose the image size, unless it is fixed, and the number of epochs.

    An interrupted run keeps its length. BadInput where the time is too short.
    """
    if not hyperparameters.time_budget or (saved and not saved.finished):
        return hyperparameters, None
    import model
    from hogwear.training import closed_form, time_budget

    num_classes = len(photos.class_names)
    dtype = model.choose_dtype(settings.cache_dir)
    net = model.build(hyperparameters.arch, num_classes, time_budget.MEASURED_SIZE, dtype)
    speed = time_budget.measure_speed(net, photos.train, settings.limits, settings.num_workers)
    work = time_budget.Workload(
        train=len(photos.train),
        val=len(photos.val),
        head=closed_form.PHOTOS_PER_CLASS * num_classes if net.pretrained else 0,
    )
    sizes = time_budget.SIZES
    if saved or settings.image_size:
        sizes = ((hyperparameters.image_size, time_budget.MIN_EPOCHS),)
    budget = time_budget.plan_run(speed, started + hyperparameters.time_budget, work, sizes)
    epochs = math.ceil(budget.images / len(photos.train))
    return replace(hyperparameters, image_size=budget.image_size, epochs=epochs), budget


def print_start(checkpoint: Checkpoint | None, saved: RunState | None, reason: str) -> None:
    if checkpoint is None or saved is None:
        line = f"Starting a new run: {reason}."
    elif saved.finished:
        best = saved.history.describe_best()
        line = f"Resuming from {checkpoint.file}, a finished run with {best}: training it further."
    else:
        images = f"{saved.images_seen} images"
        line = f"Resuming the interrupted run in {checkpoint.file} after {images}."
    print(escape(line))


def print_plan(hyperparameters: Hyperparameters, num_workers: int, photos: Photos) -> None:
    """Print the photos and classes, and how the network will be trained on them."""
    source = "the built-in sample (data/ is empty)" if photos.is_sample else f"{photos.folder}/"
    print(
        f"Dataset: {escape(source)}: {len(photos.train)} training, {len(photos.val)} validation "
        f"photos in {len(photos.class_names)} classes."
    )
    for note in photos.notes:
        print(escape(note))
    print(escape(f"Classes: {', '.join(photos.class_names)}."))
    counts = photos.train.count_per_class(photos.class_names)
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[most] >= UNBALANCED * counts[fewest]:
        print(
            f"Class balance: {plural(counts[fewest], 'photo')} of {escape(fewest)}, {counts[most]} "
            f"of {escape(most)}; all classes count equally in training."
        )
    length = plural(hyperparameters.epochs, "epoch")
    if hyperparameters.time_budget:
        length = f"about {length} in {hyperparameters.time_budget} s"
    cpus = machine.cpus()
    print(
        f"Plan: {hyperparameters.arch} at {hyperparameters.image_size} px, {length}, "
        f"batch size {hyperparameters.batch_size}, "
        f"{plural(num_workers, 'worker')} on {plural(cpus, 'CPU')}."
    )
    if num_workers > cpus:
        warn(f"{num_workers} workers on {plural(cpus, 'CPU')} are slower than {cpus}")


def load_data(
    loader: Loader, photos: Photos, image_size: int, trained_on: Int64Array
) -> TrainingData:
    """Decode the photos of train and val, those that are not in the cache."""
    decoding = loader.start(photos.train, image_size)
    importlib.import_module("model")  # and torch, which takes seconds, while the workers decode
    from hogwear.training.trainer import TrainingData

    train = loader.finish(decoding)
    return TrainingData(train, load_val(loader, photos, image_size, trained_on))


def load_val(loader: Loader, photos: Photos, image_size: int, trained_on: Int64Array) -> Pixels:
    return exclude_trained_on(loader.load(photos.val, image_size), trained_on, "val")


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
        f"The best weights (epoch {old.epoch}) were evaluated again, on the present "
        f"validation photos: accuracy {history.best.val_acc:.4f}, previously {old.val_acc:.4f}."
    )


if __name__ == "__main__":
    command.run(main, Settings)
