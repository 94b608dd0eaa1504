"""What the tests of splits share: photos that are found and split, and copies of photos."""

from pathlib import Path

from PIL import Image

from hogwear.data import dataset
from hogwear.data.photos import Photos
from hogwear.data.split_assignments import SplitAssignments
from hogwear.data.splitting import Splitter


def find(data: Path, model: Path, assigns_new: bool = True) -> Photos:
    """As train finds photos, or as eval does. The cache is beside the model folder."""
    splitter = Splitter(SplitAssignments.read(model), assigns_new=assigns_new)
    photos = dataset.find_photos(data, model.parent / "cache", splitter=splitter)
    if assigns_new:
        splitter.assignments.write(model)
    return photos


def copy(photo: Path, target: Path, quality: int = 60, side: int = 10_000) -> None:
    """The photo once more, but of another quality and size."""
    image = Image.open(photo).convert("RGB")
    image.thumbnail((side, side))
    image.save(target, quality=quality)
