"""Errors that users can fix: one line on stderr and an exit code, never a traceback."""

import errno
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FIXES = {
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "free some of your quota, or choose another folder",
    errno.EROFS: "mount it writable, or choose another folder",
    errno.EACCES: "give this user permission, or choose another folder",
    errno.EIO: "the disk fails; choose a folder on another one",
}
# How torch and the kernel, the library loader, C++, oneDNN and protobuf say it
OUT_OF_MEMORY = re.compile(
    r"allocate memory|failed to map segment|std::bad_alloc|could not create a primitive$"
    r"|failed to serialize proto",
    re.IGNORECASE,
)


class BadInput(Exception):
    """The message names the value, what was expected, and the fix."""

    exit_code = 2


class NoCheckpoint(BadInput):
    """There is nothing to evaluate or to predict with yet."""

    exit_code = 3


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError, which reading and writing leave out."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def describe_os_error(error: OSError) -> str:
    """What the system refused, and the fix if there is one."""
    problem = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    fix = FIXES.get(error.errno or 0)
    return f"{problem}; {fix}" if fix else problem


def is_out_of_memory(error: Exception) -> bool:
    """NumPy and Pillow raise MemoryError; others only say it in words."""
    return isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error).strip()) is not None


def describe_out_of_memory() -> str:
    less = "use fewer --workers, a smaller --batch-size or --image-size"
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if allowed == resource.RLIM_INFINITY:
        return f"memory ran out: {less}"
    return (
        f"memory ran out: ulimit -v allows {allowed >> 10} KiB of address space; raise it "
        f"(ulimit -v unlimited), or {less}"
    )
