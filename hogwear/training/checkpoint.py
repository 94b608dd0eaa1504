"""The checkpoint file: written whole or not at all, verified to the last byte, loaded without running anything in it.

The file is what torch.save writes, followed by the SHA-256 of that. (torch's reader checks no checksum of its own.)
The one before it is kept as well, in case the disk damages the newer one.
"""

import hashlib
import io
import os
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hogwear.system.artifacts import CHECKPOINT, PREVIOUS_CHECKPOINT
from hogwear.system.errors import BadInput, NoCheckpoint, is_out_of_memory
from hogwear.system.text import escape

FORMAT = 4
UNFINISHED = f".{CHECKPOINT}.unfinished-"  # files that nobody else names so
DIGEST_SIZE = hashlib.sha256().digest_size


class Damaged(BadInput):
    """These are not the bytes that were written."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file held."""

    file: Path
    state: dict[str, Any]
    sha256: str  # of the whole file, to say which one a result came from


def save(model_dir: Path, state: dict[str, Any]) -> None:
    """Replace model_dir/checkpoint.pt, such that a crash at any moment leaves the old one or the new one.

    BadInput where the disk does not take it; what was there before is then still there.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    content = buffer.getbuffer()
    try:
        for left_over in model_dir.glob(
            f"{UNFINISHED}*"
        ):  # by a save that was killed; only one run writes here
            left_over.unlink()
        with tempfile.NamedTemporaryFile(dir=model_dir, prefix=UNFINISHED, delete=False) as file:
            try:
                file.write(content)
                file.write(hashlib.sha256(content).digest())
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
                keep_previous(model_dir)
                Path(file.name).replace(model_dir / CHECKPOINT)
            except BaseException:
                with suppress(OSError):
                    Path(file.name).unlink()
                raise
        folder = os.open(model_dir, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new names are on the disk too
        finally:
            os.close(folder)
    except OSError as error:
        raise BadInput(
            f"{model_dir / CHECKPOINT}: could not be saved ({error.strerror}); the one saved before is intact: "
            f"see to the disk, then run train again to go on from there"
        ) from error


def keep_previous(model_dir: Path) -> None:
    """Make checkpoint.pt the previous one. It keeps its own name too, so that there always is a checkpoint.pt."""
    second_name = model_dir / f"{UNFINISHED}previous"
    try:
        os.link(model_dir / CHECKPOINT, second_name)
    except FileNotFoundError:  # the first save
        return
    except OSError:  # a file system without hard links, such as exFAT
        (model_dir / CHECKPOINT).replace(second_name)
    second_name.replace(model_dir / PREVIOUS_CHECKPOINT)
    second_name.unlink(
        missing_ok=True
    )  # rename leaves it where both names are of one file: a save was killed just here


def load(model_dir: Path) -> Checkpoint:
    """The last checkpoint that was saved; where it is damaged or missing, with a warning, the one before.

    Raises NoCheckpoint if there is none, Damaged if none is good, BadInput for one that is not of this version.
    """
    files = [model_dir / name for name in (CHECKPOINT, PREVIOUS_CHECKPOINT)]
    if not any(file.exists() for file in files):
        raise NoCheckpoint(f"{files[0]}: no checkpoint; run train first")
    problems = []
    for file in files:
        try:
            checkpoint = read(file)
        except (Damaged, OSError) as error:
            problems.append(
                f"{file}: {error.strerror}" if isinstance(error, OSError) else str(error)
            )
        else:
            if problems:
                print(
                    escape(
                        f"Warning: {problems[0]}; the one saved before it, {file.name}, is used instead"
                    ),
                    file=sys.stderr,
                )
            return checkpoint
    raise Damaged(f"{'; '.join(problems)}: move them away, or train with --fresh, which keeps them")


def read(file: Path) -> Checkpoint:
    """A checkpoint file, every byte of it verified."""
    return parsed(file, file.read_bytes())


def parsed(file: Path, content: bytes) -> Checkpoint:
    """The checkpoint with this content, which `file` is said to have."""
    body, digest = memoryview(content)[:-DIGEST_SIZE], content[-DIGEST_SIZE:]
    if hashlib.sha256(body).digest() != digest:
        raise Damaged(f"{file}: damaged (its checksum does not match)")
    try:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # odd bytes make the parts of torch's reader raise anything
        if is_out_of_memory(error):
            raise
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BadInput(
            f"{file}: not a checkpoint of ours ({why}); move it away, or train with --fresh"
        ) from None
    if (
        not isinstance(state, dict)
        or type(state.get("format")) is not int
        or state["format"] != FORMAT
    ):
        raise BadInput(
            f"{file}: not a checkpoint of format {FORMAT}, which this version reads; train with --fresh"
        )
    return Checkpoint(file, state, hashlib.sha256(content).hexdigest())
