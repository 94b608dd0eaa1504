"""What a checkpoint holds: every key, its type and its range, and the tensors of its network.

A digest shows that a file is as it was written, but not who wrote it. What passes here can be used
without further checks.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any

import numpy as np
from torch import Tensor, strided

from hogwear.evaluation.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, UNREACHABLE
from hogwear.networks.network import Network
from hogwear.networks.parameters import trained_parameters
from hogwear.system.flags import value_type
from hogwear.system.text import is_safe
from hogwear.training.history import QUANTILES, STAGES
from hogwear.training.hyperparameters import MAX_ROLLBACKS, ONE_SIZE, Hyperparameters

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
    end = below or (2**63 if kind is int else math.inf)
    last = math.inf if at_most is None else at_most
    return Rule(
        f"{'an integer' if kind is int else 'a number'}, {words}",
        lambda value: type(value) is kind and at_least <= value < end and value <= last,
    )


def optional(rule: Rule) -> Rule:
    return Rule(f"{rule.expected}, or None", lambda value: value is None or rule.accepts(value))


def exactly(expected: int | None) -> Rule:
    return Rule(str(expected), lambda value: type(value) is type(expected) and value == expected)


def tensor(*shape: int | None, dtype: str = "float32") -> Rule:
    """A tensor of finite numbers of this shape; None is any length but 0."""

    def accepts(value: Any) -> bool:
        return (
            isinstance(value, Tensor)
            and value.device.type == "cpu"
            and value.layout == strided
            and str(value.dtype) == f"torch.{dtype}"
            and value.dim() == len(shape)
            and all(
                length > 0 if expected is None else length == expected
                for length, expected in zip(value.shape, shape, strict=True)
            )
            # By NumPy, which has no threads: workers will be forked from this process.
            and bool(np.isfinite(value.detach().numpy()).all())
        )

    lengths = ", ".join("any" if length is None else str(length) for length in shape)
    return Rule(f"finite {dtype} numbers of shape ({lengths})", accepts)


def weights_of(net: Network) -> Schema:
    return {name: tensor(*value.shape) for name, value in net.state_dict().items()}


def are_class_names(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(type(name) is str and name and is_safe(name) for name in value)
        and len(set(value)) == len(value) >= 2
    )


def matching(pattern: str, expected: str) -> Rule:
    return Rule(expected, lambda value: type(value) is str and bool(re.fullmatch(pattern, value)))


def hyperparameter(field: Field[Any]) -> Rule:
    if choices := field.metadata["choices"]:
        return matching("|".join(choices), f"one of {', '.join(choices)}")
    if value_type(field) is bool:
        return SWITCH
    allowed = field.metadata["allowed"]
    rule = number(value_type(field), allowed.at_least, allowed.below)
    return rule if field.default is not None else optional(rule)


ANYTHING = Rule("anything", lambda value: True)
SWITCH = Rule("True or False", lambda value: type(value) is bool)
COUNT, POSITIVE = number(int), number(int, at_least=1)
LOSS = RATE = SECONDS = EPOCHS = number(float)
SHARE = number(float, at_most=1)
HYPERPARAMETERS = {field.name: hyperparameter(field) for field in fields(Hyperparameters)}
PHOTO_SET = {"count": POSITIVE, "sha256": matching("[0-9a-f]{64}", "64 hexadecimal digits")}
HISTORY_ROW = {
    "epoch": EPOCHS,
    "stage": matching("|".join(STAGES), f"one of {', '.join(STAGES)}"),
    "images": COUNT,
    "lr": RATE,
    "train_loss": optional(LOSS),
    "train_acc": optional(SHARE),
    "val_loss": LOSS,
    "val_acc": SHARE,
    "images_per_second": RATE,
}
BEST: dict[str, Schema] = {
    "epoch": EPOCHS,
    "image_size": HYPERPARAMETERS["image_size"],
    "val_loss": LOSS,
    "val_acc": SHARE,
    "temperature": number(float, at_least=MIN_TEMPERATURE, at_most=MAX_TEMPERATURE),
    "confidence_threshold": number(float, at_most=UNREACHABLE),
    "novelty_quantiles": tensor(QUANTILES),
    "weights": ANYTHING,
}
# What depends on other values, and is ANYTHING here, is checked in `validate`.
STATE: dict[str, Schema] = {
    "format": ANYTHING,
    "version": matching(r"\d+(\.\d+){2}[.+a-z0-9]*", "a version of Hogwear"),
    "class_names": Rule("a list of two or more different printable names", are_class_names),
    "hyperparameters": HYPERPARAMETERS,
    "photos": {"is_sample": SWITCH, "train": PHOTO_SET, "val": PHOTO_SET},
    "split": {**PHOTO_SET, "count": COUNT},
    "trained_on": tensor(None, dtype="int64"),
    "images_seen": COUNT,
    "machines": POSITIVE,
    "job_id": optional(Rule("a name", lambda value: type(value) is str)),
    "first_epoch": COUNT,
    "start_loss": optional(LOSS),
    "ridge": optional(number(float, at_least=1e-6)),
    "novelty_auroc": optional(SHARE),
    "finished": SWITCH,
    "forecast": ANYTHING,
    "history": Rule("a list of validations", lambda value: isinstance(value, list) and value != []),
    "best": ANYTHING,
    "total_images": optional(COUNT),
    "rollbacks": number(int, at_most=MAX_ROLLBACKS),
    "snapshot": ANYTHING,
}
FORECAST = {"accuracy": SHARE, "loss": LOSS, "photos": POSITIVE}
SNAPSHOT: dict[str, Schema] = {
    "images_seen": COUNT,
    "epochs_done": EPOCHS,
    "metrics": {"images": COUNT, "loss": LOSS, "correct": COUNT, "seconds": SECONDS},
    "weights": ANYTHING,
    "momentum": ANYTHING,
    "average": ANYTHING,
}


def validate(state: Any, build: Build) -> None:
    """Raises InvalidState where a checkpoint's state is not what train writes."""
    check("", state, STATE)
    epochs = 0.0
    for number_of_row, row in enumerate(state["history"], start=1):
        check(f"row {number_of_row} of history", row, HISTORY_ROW)
        rising = number(float, at_least=epochs)
        check(f"row {number_of_row} of history.epoch", row["epoch"], rising)
        epochs = row["epoch"]
    if state["forecast"] is not None:
        check("forecast", state["forecast"], FORECAST)
    arch, image_size = (state["hyperparameters"][name] for name in ("arch", "image_size"))
    net = build(arch, len(state["class_names"]), image_size)
    check("best", state["best"], {**BEST, "weights": weights_of(net)})
    check("best.epoch", state["best"]["epoch"], number(float, at_most=epochs))
    if arch in ONE_SIZE:
        check("best.image_size", state["best"]["image_size"], exactly(image_size))
    if state["finished"]:
        check("snapshot", state["snapshot"], exactly(None))
    else:
        validate_snapshot(state["snapshot"], net)


def validate_snapshot(snapshot: Any, net: Network) -> None:
    """Raises InvalidState as `validate`."""
    size = sum(p.numel() for p in trained_parameters(net))
    tensors = {"weights": weights_of(net), "momentum": tensor(None, size), "average": tensor(size)}
    check("snapshot", snapshot, SNAPSHOT | tensors)
    images = snapshot["metrics"]["images"]
    check("snapshot.metrics.correct", snapshot["metrics"]["correct"], number(int, at_most=images))


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
    is_huge = isinstance(value, int) and not -(2**63) <= value < 2**63
    if is_huge or not isinstance(value, int | float | str | None):
        return f"of type {type(value).__name__}"
    quoted = repr(value)
    return quoted if len(quoted) <= MAX_QUOTED else f"{quoted[:MAX_QUOTED]}..."
