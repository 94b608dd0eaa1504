"""What a checkpoint holds: every key, its type and its range, and the tensors of its network.

A digest shows that a file is as it was written, but not who wrote it. What passes here can be used
without further checks.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any

import numpy as np
from torch import Tensor, strided

from hogwear.evaluation.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, UNREACHABLE
from hogwear.networks.network import Network
from hogwear.networks.parameters import trained_parameters
from hogwear.system.text import is_safe
from hogwear.training.hyperparameters import (
    ARCHITECTURES,
    MAX_ROLLBACKS,
    ONE_SIZE,
    RANGES,
    Hyperparameters,
)

MAX_QUOTED = 60  # characters of a value in a message
Build = Callable[[str, int, int], Network]  # (architecture, classes, image size) -> a network


class InvalidState(ValueError):
    """The message names the value and says what was expected."""


@dataclass(frozen=True)
class Rule:
    """What a single value must be. `accepts` takes any value and never raises."""

    expected: str
    accepts: Callable[[Any], bool]


# A mapping stands for a dict with exactly these keys.
Schema = Rule | Mapping[str, Any]


def number(
    kind: type[int] | type[float],
    at_least: float = 0,
    below: float | None = None,
    at_most: float | None = None,
) -> Rule:
    """A finite int (below 2**63), or a finite float; bool is neither."""
    bounds = {"at least": at_least, "below": below, "at most": at_most}
    words = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
    if below is None:
        below = 2**63 if kind is int else math.inf
    limit = math.inf if at_most is None else at_most
    return Rule(
        f"{'an integer' if kind is int else 'a number'}, {words}",
        lambda value: type(value) is kind and at_least <= value < below and value <= limit,
    )


def optional(rule: Rule) -> Rule:
    return Rule(f"{rule.expected}, or None", lambda value: value is None or rule.accepts(value))


def exactly(expected: object) -> Rule:
    return Rule(
        str(expected), lambda value: type(value) is type(expected) and bool(value == expected)
    )


def tensor(*shape: int | None, dtype: str = "float32") -> Rule:
    """A tensor of finite numbers of this shape; None is any length but 0."""

    def accepts(value: Any) -> bool:
        if not isinstance(value, Tensor) or value.dim() != len(shape):
            return False
        if (value.device.type, value.layout, str(value.dtype)) != (
            "cpu",
            strided,
            f"torch.{dtype}",
        ):
            return False
        if not all(
            length == expected or (expected is None and length)
            for length, expected in zip(value.shape, shape, strict=True)
        ):
            return False
        # By NumPy, which has no threads: workers will be forked from this process.
        return bool(np.isfinite(value.detach().numpy()).all())

    lengths = ", ".join("any" if length is None else str(length) for length in shape)
    return Rule(f"finite {dtype} numbers of shape ({lengths})", accepts)


def weights_of(net: Network) -> Schema:
    return {name: tensor(*value.shape) for name, value in net.state_dict().items()}


def are_class_names(value: Any) -> bool:
    if not isinstance(value, list) or not all(
        type(name) is str and name and is_safe(name) for name in value
    ):
        return False
    return len(set(value)) == len(value) >= 2


def is_digest(value: Any) -> bool:
    return type(value) is str and len(value) == 64 and set(value) <= set("0123456789abcdef")


def hyperparameter(field: "Field[Any]") -> Rule:
    rule = number(**RANGES[field.name]) if field.name in RANGES else ARCH
    return rule if field.default is not None else optional(rule)


ANYTHING = Rule("anything", lambda value: True)
SWITCH = Rule("True or False", lambda value: type(value) is bool)
SHARE = number(float, at_most=1)
LOSS = number(float)
ARCH = Rule(
    f"one of {', '.join(ARCHITECTURES)}",
    lambda value: type(value) is str and value in ARCHITECTURES,
)
HYPERPARAMETERS = {field.name: hyperparameter(field) for field in fields(Hyperparameters)}
PHOTO_SET = {
    "count": number(int, at_least=1),
    "sha256": Rule("64 hexadecimal digits", is_digest),
}
EPOCH_ROW = {
    "epoch": number(int, at_least=1),
    "images": number(int, at_least=1),
    "lr": number(float),
    "train_loss": LOSS,
    "train_acc": SHARE,
    "val_loss": LOSS,
    "val_acc": SHARE,
    "images_per_second": number(float),
}
BEST: dict[str, Schema] = {
    "epoch": number(int, at_least=1),
    "image_size": HYPERPARAMETERS["image_size"],
    "val_loss": LOSS,
    "val_acc": SHARE,
    "temperature": number(float, at_least=MIN_TEMPERATURE, at_most=MAX_TEMPERATURE),
    "confidence_threshold": number(float, at_most=UNREACHABLE),
    "weights": ANYTHING,
}
# What depends on other values, and is ANYTHING here, is checked in `validate`.
STATE: dict[str, Schema] = {
    "format": ANYTHING,
    "class_names": Rule("a list of two or more different printable names", are_class_names),
    "hyperparameters": HYPERPARAMETERS,
    "photos": {"is_sample": SWITCH, "train": PHOTO_SET, "val": PHOTO_SET},
    "split": {**PHOTO_SET, "count": number(int)},
    "trained_on": tensor(None, dtype="int64"),
    "images_seen": number(int),
    "machines": number(int, at_least=1),
    "job_id": optional(Rule("a name", lambda value: type(value) is str)),
    "epochs_done": number(float),
    "first_epoch": number(int),
    "finished": SWITCH,
    "history": Rule("a list of epochs", lambda value: isinstance(value, list)),
    "best": ANYTHING,
    "epoch_metrics": {
        "images": number(int),
        "loss": LOSS,
        "correct": number(int),
        "seconds": number(float),
    },
    "total_images": optional(number(int, at_least=1)),
    "rollbacks": number(int, at_most=MAX_ROLLBACKS),
    "weights": ANYTHING,
    "momentum": ANYTHING,
}


def validate(state: Any, build: Build) -> None:
    """Raises InvalidState where a checkpoint's state is not what train writes."""
    check("", state, STATE)
    history, class_names = state["history"], state["class_names"]
    for epoch, row in enumerate(history, start=1):
        check(f"epoch {epoch} of history", row, EPOCH_ROW)
        check(f"epoch {epoch} of history.epoch", row["epoch"], exactly(epoch))
    check("first_epoch", state["first_epoch"], number(int, at_most=len(history)))
    images = state["epoch_metrics"]["images"]
    check("epoch_metrics.correct", state["epoch_metrics"]["correct"], number(int, at_most=images))

    arch, image_size = (state["hyperparameters"][name] for name in ("arch", "image_size"))
    net = build(arch, len(class_names), image_size)
    check("weights", state["weights"], weights_of(net))
    if history:
        check("best", state["best"], {**BEST, "weights": weights_of(net)})
        check("best.epoch", state["best"]["epoch"], number(int, 1, at_most=len(history)))
        if arch in ONE_SIZE:
            check("best.image_size", state["best"]["image_size"], exactly(image_size))
    else:
        check("best", state["best"], exactly(None))
    if state["finished"]:
        check("history", history, Rule("at least one epoch in a finished run", bool))
        check("momentum", state["momentum"], exactly(None))
    else:
        size = sum(p.numel() for p in trained_parameters(net))
        check("momentum", state["momentum"], tensor(None, size))


def check(name: str, value: Any, schema: Schema) -> None:
    """Raises InvalidState where a value, called `name` in the message, does not fit its schema."""
    if isinstance(schema, Rule):
        if not schema.accepts(value):
            raise InvalidState(f"{name} is {describe(value)}, expected {schema.expected}")
        return
    if not isinstance(value, dict):
        raise InvalidState(f"{name or 'the content'} is {describe(value)}, expected a dict")
    inside = f"{name}." if name else ""
    for key in schema:
        if key not in value:
            raise InvalidState(f"{inside}{key} is missing")
    for key in value:
        if key not in schema:
            raise InvalidState(f"{inside}{describe(key)} is unknown")
    for key, part in schema.items():
        check(f"{inside}{key}", value[key], part)


def describe(value: Any) -> str:
    """A value of any type and size in a few words."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    is_short_number = isinstance(value, float | bool) or (
        isinstance(value, int) and -(2**63) <= value < 2**63
    )
    if is_short_number or isinstance(value, str) or value is None:
        text = repr(value)
        return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."
    return f"of type {type(value).__name__}"
