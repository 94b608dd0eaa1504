"""The state of a run, typed: what is remembered between two processes that train it."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from hogwear.data.split_assignments import SplitVersion
from hogwear.evaluation.trained_model import find_reason_for_off
from hogwear.system.arrays import Int64Array
from hogwear.training.discriminant import Forecast
from hogwear.training.history import HOGWILD, Best, History, HistoryRow
from hogwear.training.hyperparameters import Hyperparameters
from hogwear.training.photo_sets import PhotoSet, PhotoSets
from hogwear.training.recovery import Snapshot
from hogwear.training.schedule import Schedule

# Fields that a checkpoint holds as they are.
PLAIN = (
    "split",
    "machines",
    "job_id",
    "first_epoch",
    "finished",
    "total_images",
    "rollbacks",
    "images_seen",
    "start_loss",
    "ridge",
    "novelty_auroc",
)


@dataclass(frozen=True)
class InitialNetwork:
    """What a run starts from if the classes have changed."""

    weights: dict[str, Tensor]
    epoch: float  # passes over the training photos so far, of all runs


@dataclass
class RunState:
    """The state of a run, with all that eval and infer need.

    Its snapshot counts the images of one machine.
    """

    class_names: tuple[str, ...]
    hyperparameters: Hyperparameters
    photos: PhotoSets  # that the run trains on, and that its best weights were measured on
    split: SplitVersion  # of model/split.json
    trained_on: Int64Array  # (k,), shortened hashes of all photos of all runs
    machines: int = 1
    job_id: str | None = None  # of torchrun
    first_epoch: int = 0  # epochs of the runs before it
    finished: bool = False
    history: History = field(default_factory=History)
    forecast: Forecast | None = None  # of the first closed-form classifier
    ridge: float | None = None  # of the same, for all later ones
    novelty_auroc: float | None = None  # of its score of unlike photos; unknown_classes.py
    start_loss: float | None = None  # on the validation photos, before the first step of this run
    train_photos_changed: bool = False  # since the run before
    total_images: int | None = None  # of one machine, planned for a time budget
    rollbacks: int = 0
    images_seen: int = 0  # in this run, by all machines
    initial: InitialNetwork | None = None  # None where the classes are those of the run before
    snapshot: Snapshot | None = None  # the last sound one; None before training and after it

    def first_step(self, schedule: Schedule, machines: int) -> int:
        """The step of `schedule` with which training goes on, now on that many machines."""
        if self.snapshot is None:
            return 0
        if machines == self.machines == 1:
            return schedule.step_at(self.snapshot.images_seen)
        # Each machine has another share of the images now
        return int(self.snapshot.epochs_done * schedule.steps_per_epoch + 1e-6)

    def losses(self) -> list[float]:
        """The validation losses of this run, beginning with that before its first step."""
        rows = self.history.rows
        own = (r for r in rows if r.stage == HOGWILD and r.epoch > self.first_epoch)
        return [self.start_loss or 0.0, *(row.val_loss for row in own)]

    def describe_start(self, is_first: bool) -> str:
        """The last validation; of a pretrained network, also what it will recognise."""
        line = self.history.describe_last(self.forecast if is_first else None)
        return f"{line}\n{self.describe_novelty()}" if self.ridge else line

    def describe_novelty(self) -> str:
        """Whether photos of other things are recognised."""
        if reason := find_reason_for_off(self.novelty_auroc):
            return f"Photos of other things are not recognised as unknown: {reason}."
        return (
            "Photos of other things are recognised as unknown: AUROC "
            f"{self.novelty_auroc:.3f}, for one class left out at a time."
        )

    def resume(self, saved: Self) -> Self:
        """This run with the progress of a saved one; if that is finished, with its history only."""
        if saved.finished:
            epochs = saved.initial.epoch if saved.initial else saved.history.epochs
            return replace(
                self,
                history=saved.history,
                initial=saved.initial,
                first_epoch=math.ceil(epochs),
                forecast=saved.forecast,
                ridge=saved.ridge,
                novelty_auroc=saved.novelty_auroc,
                train_photos_changed=self.photos.train != saved.photos.train,
            )
        return replace(
            saved,
            photos=self.photos,
            split=self.split,
            trained_on=self.trained_on,
            job_id=self.job_id,
        )

    @property
    def next_hyperparameters(self) -> Hyperparameters:
        """The hyperparameters to go on with. The best weights keep their image size."""
        best = self.history.best
        if not self.finished or best is None:
            return self.hyperparameters
        return replace(self.hyperparameters, image_size=best.image_size)

    def state_dict(self) -> dict[str, Any]:
        """What checkpoint_schema.py describes. There must have been a validation."""
        best = self.history.best
        assert best
        return {name: getattr(self, name) for name in PLAIN} | {
            "class_names": list(self.class_names),
            "hyperparameters": asdict(self.hyperparameters),
            "photos": asdict(self.photos),
            "trained_on": torch.from_numpy(self.trained_on),
            "forecast": asdict(self.forecast) if self.forecast else None,
            "history": [asdict(row) for row in self.history.rows],
            "best": {**vars(best)},
            "snapshot": None if self.finished else self.snapshot and self.snapshot.state_dict(),
        }

    @classmethod
    def load_state_dict(cls, state: dict[str, Any]) -> Self:
        """The inverse of `state_dict`, for a dict that checkpoint_schema.py has accepted."""
        photos, snapshot, forecast = state["photos"], state["snapshot"], state["forecast"]
        rows = [HistoryRow(**row) for row in state["history"]]
        return cls(
            class_names=tuple(state["class_names"]),
            hyperparameters=Hyperparameters(**state["hyperparameters"]),
            photos=PhotoSets(
                photos["is_sample"], PhotoSet(**photos["train"]), PhotoSet(**photos["val"])
            ),
            trained_on=state["trained_on"].numpy(),
            forecast=Forecast(**forecast) if forecast else None,
            history=History(rows, Best(**state["best"])),
            snapshot=Snapshot.load_state_dict(snapshot) if snapshot else None,
            **{name: state[name] for name in PLAIN},
        )
