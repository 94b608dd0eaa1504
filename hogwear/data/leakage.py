"""Leakage: photos of val or test that are in train, too, exactly or nearly."""

import hashlib
from contextlib import suppress

from hogwear.data import near_duplicates
from hogwear.data.pixels import Pixels
from hogwear.system.files import write_atomically
from hogwear.system.text import plural, warn
from hogwear.system.workers import Workers


def warn_about_leakage(train: Pixels, held_out: Pixels, name: str) -> None:
    """Print how many photos of the held-out split `name` are in train, too."""
    if count := count_leaked(train, held_out):
        warn(
            f"leakage: {name} shares {count} of its {plural(len(held_out), 'photo')} with "
            "train, exactly or nearly, so its figures may be too good; to list them, run the "
            "doctor: docker compose run --rm doctor, or python -m hogwear.commands.doctor"
        )


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
    jobs = {"count": lambda item: near_duplicates.count_leaked(*signatures)}
    with Workers(1, lambda rank: jobs) as workers:
        [(_, count)] = workers.run("count", [0])
    if held_out.folder.exists():
        write_atomically(file, str(count).encode())
    return int(count)
