"""Leakage: photos of val or test that were trained on, or that resemble photos in train."""

import hashlib
from contextlib import suppress

import numpy as np

from hogwear.data import near_duplicates
from hogwear.data.contents import shorten_hashes
from hogwear.data.pixels import Pixels
from hogwear.system.arrays import Int64Array
from hogwear.system.errors import BadInput
from hogwear.system.files import write_atomically
from hogwear.system.text import plural, warn
from hogwear.system.workers import call_in_worker


def warn_about_leakage(train: Pixels, held_out: Pixels, name: str) -> None:
    """Print how many photos of the held-out split `name` are in train, too."""
    if count := count_leaked(train, held_out):
        warn(
            f"leakage: {name} shares {count} of its {plural(len(held_out), 'photo')} with "
            "train, exactly or nearly, so its figures may be too good; to list them, run the "
            "doctor: docker compose run --rm doctor, or python -m hogwear.commands.doctor"
        )


def exclude_trained_on(pixels: Pixels, trained_on: Int64Array, name: str) -> Pixels:
    """The photos of the split `name` that no weights were trained on; warns about the others.

    A photo may be in train, too, or may have been there before somebody moved it. `trained_on` has
    shortened hashes, (k,). Raises BadInput if no photo is left.
    """
    is_new = ~np.isin(shorten_hashes(pixels.hashes), trained_on)
    if trained := len(pixels) - int(is_new.sum()):
        some = f"{trained} of {plural(len(pixels), 'photo')} in {name}"
        if not is_new.any():
            raise BadInput(
                f"{some} were used for training, so nothing is left to measure: add other photos, "
                "or train with --fresh once these are no longer in train"
            )
        warn(f"{some} were used for training and are excluded")
    return pixels.where(is_new)


def count_leaked(train: Pixels, held_out: Pixels) -> int:
    """How many photos of `held_out` are in `train`, too, exactly or nearly.

    The cache keeps the result, because 200,000 photos take 6 s. Another process compares them: its
    memory is free again when it ends.
    """
    key = hashlib.sha256(train.hashes.tobytes() + held_out.hashes.tobytes()).hexdigest()[:16]
    file = held_out.folder / f"leaked-{key}.json"
    with suppress(OSError, ValueError):
        return int(file.read_text())
    signatures = train.signatures, held_out.signatures
    count = call_in_worker(lambda: near_duplicates.count_leaked(*signatures))
    if held_out.folder.exists():
        write_atomically(file, str(count).encode())
    return count
