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
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hogwear.errors import BadInput
from hogwear.text import escaped

S = TypeVar("S")
METAVARS: dict[Any, str] = {Path: "PATH", int: "N", float: "X", str: "TEXT"}
MENDED_BY = {
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "free some of your quota, or choose another folder",
    errno.EROFS: "mount it writable, or choose another folder",
    errno.EACCES: "give this user the right to it, or choose another folder",
    errno.EIO: "the disk fails; choose a folder on another one",
}
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def flag(help: str, default: Any, *, kind: Callable[[str], Any] = str, at_least: float | None = None,
         below: float | None = None, choices: tuple[str, ...] | None = None, default_help: str | None = None) -> Any:
    """A setting. `kind` reads it from text; bool makes a switch, a tuple default takes several values.

    `default_help` says in words what a default of None comes to, or what a switch is without its flag.
    """
    metadata = {"help": help, "kind": kind, "at_least": at_least, "below": below, "choices": choices,
                "default_help": default_help}
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
        raise BadInput(f"{source}: {text!r} is not {'an integer' if rules['kind'] is int else 'a number'}") from None
    if rules["choices"] and value not in rules["choices"]:
        raise BadInput(f"{source}: {text!r} is not one of {', '.join(rules['choices'])}")
    low, high = rules["at_least"], rules["below"]
    if (low is not None and not value >= low) or (high is not None and not value < high):
        bounds = [f"{words} {limit:g}" for words, limit in (("at least", low), ("below", high)) if limit is not None]
        raise BadInput(f"{source}: {text} is out of range, expected {' and '.join(bounds)}")
    return value


def from_environment(setting: "Field[Any]", text: str, source: str) -> Any:
    """The same from an environment variable, where a switch is a word and several values are separated by `:`."""
    if setting.metadata["kind"] is bool:
        if text.lower() not in TRUE + FALSE:
            raise BadInput(f"{source}: {text!r} is not one of {', '.join(filter(None, TRUE + FALSE))}")
        return text.lower() in TRUE
    if isinstance(setting.default, tuple):
        return tuple(read(setting, part, source) for part in text.split(os.pathsep))
    return read(setting, text, source)


def parse(settings: type[S], arguments: list[str] | None = None) -> S:
    """Flags first, then the environment (empty counts as not set), then the defaults. BadInput if a value is wrong."""
    parser = Parser(description=inspect.cleandoc(settings.__doc__ or ""), formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
                    epilog="Each flag can be set in the environment too: HOGWEAR_<FLAG>, for example HOGWEAR_SEED=1.")
    for setting in fields(settings):  # type: ignore[arg-type]
        rules, several = setting.metadata, isinstance(setting.default, tuple)
        option: dict[str, Any] = {"help": rules["help"], "default": MISSING}
        shown = rules["default_help"] or (None if several or rules["kind"] is bool else setting.default)
        option["help"] += f" (default: {shown})" if shown is not None else ""
        if rules["kind"] is bool:
            option["action"] = "store_true"
        else:
            option["metavar"] = "{" + ",".join(rules["choices"]) + "}" if rules["choices"] else METAVARS[rules["kind"]]
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
            values[setting.name] = value if isinstance(value, bool) else read(setting, value, flag_name)
    return settings(**values)


def run(main: Callable[[S], None], settings: type[S]) -> NoReturn:
    """Call `main` and leave the process with its exit code."""
    for stream in sys.stdout, sys.stderr:  # names need not be of the terminal's encoding; and a log file shall show each line at once
        stream.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    signal.signal(signal.SIGINT, interrupted)
    code = exit_code(main, settings)
    for stream in sys.stdout, sys.stderr:
        with suppress(OSError):
            stream.flush()
    os._exit(code)  # all is written and closed; to take torch apart piece by piece would take up to a second


def interrupted(signum: int, frame: object) -> NoReturn:
    """Ctrl-C, where there is nothing to put away first. No KeyboardInterrupt: importing torch has swallowed one."""
    os.write(sys.stderr.fileno(), f"{Path(sys.argv[0]).name}: interrupted\n".encode())
    os._exit(130)


def exit_code(main: Callable[[S], None], settings: type[S]) -> int:
    """Call `main`: 0, or what it exits with, or an error's code and one line on stderr."""
    try:
        main(parse(settings))
        sys.stdout.flush()
        return 0
    except SystemExit as exit:
        return int(exit.code or 0)
    except BadInput as error:
        message, code = str(error), error.exit_code
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message, code = "memory ran out: use fewer --workers, a smaller --batch-size or --image-size", 2
    except OSError as error:
        message, code = f"{error.filename}: {error.strerror}" if error.filename else str(error), 2
        message += f"; {MENDED_BY[error.errno]}" if error.errno in MENDED_BY else ""
    print(f"{Path(sys.argv[0]).name}: {escaped(message)}", file=sys.stderr)
    return code


def is_out_of_memory(error: Exception) -> bool:
    """NumPy and Pillow raise MemoryError, torch a RuntimeError of its allocator."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)
