"""What a run of train starts from: a checkpoint or nothing, and the photos of the data folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hogwear.cluster import membership
from hogwear.cluster.peers import SingleMachine
from hogwear.commands.train_settings import Settings
from hogwear.data import dataset
from hogwear.data.class_changes import ClassChange, find_change, parse_renames
from hogwear.data.photos import Photos
from hogwear.data.split_assignments import SplitAssignments
from hogwear.data.splitting import Splitter
from hogwear.system.errors import BadInput
from hogwear.system.text import escape
from hogwear.training.model_folder import ModelFolder

if TYPE_CHECKING:  # torch takes seconds to import, and only a checkpoint needs it here
    from hogwear.training.checkpoint import Checkpoint
    from hogwear.training.run_state import RunState


@dataclass(frozen=True)
class StartingPoint:
    """What a run starts from."""

    checkpoint: Checkpoint | None  # to resume from
    saved: RunState | None  # the state in the checkpoint, for the classes as they are now
    change: ClassChange | None  # of the classes since the checkpoint
    reason: str  # why a new run starts, where there is no checkpoint
    photos: Photos
    assignments: SplitAssignments


def find_starting_point(
    settings: Settings, folder: ModelFolder, cluster: SingleMachine
) -> StartingPoint:
    """The checkpoint and photos of all machines. BadInput where the two do not fit together."""
    renamed = parse_renames(settings.rename)
    checkpoint, reason = find_checkpoint(settings, folder)
    photos, splitter = split_photos(settings, cluster)
    checkpoint = agree_on_checkpoint(settings, cluster, photos, checkpoint)
    saved, change = load_state(checkpoint) if checkpoint else None, None
    if saved:
        splitter.initial.require(saved.split)
        change = find_change(saved.class_names, photos.class_names, renamed, photos.folder)
        saved = adapt(saved, change) if change else saved
    elif renamed:
        raise BadInput(
            f"--rename: a new run starts ({reason}), and has no classes to rename; omit the flag"
        )
    return StartingPoint(checkpoint, saved, change, reason, photos, splitter.assignments)


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


def adapt(saved: RunState, change: ClassChange) -> RunState:
    """The saved run for the classes as they are now."""
    import model
    from hogwear.training.changed_classes import change_classes

    arch, image_size = saved.hyperparameters.arch, saved.hyperparameters.image_size
    return change_classes(saved, change, model.build(arch, len(change.before), image_size))


def split_photos(settings: Settings, cluster: SingleMachine) -> tuple[Photos, Splitter]:
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


def print_start(start: StartingPoint) -> None:
    checkpoint, saved, change = start.checkpoint, start.saved, start.change
    if change:
        print(escape(f"The classes have changed since the last run: {change.describe()}."))
        if len(change.added) == len(change.removed) == 1:
            [new], [old] = change.added, change.removed
            hint = f"If {new} is only the new name of {old}, stop, and add --rename {old}={new}."
            print(escape(hint))
    if checkpoint is None or saved is None:
        line = f"Starting a new run: {start.reason}."
    elif saved.initial:
        line = f"Starting from the network in {checkpoint.file}; its head is fitted anew."
        if not checkpoint.state["finished"]:
            line += f" The interrupted run ends after {saved.images_seen} images."
    elif saved.finished:
        best = saved.history.describe_best()
        line = f"Resuming from {checkpoint.file}, a finished run with {best}: training it further."
    else:
        images = f"{saved.images_seen} images"
        line = f"Resuming the interrupted run in {checkpoint.file} after {images}."
    print(escape(line))
