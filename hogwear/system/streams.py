"""Standard output and error of a command, which may be closed, full, or a pipe without a reader."""

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
    """Standard output, which an error of writing names."""

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

    Each line appears at once, in log files, too. Characters that the terminal's encoding lacks are
    escaped.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file would get its number, and everything printed
            os.open(os.devnull, os.O_RDWR)
    encodings = [stream.encoding if stream else "utf-8" for stream in (sys.stdout, sys.stderr)]
    raw_streams = Output(1, "w", closefd=False), Messages(2, "w", closefd=False)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=True
        )
        for raw, encoding in zip(raw_streams, encodings, strict=True)
    )
