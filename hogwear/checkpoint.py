"""The checkpoint file: written whole or not at all, verified to the last byte, loaded without running anything in it.

The file is what torch.save writes, followed by the SHA-256 of that. (torch's reader checks no checksum of its own.)
"""

import hashlib
import io
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch

from hogwear.choices import CHECKPOINT
from hogwear.errors import BadInput, NoCheckpoint

FORMAT = 1
DIGEST_SIZE = hashlib.sha256().digest_size


def save(model_dir: Path, state: dict[str, Any]) -> None:
    """Replace model_dir/checkpoint.pt, such that a crash at any moment leaves the old one or the new one."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    content = buffer.getbuffer()
    for left_over in model_dir.glob(f".{CHECKPOINT}.*"):  # by a save that was killed; only one run writes here
        left_over.unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile(dir=model_dir, prefix=f".{CHECKPOINT}.", delete=False) as file:
        try:
            file.write(content)
            file.write(hashlib.sha256(content).digest())
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
            Path(file.name).replace(model_dir / CHECKPOINT)
        except BaseException:
            Path(file.name).unlink()
            raise
    folder = os.open(model_dir, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name is on the disk too
    finally:
        os.close(folder)


def load(model_dir: Path) -> dict[str, Any]:
    """What `save` was given. NoCheckpoint if there is none, BadInput if it is damaged or not ours."""
    path = model_dir / CHECKPOINT
    if not path.exists():
        raise NoCheckpoint(f"{path}: no checkpoint; run train first")
    content = path.read_bytes()
    body, digest = memoryview(content)[:-DIGEST_SIZE], content[-DIGEST_SIZE:]
    if hashlib.sha256(body).digest() != digest:
        raise BadInput(f"{path}: damaged (its checksum does not match); move it away, or train with --fresh")
    try:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        why = str(error).strip().splitlines()[0]
        raise BadInput(f"{path}: not a checkpoint of ours ({why}); move it away, or train with --fresh") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise BadInput(f"{path}: not a checkpoint of format {FORMAT}, which this version reads; train with --fresh")
    return state


def file_hash(model_dir: Path) -> str:
    """SHA-256 of the checkpoint file, to say which one a result came from."""
    return hashlib.sha256((model_dir / CHECKPOINT).read_bytes()).hexdigest()
