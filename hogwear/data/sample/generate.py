"""The built-in sample: drawn product pictures of five classes, for a machine without photos.

Every picture has a random generator of its own, so none depends on how many were drawn before it.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from hogwear.data.sample.garments import KINDS, draw
from hogwear.system.errors import BadInput, naming
from hogwear.system.files import unfinished_prefix

CLASS_NAMES = tuple(KINDS)
PHOTOS_PER_CLASS = {"train": 60, "val": 15, "test": 15}


def ensure_sample(folder: Path, *, seed: int = 0) -> Path:
    """Draw the sample into `folder`/{train,val,test}/CLASS/NNN.jpg, unless it is there already.

    A complete sample stays as it is, whatever its seed. The pictures appear all at once, by a
    rename: several processes may call this at the same time, and a killed one leaves no partial
    sample. The same seed gives the same bytes with the same versions of NumPy and Pillow. Raises
    BadInput, and changes nothing, if `folder` holds anything but the complete sample.
    """
    if is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = unfinished_prefix(folder)
    with TemporaryDirectory(None, prefix, folder.parent, ignore_cleanup_errors=True) as unfinished:
        drawn = Path(unfinished, "sample")
        for split, label, index, path in list_pictures(drawn):
            path.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng((seed, split, label, index))
            with naming(path):
                draw(CLASS_NAMES[label], index, rng).save(path, quality=88)
        drawn.chmod(0o755)  # eval may run as another user
        try:
            drawn.rename(folder)
        except OSError as error:
            if not is_complete(folder):  # if it is, another process has drawn the same
                raise BadInput(
                    f"{folder} is in the way of the sample photos ({error.strerror}): expected "
                    "nothing there, an empty folder or the complete sample. Delete or rename it."
                ) from error
    return folder


def is_complete(folder: Path) -> bool:
    return all(path.is_file() and path.stat().st_size > 0 for *_, path in list_pictures(folder))


def list_pictures(folder: Path) -> Iterator[tuple[int, int, int, Path]]:
    """(number of the split, of the class, and within the class, path) of every picture."""
    for split, (split_name, count) in enumerate(PHOTOS_PER_CLASS.items()):
        for label, class_name in enumerate(CLASS_NAMES):
            for index in range(count):
                yield split, label, index, folder / split_name / class_name / f"{index:03d}.jpg"
