"""Run a command's main() with its settings, and turn errors into one line and an exit code."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TypeVar

from hogwear.system import errors, flags, streams
from hogwear.system.errors import BadInput
from hogwear.system.text import escape

S = TypeVar("S")


def run(main: Callable[[S], None], settings: type[S]) -> NoReturn:
    """Call `main`, and end the process with its exit code."""
    streams.wrap_standard_streams()
    signal.signal(signal.SIGINT, exit_on_interrupt)
    code = exit_code(main, settings)
    os._exit(code)  # everything is written and closed; to unload torch would take up to a second


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
        elif error.filename != streams.OUTPUT:
            message = errors.describe_os_error(error)
        elif error.errno == errno.EPIPE:  # the reader of a pipe has gone, as with `| head`
            return 128 + signal.SIGPIPE
        else:
            message = f"{streams.OUTPUT}: {error.strerror}; write it elsewhere"
        code = 2
    print(f"{flags.command_name()}: {escape(message)}", file=sys.stderr, flush=True)
    return code
