"""The settings that a training run keeps to until it is finished, however often it is interrupted."""

from dataclasses import dataclass, fields, replace
from typing import Any

from hogwear.system.errors import BadInput
from hogwear.system.flags import INTEGER_LIMIT

ARCHITECTURES = ("efficientnet_lite0", "tinyvgg")  # model.py has them
IMAGES = {
    "efficientnet_lite0": 4000,
    "tinyvgg": 20_000,
}  # that each machine sees by default, in one epoch or more
UNBALANCED = 10  # times as many photos in the largest class as in the smallest: then rare classes count as much as others
ONE_SIZE = ("tinyvgg",)  # its classifier knows every pixel
MAX_ROLLBACKS = (
    2  # times that a run which diverges goes back and tries again with half the learning rate
)
OTHERWISE = "leave it out to go on, use another --model-dir, or --fresh to start over"


@dataclass(frozen=True)
class Hyperparameters:
    """Defaults for a new run; docs/decisions/defaults.md has the measurements."""

    arch: str = "efficientnet_lite0"
    image_size: int = 160
    epochs: int = 1  # more where there are fewer than IMAGES photos
    time_budget: int | None = None  # seconds; the epochs follow from it
    batch_size: int = 32
    lr: float | None = None  # None: the network's own
    momentum: float = 0.9
    seed: int = 0


RANGES: dict[str, dict[str, Any]] = {  # of the numbers among them: the flags' and the checkpoint's
    "image_size": {"kind": int, "at_least": 32, "below": 1025},
    "epochs": {"kind": int, "at_least": 1, "below": INTEGER_LIMIT},
    "time_budget": {"kind": int, "at_least": 5, "below": INTEGER_LIMIT},
    "batch_size": {"kind": int, "at_least": 1, "below": 4097},
    "lr": {"kind": float, "at_least": 1e-7, "below": 10},
    "momentum": {"kind": float, "at_least": 0, "below": 1},
    "seed": {"kind": int, "at_least": 0, "below": 2**63},
}


def choose(
    settings: Any,
    state: dict[str, Any] | None,
    class_names: tuple[str, ...],
    photos: int,
    machines: int = 1,
) -> Hyperparameters:
    """What to train with on so many photos and machines: as `settings` ask, or as the checkpoint `state` says.

    BadInput where the checkpoint is of other classes or another architecture, and where an interrupted run is asked
    to go on with other settings than it had.
    """
    given: dict[str, Any] = {
        f.name: v for f in fields(Hyperparameters) if (v := getattr(settings, f.name)) is not None
    }
    if "epochs" in given and "time_budget" in given:
        raise BadInput("--epochs and --time-budget exclude each other: give one of them")
    arch = (
        given.get("arch", Hyperparameters.arch)
        if state is None
        else state["hyperparameters"]["arch"]
    )
    default = {"epochs": max(1, round(IMAGES[arch] * machines / photos))}
    if state is None:
        return Hyperparameters(**default | given)
    if class_names != tuple(state["class_names"]):
        raise BadInput(
            f"the checkpoint in {settings.model_dir} knows the classes {', '.join(state['class_names'])}; the photos in "
            f"{settings.data_dir} are of {', '.join(class_names)}: use another --model-dir, or --fresh to start over"
        )
    saved = Hyperparameters(**state["hyperparameters"])
    kept = ["arch", "image_size"] if saved.arch in ONE_SIZE else ["arch"]
    for name in kept if state["finished"] else given:
        if (asked := given.get(name, getattr(saved, name))) != getattr(saved, name):
            whose = "checkpoint" if state["finished"] else "interrupted run"
            raise BadInput(
                f"--{name.replace('_', '-')} is {asked}, the {whose} has {getattr(saved, name)}: {OTHERWISE}"
            )
    if not state["finished"]:
        return saved
    return replace(
        Hyperparameters(arch=saved.arch, image_size=state["best"]["image_size"]), **default | given
    )
