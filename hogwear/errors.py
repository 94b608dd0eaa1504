"""What can go wrong in a way that its user can mend: one line on stderr and an exit code, never a traceback."""


class BadInput(Exception):
    """The message names the value, what was expected and the fix."""

    exit_code = 2


class NoCheckpoint(BadInput):
    """There is nothing to evaluate or to predict with yet."""

    exit_code = 3
