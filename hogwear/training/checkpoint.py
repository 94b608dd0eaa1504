"""The checkpoint file: written completely or not at all, verified to the last byte, loaded safely.

It is what torch.save writes, followed by its SHA-256 (torch's reader verifies no checksum). Nothing
in it runs when it is loaded. The previous checkpoint is kept, in case the disk damages the newer.
"""

import hashlib
import io
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hogwear import __version__
from hogwear.system.artifacts import CHECKPOINT, PREVIOUS_CHECKPOINT
from hogwear.system.errors import BadInput, NoCheckpoint, is_out_of_memory
from hogwear.system.files import unfinished_prefix, write_atomically
from hogwear.system.text import warn

FORMAT = 7
HEADER = {"format": FORMAT, "version": __version__}  # of every checkpoint, beside its state
DIGEST_SIZE = hashlib.sha256().digest_size
SAVING_SHARE = 0.02  # of the time that may go into saving


class Damaged(BadInput):
    """The bytes are not those that were written."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file."""

    file: Path
    state: dict[
        str, Any
    ]  # checkpoint_schema.py says what it holds; RunState.load_state_dict gives it types
    sha256: str  # of the whole file: tells which checkpoint a result came from


def save(model_dir: Path, state: dict[str, Any]) -> None:
    """Replace model_dir/checkpoint.pt. A crash at any moment leaves the old one or the new one.

    BadInput where it cannot be written; the old one is then intact.
    """
    file = model_dir / CHECKPOINT
    buffer = io.BytesIO()
    torch.save({**HEADER, **state}, buffer)
    buffer.write(hashlib.sha256(buffer.getbuffer()).digest())
    try:
        for leftover in model_dir.glob(f"{unfinished_prefix(file)}*"):  # of a save that was killed
            leftover.unlink()
        write_atomically(file, buffer.getbuffer(), partial(keep_previous, model_dir))
        descriptor = os.open(model_dir, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the new names are on the disk, too
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BadInput(
            f"{file}: could not be saved ({error.strerror}); the checkpoint before it is intact: "
            "check the disk, then run train again to resume from there"
        ) from error


def keep_previous(model_dir: Path) -> None:
    """Give checkpoint.pt its second name, as the previous one. There always is a checkpoint.pt."""
    file = model_dir / CHECKPOINT
    link = model_dir / f"{unfinished_prefix(file)}previous"
    try:
        os.link(file, link)
    except FileNotFoundError:  # the first save
        return
    except OSError:  # a file system without hard links, such as exFAT
        file.replace(link)
    link.replace(model_dir / PREVIOUS_CHECKPOINT)
    # Renaming does nothing if both are the same file: an earlier save was killed at this point.
    link.unlink(missing_ok=True)


def load(model_dir: Path) -> Checkpoint:
    """The last checkpoint; if it is damaged or missing, the one before, with a warning.

    Raises NoCheckpoint if there is none, Damaged if none is readable, and BadInput for a file that
    is no checkpoint of this version.
    """
    files = [model_dir / name for name in (CHECKPOINT, PREVIOUS_CHECKPOINT)]
    if not any(file.exists() for file in files):
        raise NoCheckpoint(f"{files[0]}: no checkpoint; run train first")
    problems: list[str] = []
    for file in files:
        try:
            checkpoint = read(file)
        except Damaged as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{file}: {error.strerror}")
        else:
            if problems:
                warn(f"{problems[0]}; using the previous checkpoint, {file.name}")
            return checkpoint
    raise Damaged(f"{'; '.join(problems)}: move them away, or train with --fresh, which keeps them")


def read(file: Path) -> Checkpoint:
    """Read a checkpoint file and verify every byte of it. Raises like `parse`, and OSError."""
    return parse(file, file.read_bytes())


def parse(file: Path, content: bytes) -> Checkpoint:
    """The checkpoint with this content; `file` is for messages.

    Raises Damaged, and BadInput for content that no train of this version has written.
    """
    body, digest = memoryview(content)[:-DIGEST_SIZE], content[-DIGEST_SIZE:]
    if hashlib.sha256(body).digest() != digest:
        raise Damaged(f"{file}: damaged (its checksum does not match)")
    try:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # for unexpected bytes, torch raises many kinds
        if is_out_of_memory(error):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BadInput(
            f"{file}: not a Hogwear checkpoint ({reason}); move it away, or train with --fresh"
        ) from None
    found = state.get("format") if isinstance(state, dict) else None
    found = found if type(found) is int else "none"
    if found != FORMAT:
        raise BadInput(
            f"{file}: not a checkpoint of format {FORMAT}, which this version reads (found: "
            f"{found}); move it away, or train with --fresh"
        )
    return Checkpoint(file, state, hashlib.sha256(content).hexdigest())


class SaveTimer:
    """When to save, so that it takes SAVING_SHARE of the time at most: `with timer: save(...)`."""

    def __init__(self) -> None:
        self.cost = 0.02  # seconds that the last save took; the first is a guess
        self.last_save = time.monotonic()

    def is_due(self) -> bool:
        return time.monotonic() - self.last_save > self.cost / SAVING_SHARE

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self.last_save = time.monotonic()
        self.cost = self.last_save - self.started
