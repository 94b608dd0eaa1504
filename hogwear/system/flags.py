"""Command-line flags from a frozen dataclass.

Each field is a flag, an environment variable HOGWEAR_<FIELD>, and an entry of --help:

    @dataclass(frozen=True)
    class Settings:
        '''The first line of --help.'''
        epochs: int = flag("passes over the photos", 3, Range(1))

    if __name__ == "__main__":
        command.run(main, Settings)

The annotation of a field says how its text is parsed. It must be a type, not a string, so the file
of the class cannot use `from __future__ import annotations`.
"""

import argparse
import inspect
import os
import sys
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from hogwear import __version__
from hogwear.system.errors import BadInput

S = TypeVar("S")
METAVARS: dict[Any, str] = {Path: "PATH", int: "N", float: "X", str: "TEXT"}
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have: from `at_least` up to, but not including, `below`."""

    at_least: float
    below: float = 1_000_000_000  # the product of two such integers fits into 64 bits


def flag(
    help: str,
    default: Any,
    allowed: Range | None = None,
    choices: tuple[str, ...] | None = None,
    default_help: str | None = None,
) -> Any:
    """A setting. Annotated with bool it is a switch, with tuple[T, ...] it takes several values.

    `default_help` describes a default of None, or what a switch is without its flag.
    """
    rules = {"allowed": allowed, "choices": choices}
    return field(default=default, metadata=rules | {"help": help, "default_help": default_help})


def value_type(setting: "Field[Any]") -> Any:
    """T for a setting that is annotated with T, T | None or tuple[T, ...]."""
    return next(iter(get_args(setting.type)), setting.type)


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (see {self.prog} --help)")


def command_name() -> str:
    """What messages call this process: train.py, or doctor for hogwear.commands.doctor."""
    file = Path(sys.argv[0])
    return file.stem if file.parent.name == "commands" else file.name


def parse(settings: type[S], arguments: list[str] | None = None) -> S:
    """Read flags first, then the environment, then the defaults. BadInput for an invalid value.

    An empty variable counts as unset.
    """
    parser = Parser(
        prog=command_name(),
        description=inspect.cleandoc(settings.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Each flag can also be set in the environment as HOGWEAR_<FLAG>, for example "
        "HOGWEAR_SEED=1.",
    )
    parser.add_argument("--version", action="version", version=f"Hogwear {__version__}")
    declared: tuple[Field[Any], ...] = fields(settings)  # type: ignore[arg-type]
    for setting in declared:
        parser.add_argument(flag_name(setting), **make_option(setting))
    given = vars(parser.parse_args(arguments))
    return settings(**{s.name: read_setting(s, given.get(s.name, MISSING)) for s in declared})


def flag_name(setting: "Field[Any]") -> str:
    return "--" + setting.name.replace("_", "-")


def make_option(setting: "Field[Any]") -> dict[str, Any]:
    """A setting's arguments for argparse."""
    rules, kind = setting.metadata, value_type(setting)
    is_tuple = isinstance(setting.default, tuple)
    has_plain_default = not is_tuple and kind is not bool
    default = rules["default_help"] or (setting.default if has_plain_default else None)
    help = rules["help"] + (f" (default: {default})" if default is not None else "")
    option = {"help": help, "default": argparse.SUPPRESS}
    if kind is bool:
        return option | {"action": "store_true"}
    choices = "{" + ",".join(rules["choices"]) + "}" if rules["choices"] else None
    metavar = choices or METAVARS[kind]
    return option | {"metavar": metavar} | ({"nargs": "+", "action": "extend"} if is_tuple else {})


def read_setting(setting: "Field[Any]", given: Any) -> Any:
    """A setting's value: what its flag was `given`, else from the environment, else the default.

    In the environment, a switch is a word, and colons separate several values.
    """
    source = flag_name(setting)
    if given is MISSING:
        source = "HOGWEAR_" + setting.name.upper()
        given = os.environ.get(source)
        if not given:
            return setting.default
        if isinstance(setting.default, tuple):
            given = given.split(os.pathsep)
    if isinstance(given, list):
        return tuple(parse_value(setting, text, source) for text in given)
    if value_type(setting) is bool:
        return given is True or parse_switch(given, source)
    return parse_value(setting, given, source)


def parse_switch(text: str, source: str) -> bool:
    if text.lower() not in TRUE + FALSE:
        words = ", ".join(filter(None, TRUE + FALSE))
        raise BadInput(f"{source}: {text!r} is not one of {words}")
    return text.lower() in TRUE


def parse_value(setting: "Field[Any]", text: str, source: str) -> Any:
    """One value. BadInput, which names the flag or variable `source`, if it is not allowed."""
    rules, kind = setting.metadata, value_type(setting)
    try:
        value = kind(text)
    except ValueError:
        expected = "an integer" if kind is int else "a number"
        raise BadInput(f"{source}: {text!r} is not {expected}") from None
    if rules["choices"] and value not in rules["choices"]:
        raise BadInput(f"{source}: {text!r} is not one of {', '.join(rules['choices'])}")
    allowed = rules["allowed"]
    if allowed and not allowed.at_least <= value < allowed.below:
        bounds = f"at least {allowed.at_least:,} and below {allowed.below:,}"
        raise BadInput(f"{source}: {text} is out of range, expected {bounds}")
    return value
