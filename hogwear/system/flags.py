"""Command lines made from a frozen dataclass: a field is a flag, an environment variable HOGWEAR_<FIELD>, and a line of --help.

@dataclass(frozen=True)
class Settings:
    '''What --help says first.'''
    epochs: int = flag("passes over the photos", 3, at_least=1)

if __name__ == "__main__":
    run(main, Settings)
"""

import argparse
import errno
import inspect
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hogwear.system import streams
from hogwear.system.errors import BadInput
from hogwear.system.text import escape

S = TypeVar("S")
METAVARS: dict[Any, str] = {Path: "PATH", int: "N", float: "X", str: "TEXT"}
MENDED_BY = {
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "free some of your quota, or choose another folder",
    errno.EROFS: "mount it writable, or choose another folder",
    errno.EACCES: "give this user the right to it, or choose another folder",
    errno.EIO: "the disk fails; choose a folder on another one",
}
INTEGER_LIMIT = 1_000_000_000  # an integer, where its flag sets no other limit; a product of two such ones still has 64 bits
OUT_OF_MEMORY = re.compile(  # as torch and the kernel, the loader of libraries, C++, oneDNN and protobuf call it
    "allocate memory|failed to map segment|std::bad_alloc|could not create a primitive$|failed to serialize proto",
    re.IGNORECASE,
)
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def flag(  # noqa: PLR0913
    help: str,
    default: Any,
    *,
    kind: Callable[[str], Any] = str,
    at_least: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    default_help: str | None = None,
) -> Any:
    """A setting. `kind` reads it from text; bool makes a switch, a tuple default takes several values.

    Integers are below INTEGER_LIMIT where `below` sets no other limit.

    `default_help` says in words what a default of None comes to, or what a switch is without its flag.
    """
    below = INTEGER_LIMIT if kind is int and below is None else below
    metadata = {
        "help": help,
        "kind": kind,
        "at_least": at_least,
        "below": below,
        "choices": choices,
        "default_help": default_help,
    }
    return field(default=default, metadata=metadata)


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (see {self.prog} --help)")


def read(setting: "Field[Any]", text: str, source: str) -> Any:
    """One value from text, checked; `source` is the flag or variable that an error names."""
    rules = setting.metadata
    try:
        value = rules["kind"](text)
    except ValueError:
        raise BadInput(
            f"{source}: {text!r} is not {'an integer' if rules['kind'] is int else 'a number'}"
        ) from None
    if rules["choices"] and value not in rules["choices"]:
        raise BadInput(f"{source}: {text!r} is not one of {', '.join(rules['choices'])}")
    low, high = rules["at_least"], rules["below"]
    if (low is not None and not value >= low) or (high is not None and not value < high):
        bounds = [
            f"{words} {limit:,}"
            for words, limit in (("at least", low), ("below", high))
            if limit is not None
        ]
        raise BadInput(f"{source}: {text} is out of range, expected {' and '.join(bounds)}")
    return value


def from_environment(setting: "Field[Any]", text: str, source: str) -> Any:
    """The same from an environment variable, where a switch is a word and several values are separated by `:`."""
    if setting.metadata["kind"] is bool:
        if text.lower() not in TRUE + FALSE:
            raise BadInput(
                f"{source}: {text!r} is not one of {', '.join(filter(None, TRUE + FALSE))}"
            )
        return text.lower() in TRUE
    if isinstance(setting.default, tuple):
        return tuple(read(setting, part, source) for part in text.split(os.pathsep))
    return read(setting, text, source)


def parse(settings: type[S], arguments: list[str] | None = None) -> S:
    """Flags first, then the environment (empty counts as not set), then the defaults. BadInput if a value is wrong."""
    parser = Parser(
        description=inspect.cleandoc(settings.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Every flag can also be an environment variable: HOGWEAR_<FLAG>, for example HOGWEAR_SEED=1.",
    )
    for setting in fields(settings):  # type: ignore[arg-type]
        rules, several = setting.metadata, isinstance(setting.default, tuple)
        option: dict[str, Any] = {"help": rules["help"], "default": MISSING}
        shown = rules["default_help"] or (
            None if several or rules["kind"] is bool else setting.default
        )
        option["help"] += f" (default: {shown})" if shown is not None else ""
        if rules["kind"] is bool:
            option["action"] = "store_true"
        else:
            option["metavar"] = (
                "{" + ",".join(rules["choices"]) + "}"
                if rules["choices"]
                else METAVARS[rules["kind"]]
            )
            option["nargs"] = "+" if several else None
        parser.add_argument("--" + setting.name.replace("_", "-"), **option)
    given = vars(parser.parse_args(arguments))
    values = {}
    for setting in fields(settings):  # type: ignore[arg-type]
        value, variable = given[setting.name], "HOGWEAR_" + setting.name.upper()
        flag_name = "--" + setting.name.replace("_", "-")
        if value is MISSING:
            if text := os.environ.get(variable):
                values[setting.name] = from_environment(setting, text, variable)
        elif isinstance(value, list):
            values[setting.name] = tuple(read(setting, text, flag_name) for text in value)
        else:
            values[setting.name] = (
                value if isinstance(value, bool) else read(setting, value, flag_name)
            )
    return settings(**values)


def run(main: Callable[[S], None], settings: type[S]) -> NoReturn:
    """Call `main` and leave the process with its exit code."""
    streams.prepare()
    signal.signal(signal.SIGINT, interrupted)
    os._exit(
        exit_code(main, settings)
    )  # all is written and closed; to take torch apart piece by piece would take up to a second


def interrupted(signum: int, frame: object) -> NoReturn:
    """Ctrl-C, where there is nothing to put away first. No KeyboardInterrupt: importing torch has swallowed one."""
    with suppress(OSError):
        os.write(sys.stderr.fileno(), f"{Path(sys.argv[0]).name}: interrupted\n".encode())
    os._exit(130)


def exit_code(main: Callable[[S], None], settings: type[S]) -> int:
    """Call `main`: 0, or what it exits with, or an error's code and one line on stderr."""
    try:
        code = 0
        try:
            main(parse(settings))
        except SystemExit as exit:
            code = int(exit.code or 0)
        sys.stdout.flush()
        return code
    except BadInput as error:
        message, code = str(error), error.exit_code
    except Exception as error:
        if is_out_of_memory(error):
            message, code = f"memory ran out: {more_memory()}", 2
        elif not isinstance(error, OSError):
            raise
        elif error.filename == streams.OUTPUT and error.errno == errno.EPIPE:
            return (
                128 + signal.SIGPIPE
            )  # as a program that the signal ends: its reader has seen enough
        else:
            message, code = in_words(error), 2
    print(f"{Path(sys.argv[0]).name}: {escape(message)}", file=sys.stderr, flush=True)
    return code


def in_words(error: OSError) -> str:
    """What the system refused, and what to do."""
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    fix = (
        "write it elsewhere"
        if error.filename == streams.OUTPUT
        else MENDED_BY.get(error.errno or 0)
    )
    return f"{what}; {fix}" if fix else what


def is_out_of_memory(error: Exception) -> bool:
    """NumPy and Pillow raise MemoryError; others say it in words only."""
    return isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error).strip()) is not None


def more_memory() -> str:
    """What to do where there is too little, in a few words."""
    less = "use fewer --workers, a smaller --batch-size or --image-size"
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if allowed == resource.RLIM_INFINITY:
        return less
    return f"ulimit -v allows {allowed >> 10} KiB of address space; raise it (ulimit -v unlimited), or {less}"
