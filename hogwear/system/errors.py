"""What can go wrong in a way that its user can mend: one line on stderr and an exit code, never a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BadInput(Exception):
    """The message names the value, what was expected and the fix."""

    exit_code = 2


class NoCheckpoint(BadInput):
    """There is nothing to evaluate or to predict with yet."""

    exit_code = 3


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of reading or writing names no file: let it name this one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
