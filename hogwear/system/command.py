"""Run a command's main() with its settings, and turn errors into one line and an exit code.

Standard output and error may be closed, full, or a pipe without a reader.
"""

import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO, TypeVar

from hogwear.system import errors, flags
from hogwear.system.errors import BadInput, naming
from hogwear.system.text import escape

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

S = TypeVar("S")
OUTPUT = "standard output"


def run(main: Callable[[S], None], settings: type[S]) -> NoReturn:
    """Call `main`, and end the process with its exit code."""
    wrap_standard_streams()
    signal.signal(signal.SIGINT, exit_on_interrupt)
    code = exit_code(main, settings)
    os._exit(code)  # everything is written and closed; unloading torch could take a second


def exit_on_interrupt(signum: int, frame: object) -> NoReturn:
    """Ctrl-C when there is nothing to save. KeyboardInterrupt could get lost in an import."""
    with suppress(OSError):
        os.write(sys.stderr.fileno(), f"{flags.command_name()}: interrupted\n".encode())
    os._exit(130)


def exit_code(main: Callable[[S], None], settings: type[S]) -> int:
    """Call `main`. Returns 0, its own exit code, or an error's, which it prints on stderr."""
    try:
        code = 0
        try:
            main(flags.parse(settings))
        except SystemExit as exit:
            code = int(exit.code or 0)
        sys.stdout.flush()
        return code
    except BadInput as error:
        message, code = str(error), error.exit_code
    except Exception as error:
        if errors.is_out_of_memory(error):
            message = errors.describe_out_of_memory()
        elif not isinstance(error, OSError):
            raise
        elif error.filename != OUTPUT:
            message = errors.describe_os_error(error)
        elif error.errno == errno.EPIPE:  # the reader of a pipe has gone, as with `| head`
            return 128 + signal.SIGPIPE
        else:
            message = f"{OUTPUT}: {error.strerror}; write it elsewhere"
        code = 2
    print(f"{flags.command_name()}: {escape(message)}", file=sys.stderr, flush=True)
    return code


class Output(io.FileIO):
    """Standard output, which a failed write names."""

    def write(self, text: "ReadableBuffer") -> int:
        with naming(Path(OUTPUT)):
            return super().write(text)


class Messages(io.FileIO):
    """Standard error. A message that cannot be written is lost; no run ends for a warning."""

    def write(self, text: "ReadableBuffer") -> int:
        with suppress(OSError):
            return super().write(text)
        return memoryview(text).nbytes


def wrap_standard_streams() -> None:
    """Replace sys.stdout and sys.stderr by these, however the process was started.

    Each line appears at once, even in log files. Characters that the encoding lacks are escaped.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file would get its number, and everything printed
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = wrap(Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = wrap(Messages(2, "w", closefd=False), sys.stderr)


def wrap(raw: io.FileIO, old: TextIO | None) -> io.TextIOWrapper:
    buffer, encoding = io.BufferedWriter(raw), old.encoding if old else "utf-8"
    return io.TextIOWrapper(buffer, encoding, errors="backslashreplace", line_buffering=True)
