"""Standard output and standard error of a command, which may be closed, full, or a pipe whose reader has gone."""

import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hogwear.system.errors import naming

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

OUTPUT = "standard output"


class Output(io.FileIO):
    """Standard output. An error of writing names it."""

    def write(self, text: "ReadableBuffer") -> int:
        with naming(Path(OUTPUT)):
            return super().write(text)


class Messages(io.FileIO):
    """Standard error. What cannot be written there is lost; no run ends for want of a warning."""

    def write(self, text: "ReadableBuffer") -> int:
        with suppress(OSError):
            return super().write(text)
        return memoryview(text).nbytes


def prepare() -> None:
    """Make sys.stdout and sys.stderr of these, whatever the process was started with.

    Each line appears at once, in a log file too. Names need not be of the terminal's encoding.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file would get its number, and all that is printed
            os.open(os.devnull, os.O_RDWR)
    encodings = [stream.encoding if stream else "utf-8" for stream in (sys.stdout, sys.stderr)]
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=True
        )
        for raw, encoding in zip(
            (Output(1, "w", closefd=False), Messages(2, "w", closefd=False)), encodings, strict=True
        )
    )
