"""The hyperparameters of a run, which stay the same until it is finished."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hogwear.system.errors import BadInput
from hogwear.system.flags import INTEGER_LIMIT

ARCHITECTURES = ("efficientnet_lite0", "tinyvgg")  # built in model.py
ONE_SIZE = ("tinyvgg",)  # architectures whose weights fit a single image size
# Images that each machine sees by default, in one epoch or more.
DEFAULT_IMAGES = {"efficientnet_lite0": 4000, "tinyvgg": 20_000}
# Classes count equally in the loss if the largest has this many times the smallest one's photos.
UNBALANCED = 10
MAX_ROLLBACKS = 2  # each halves the learning rate; the next divergence ends the run


@dataclass(frozen=True)
class Hyperparameters:
    """Defaults for a new run; docs/decisions/defaults.md has the measurements."""

    arch: str = "efficientnet_lite0"
    image_size: int = 160
    epochs: int = 1  # more with fewer than DEFAULT_IMAGES photos
    time_budget: int | None = None  # seconds; image size and epochs follow from it
    batch_size: int = 32
    lr: float | None = None  # None: the network's default
    momentum: float = 0.9
    seed: int = 0


# Of the numbers among them, for the flags and for the check of a checkpoint.
RANGES: dict[str, dict[str, Any]] = {
    "image_size": {"kind": int, "at_least": 32, "below": 1025},
    "epochs": {"kind": int, "at_least": 1, "below": INTEGER_LIMIT},
    "time_budget": {"kind": int, "at_least": 5, "below": INTEGER_LIMIT},
    "batch_size": {"kind": int, "at_least": 1, "below": 4097},
    "lr": {"kind": float, "at_least": 1e-7, "below": 10},
    "momentum": {"kind": float, "at_least": 0, "below": 1},
    "seed": {"kind": int, "at_least": 0, "below": 2**63},
}


def choose_hyperparameters(
    flags: Mapping[str, Any],
    num_photos: int,
    machines: int = 1,
    saved: Hyperparameters | None = None,
    finished: bool = False,
) -> Hyperparameters:
    """The hyperparameters to train with on `num_photos` photos, `flags` being those that were set.

    An interrupted run goes on with its `saved` hyperparameters. A finished one is trained further
    with the same architecture and image size, and the defaults for the rest. BadInput for flags
    that exclude each other or that contradict what is saved.
    """
    if "epochs" in flags and "time_budget" in flags:
        raise BadInput("--epochs and --time-budget exclude each other: use one of them")
    if saved and not finished:
        require_unchanged(flags, saved, tuple(flags), "interrupted run")
        return saved
    start = Hyperparameters()
    if saved:
        fixed = ("arch", "image_size") if saved.arch in ONE_SIZE else ("arch",)
        require_unchanged(flags, saved, fixed, "checkpoint")
        start = Hyperparameters(arch=saved.arch, image_size=saved.image_size)
    arch = flags.get("arch", start.arch)
    epochs = max(1, round(DEFAULT_IMAGES[arch] * machines / num_photos))
    return replace(start, **{"epochs": epochs, **flags})


def require_unchanged(
    flags: Mapping[str, Any], saved: Hyperparameters, names: tuple[str, ...], source: str
) -> None:
    """BadInput where one of these flags is set to another value than the saved one."""
    for name in names:
        value, expected = flags.get(name, getattr(saved, name)), getattr(saved, name)
        if value != expected:
            raise BadInput(
                f"--{name.replace('_', '-')} is {value}, the {source} has {expected}: "
                "omit the flag to go on, use another --model-dir, or --fresh to start over"
            )
