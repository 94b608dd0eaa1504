"""The state of a run, typed: what is remembered between two processes that train it."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import torch

from hogwear.data.split_assignments import SplitVersion
from hogwear.system.arrays import Int64Array
from hogwear.system.errors import BadInput
from hogwear.training.history import Best, EpochRow, History, RunningMetrics
from hogwear.training.hyperparameters import Hyperparameters
from hogwear.training.photo_sets import PhotoSet, PhotoSets
from hogwear.training.recovery import Snapshot
from hogwear.training.schedule import Schedule

# Fields that a checkpoint holds as they are.
PLAIN = ("split", "machines", "job_id", "first_epoch", "finished", "total_images", "rollbacks")


@dataclass
class RunState:
    """The state of a run, with all that eval and infer need.

    Its snapshot counts the images of one machine, the checkpoint those of all machines.
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
    total_images: int | None = None  # of one machine; None: as many as `epochs` take
    rollbacks: int = 0
    snapshot: Snapshot | None = None  # the last sound one; None before training begins

    @property
    def images_seen(self) -> int:
        """In this run, by all machines."""
        return self.snapshot.images_seen * self.machines if self.snapshot else 0

    def first_step(self, schedule: Schedule, machines: int) -> int:
        """The step of `schedule` with which training goes on, now on that many machines.

        BadInput where there is no step left, because photos were deleted.
        """
        if self.snapshot is None:
            return 0
        if machines == self.machines == 1:
            step = schedule.step_at(self.snapshot.images_seen)
        else:  # each machine has another share of the images now
            step = int(self.snapshot.epochs_done * schedule.steps_per_epoch + 1e-6)
        if step >= schedule.total_steps and not self.snapshot.metrics.images:
            raise BadInput(
                f"the interrupted run has seen {self.images_seen} images, and with the photos "
                f"there are now it would end after {schedule.live.total_images}: "
                "use --fresh to start over"
            )
        return step

    def resume(self, saved: Self) -> Self:
        """This run with the progress of a saved one; if that is finished, with its history only."""
        if saved.finished:
            return replace(self, history=saved.history, first_epoch=len(saved.history.rows))
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
        """What checkpoint_schema.py describes. There must be a snapshot."""
        assert self.snapshot
        best = self.history.best
        return {name: getattr(self, name) for name in PLAIN} | {
            "class_names": list(self.class_names),
            "hyperparameters": asdict(self.hyperparameters),
            "photos": asdict(self.photos),
            "trained_on": torch.from_numpy(self.trained_on),
            "images_seen": self.images_seen,
            "epochs_done": self.snapshot.epochs_done,
            "history": [asdict(row) for row in self.history.rows],
            "best": {**vars(best)} if best else None,
            "epoch_metrics": asdict(self.snapshot.metrics),  # of rank 0
            "weights": self.snapshot.weights,
            "momentum": None if self.finished else self.snapshot.momentum,
        }

    @classmethod
    def load_state_dict(cls, state: dict[str, Any]) -> Self:
        """The inverse of `state_dict`, for a dict that checkpoint_schema.py has accepted."""
        photos = state["photos"]
        best = Best(**state["best"]) if state["best"] else None
        return cls(
            class_names=tuple(state["class_names"]),
            hyperparameters=Hyperparameters(**state["hyperparameters"]),
            photos=PhotoSets(
                photos["is_sample"], PhotoSet(**photos["train"]), PhotoSet(**photos["val"])
            ),
            trained_on=state["trained_on"].numpy(),
            history=History([EpochRow(**row) for row in state["history"]], best),
            snapshot=Snapshot(
                images_seen=state["images_seen"] // state["machines"],
                epochs_done=state["epochs_done"],
                metrics=RunningMetrics(**state["epoch_metrics"]),
                weights=state["weights"],
                momentum=state["momentum"],
            ),
            **{name: state[name] for name in PLAIN},
        )
