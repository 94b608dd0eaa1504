"""The hyperparameters of a run, which stay the same until it is finished."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hogwear.system.errors import BadInput
from hogwear.system.flags import Range, flag

ARCHITECTURES = ("efficientnet_lite0", "tinyvgg")  # built in model.py
ONE_SIZE = ("tinyvgg",)  # architectures whose weights fit a single image size
# The tail is trained on smaller photos than are classified: docs/decisions/fine-tuning.md
TRAINING_SIZE, MODERATE_SIZE = 128, 224  # pixels: the former, to classify photos up to the latter
TRAINING_SHARE = 0.7  # of --image-size, above MODERATE_SIZE
# Classes count equally in the training loss if the largest one has this many times the photos of
# the smallest: docs/decisions/imbalance.md
UNBALANCED = 10
MAX_ROLLBACKS = 2  # each halves the learning rate; the next divergence ends the run


@dataclass(frozen=True)
class Hyperparameters:
    """Their ranges, and the defaults for a new run (measured in docs/decisions/fine-tuning.md)."""

    arch: str = flag("network architecture", "efficientnet_lite0", choices=ARCHITECTURES)
    image_size: int = flag(
        "side length in pixels to which photos are scaled",
        160,
        Range(32, 1025),
        default_help="160 or 224, chosen by cross-validation on some of the photos",
    )
    epochs: int | None = flag(
        "passes over the training photos, shared by all workers; "
        "0 stops after the closed-form classifier",
        None,
        Range(0),
        default_help="until the validation loss stops falling, but at most 2, or 4,096 images if "
        "that is more (tinyvgg: 20,000)",
    )
    time_budget: int | None = flag(
        "target duration in seconds, instead of --epochs; "
        "also chooses --image-size unless you set it",
        None,
        Range(5),
        default_help="none",
    )
    batch_size: int = flag("photos per step", 32, Range(1, 4097))
    lr: float | None = flag(
        "learning rate after warm-up",
        None,
        Range(1e-7, 10),
        default_help="depends on --arch",
    )
    momentum: float = flag("momentum of SGD", 0.9, Range(0, 1))
    no_mirror: bool = flag(
        "do not mirror photos in training, because the mirror image means something else "
        "(text, left and right)",
        False,
        default_help="off",
    )
    seed: int = flag(
        "random seed for shuffling, augmentation and initial weights",
        0,
        Range(0, 2**63),
    )

    @property
    def training_size(self) -> int:
        """The size in pixels to which photos are scaled in training, at most `image_size`."""
        if self.arch in ONE_SIZE:
            return self.image_size
        if self.image_size > MODERATE_SIZE:
            return 8 * round(TRAINING_SHARE * self.image_size / 8)
        return min(self.image_size, TRAINING_SIZE)


def choose_hyperparameters(
    flags: Mapping[str, Any],
    saved: Hyperparameters | None = None,
    finished: bool = False,
) -> Hyperparameters:
    """The hyperparameters to train with; `flags` are those that were set.

    An interrupted run keeps its `saved` hyperparameters. A finished one keeps its architecture,
    image size and whether photos are mirrored, and takes the defaults for the rest. BadInput for
    flags that exclude each other or contradict what is saved.
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
        start = Hyperparameters(saved.arch, saved.image_size, no_mirror=saved.no_mirror)
    return replace(start, **flags)


def require_unchanged(
    flags: Mapping[str, Any], saved: Hyperparameters, names: tuple[str, ...], source: str
) -> None:
    """BadInput where one of these flags is set to another value than the saved one."""
    for name in names:
        expected = getattr(saved, name)
        if (value := flags.get(name, expected)) != expected:
            raise BadInput(
                f"--{name.replace('_', '-')} is {value}, the {source} has {expected}: "
                "omit the flag to go on, use another --model-dir, or --fresh to start over"
            )
