"""The flags of train."""

from dataclasses import dataclass, field, fields
from typing import Any

from hogwear.commands.shared_settings import SharedSettings
from hogwear.system import machine
from hogwear.system.flags import Range, flag
from hogwear.training.hyperparameters import Hyperparameters


def hyperparameter(name: str) -> Any:
    """The flag of a hyperparameter. Its value is None until the user sets it."""
    declared = Hyperparameters.__dataclass_fields__[name]
    default_help = declared.metadata["default_help"] or str(declared.default)
    return field(default=None, metadata={**declared.metadata, "default_help": default_help})


@dataclass(frozen=True)
class Settings(SharedSettings):
    """Train a classifier on the photos in data/ with Hogwild; write model/checkpoint.pt.

    An interrupted run resumes where it stopped. A finished one is trained further: until the
    validation loss stops falling, or for --epochs more epochs.
    """

    arch: str | None = hyperparameter("arch")
    image_size: int | None = hyperparameter("image_size")
    epochs: int | None = hyperparameter("epochs")
    time_budget: int | None = hyperparameter("time_budget")
    workers: int | None = flag(
        "training processes, with one thread each",
        None,
        Range(1, 1025),
        default_help="one per CPU",
    )
    batch_size: int | None = hyperparameter("batch_size")
    lr: float | None = hyperparameter("lr")
    momentum: float | None = hyperparameter("momentum")
    no_mirror: bool | None = hyperparameter("no_mirror")
    seed: int | None = hyperparameter("seed")
    sync_every: int = flag(
        "clusters only: photos seen by all machines together between two averages of the weights",
        1024,
        Range(1),
    )
    rename: tuple[str, ...] = flag(
        "classes that have another name now, as OLD=NEW; without it, OLD is removed and NEW is new",
        (),
    )
    fresh: bool = flag(
        "start a new run; the old checkpoint is kept beside it",
        False,
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
        names = "arch image_size epochs batch_size lr momentum no_mirror seed sync_every"
        names += " group_by group_column"
        values = {name: getattr(self, name) for name in names.split()}
        return values | {"rename": " ".join(self.rename) or None}
