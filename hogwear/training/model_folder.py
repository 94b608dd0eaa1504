"""The model folder of a run: claimed by one train at a time, and never emptied."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from hogwear.system.artifacts import CHECKPOINT, METRICS, PREVIOUS_CHECKPOINT
from hogwear.system.errors import BadInput
from hogwear.system.files import write_atomically
from hogwear.system.text import escape

if TYPE_CHECKING:  # torch takes seconds to import; train claims the folder first
    from hogwear.training.checkpoint import Checkpoint
    from hogwear.training.run_state import RunState


class ModelFolder:
    """Where a run saves its checkpoint and metrics.csv."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = (path / CHECKPOINT, path / PREVIOUS_CHECKPOINT)
        self.obsolete: tuple[Path, ...] = ()  # checkpoints to set aside
        self.replaced: Path | None = None  # a checkpoint to keep under another name as well
        self.lock: TextIO | None = None

    def claim(self) -> None:
        """Lock the folder until `release` or the end of the process. BadInput if that fails.

        A POSIX lock is not inherited by forked workers, so none that outlives its parent holds it.
        """
        if self.lock:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("a")
        except OSError as error:
            raise BadInput(
                f"{self.path}: not writable by uid {os.getuid()} ({error.strerror}); "
                "change its owner or choose another --model-dir"
            ) from None
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise BadInput(
                f"{self.path}: in use by another train; wait until it has ended, "
                "or choose another --model-dir"
            ) from None
        self.lock = lock

    def release(self) -> None:
        if self.lock:
            self.lock.close()
            self.lock = None

    def set_aside(self, resumed: Checkpoint | None, is_replaced: bool = False) -> None:
        """Rename the checkpoints that the run does not resume from: a damaged one, or, fresh, all.

        One that `is_replaced` by a network with other classes gets a second name. All of that
        happens just before the first save: until then, they can still be used.
        """
        kept = resumed.file if resumed else None
        self.replaced = kept if is_replaced else None
        self.obsolete = tuple(takewhile(lambda file: file != kept, self.checkpoints))

    def save(self, state: RunState) -> None:
        """Write the checkpoint and metrics.csv. BadInput or OSError where that fails."""
        from hogwear.training import checkpoint

        for file in self.obsolete:
            keep_beside(file)
        if self.replaced:
            keep_beside(self.replaced, link_or_copy)
        self.obsolete, self.replaced = (), None
        checkpoint.save(self.path, state.state_dict())
        state.history.write_csv(self.path / METRICS)


def keep_beside(file: Path, keep: Callable[[Path, Path], object] = Path.rename) -> None:
    """Give an old checkpoint, if it exists, a name with the time that no file has."""
    if not file.exists():
        return
    stem = time.strftime(f"{file.stem}-%Y%m%d-%H%M%S")
    kept, number = file.with_name(stem + file.suffix), 1
    while kept.exists():
        number += 1
        kept = file.with_name(f"{stem}-{number}{file.suffix}")
    keep(file, kept)
    print(escape(f"The old checkpoint is kept as {kept}."))


def link_or_copy(file: Path, copy: Path) -> None:
    """Also where the file system has no hard links, such as exFAT."""
    try:
        copy.hardlink_to(file)
    except OSError:
        write_atomically(copy, file.read_bytes())
