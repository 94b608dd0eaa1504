"""What a checkpoint holds: every key, its type and its range, and exactly the tensors of the network that it is for.

A digest tells only that a file is as it was written, not who wrote it. What passes here can be used without further checks.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from torch import Tensor, strided

from hogwear.evaluation.metrics import MAX_TEMPERATURE, MIN_TEMPERATURE, UNREACHABLE
from hogwear.networks.network import Network
from hogwear.system.text import is_safe
from hogwear.training.hyperparameters import (
    ARCHITECTURES,
    MAX_ROLLBACKS,
    ONE_SIZE,
    RANGES,
    Hyperparameters,
)

LONGEST = 60  # characters of a value that are quoted
Build = Callable[[str, int, int], Network]  # (architecture, classes, image size) -> a network


class Odd(ValueError):
    """The message says which value is not as it should be, and what was expected."""


@dataclass(frozen=True)
class Rule:
    """What a single value has to be. `holds` may be asked about anything and does not raise."""

    expected: str
    holds: Callable[[Any], bool]


Schema = (
    Rule | Mapping[str, Any]
)  # Rules and such mappings inside; a mapping: a dict with these keys and no others


def number(
    kind: type[int] | type[float],
    at_least: float = 0,
    below: float | None = None,
    at_most: float | None = None,
) -> Rule:
    """A finite int (less than 2**63) or float, and not the other one."""
    bounds = {"at least": at_least, "below": below, "at most": at_most}
    words = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
    if below is None:
        below = 2**63 if kind is int else math.inf
    limit = math.inf if at_most is None else at_most
    return Rule(
        f"{'an integer' if kind is int else 'a number'}, {words}",
        lambda value: type(value) is kind and at_least <= value < below and value <= limit,
    )


def or_none(rule: Rule) -> Rule:
    return Rule(f"{rule.expected}, or None", lambda value: value is None or rule.holds(value))


def tensor(*shape: int | None, dtype: str = "float32") -> Rule:
    """A tensor of this shape, None for any length but 0, of finite numbers."""

    def holds(value: Any) -> bool:
        return (
            isinstance(value, Tensor)
            and (value.device.type, value.layout, str(value.dtype))
            == ("cpu", strided, f"torch.{dtype}")
            and value.dim() == len(shape)
            and all(
                length == expected or (expected is None and length)
                for length, expected in zip(value.shape, shape, strict=True)
            )
            and bool(
                np.isfinite(value.detach().numpy()).all()
            )  # NumPy has no threads: workers are yet to be forked
        )

    lengths = ", ".join("any" if length is None else str(length) for length in shape)
    return Rule(f"finite {dtype} numbers of shape ({lengths})", holds)


def are_class_names(value: Any) -> bool:
    if not isinstance(value, list) or not all(
        type(name) is str and name and is_safe(name) for name in value
    ):
        return False
    return len(set(value)) == len(value) >= 2


ANYTHING = Rule("anything", lambda value: True)
SWITCH = Rule("True or False", lambda value: type(value) is bool)
SHARE = number(float, at_most=1)
LOSS = number(float)
HYPERPARAMETERS = {
    "arch": Rule(
        f"one of {', '.join(ARCHITECTURES)}",
        lambda value: type(value) is str and value in ARCHITECTURES,
    )
} | {
    field.name: number(**RANGES[field.name])
    if field.default is not None
    else or_none(number(**RANGES[field.name]))
    for field in fields(Hyperparameters)
    if field.name in RANGES
}
PHOTO_SET = {
    "count": number(int, at_least=1),
    "sha256": Rule(
        "64 hexadecimal digits",
        lambda value: (
            type(value) is str and len(value) == 64 and set(value) <= set("0123456789abcdef")
        ),
    ),
}
ROW = {  # of the history, an epoch; these are also the columns of metrics.csv
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
    "val_acc": SHARE,
    "val_loss": LOSS,
    "temperature": number(float, at_least=MIN_TEMPERATURE, at_most=MAX_TEMPERATURE),
    "confidence_threshold": number(float, at_most=UNREACHABLE),
    "image_size": HYPERPARAMETERS["image_size"],
    "weights": ANYTHING,
}
STATE = {
    "format": ANYTHING,
    "class_names": Rule("a list of two or more different names that can be shown", are_class_names),
    "hyperparameters": HYPERPARAMETERS,
    "photos": {"is_sample": SWITCH, "train": PHOTO_SET, "val": PHOTO_SET},
    "split": {**PHOTO_SET, "count": number(int)},
    "trained_on": tensor(None, dtype="int64"),
    "images_seen": number(int),
    "machines": number(int, at_least=1),
    "job": or_none(Rule("a name", lambda value: type(value) is str)),
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
    "total_images": or_none(number(int, at_least=1)),
    "rollbacks": number(int, at_most=MAX_ROLLBACKS),
    "weights": ANYTHING,
    "momentum": ANYTHING,
}


def require_valid(state: Any, build: Build) -> None:
    """Raises Odd where a checkpoint's state is not what a run writes, `build` being what makes the network that it is for."""
    conform("", state, STATE)
    choices, history, class_names = state["hyperparameters"], state["history"], state["class_names"]
    for epoch, row in enumerate(history, start=1):
        conform(f"epoch {epoch} of history", row, ROW)
        conform(f"epoch {epoch} of history.epoch", row["epoch"], exactly(epoch))
    conform("first_epoch", state["first_epoch"], number(int, at_most=len(history)))
    conform(
        "epoch_metrics.correct",
        state["epoch_metrics"]["correct"],
        number(int, at_most=state["epoch_metrics"]["images"]),
    )

    net = build(choices["arch"], len(class_names), choices["image_size"])
    conform("weights", state["weights"], weights_of(net))
    if history:
        conform("best", state["best"], {**BEST, "weights": weights_of(net)})
        conform("best.epoch", state["best"]["epoch"], number(int, 1, at_most=len(history)))
        if choices["arch"] in ONE_SIZE:
            conform("best.image_size", state["best"]["image_size"], exactly(choices["image_size"]))
    else:
        conform("best", state["best"], {})
    if state["finished"]:
        conform("history", history, Rule("an epoch or more of a finished run", bool))
        conform(
            "momentum",
            state["momentum"],
            Rule("None after the end of a run", lambda value: value is None),
        )
    else:
        conform(
            "momentum",
            state["momentum"],
            tensor(None, sum(p.numel() for p in net.parameters() if p.requires_grad)),
        )


def exactly(value: int) -> Rule:
    return Rule(str(value), lambda other: type(other) is int and other == value)


def weights_of(net: Network) -> Schema:
    return {name: tensor(*value.shape) for name, value in net.state_dict().items()}


def conform(name: str, value: Any, schema: Schema) -> None:
    """Raises Odd where a value, called `name` in the message, does not fit its schema."""
    if isinstance(schema, Rule):
        if not schema.holds(value):
            raise Odd(f"{name} is {shown(value)}, expected {schema.expected}")
        return
    if not isinstance(value, dict):
        raise Odd(f"{name or 'the content'} is {shown(value)}, expected a dict")
    inside = f"{name}." if name else ""
    for key in schema:
        if key not in value:
            raise Odd(f"{inside}{key} is missing")
    for key in value:
        if key not in schema:
            raise Odd(f"{inside}{shown(key)} is not known")
    for key, part in schema.items():
        conform(f"{inside}{key}", value[key], part)


def shown(value: Any) -> str:
    """A value of any kind and size in a few words."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if (
        isinstance(value, float | bool | str)
        or value is None
        or (isinstance(value, int) and -(2**63) <= value < 2**63)
    ):
        text = repr(value)
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return f"of type {type(value).__name__}"
