"""What all scripts are told alike: where the photos, the model and the cache are, and which photos are too much."""

from dataclasses import dataclass
from pathlib import Path

from hogwear.data import dataset
from hogwear.data.cache import PhotoCache
from hogwear.data.decoding import LIMITS, Limits
from hogwear.data.photos import Photos
from hogwear.data.split_assignments import SplitAssignments
from hogwear.data.splitting import Splitter
from hogwear.data.tables import Columns
from hogwear.system.errors import BadInput
from hogwear.system.flags import flag


@dataclass(frozen=True)
class SharedSettings:
    """The first flags of every script."""

    data_dir: Path = flag(
        "photos: {train,val,test}/CLASS/*, CLASS/* or a CSV table; empty: the built-in sample",
        Path("data"),
        kind=Path,
    )
    model_dir: Path = flag(
        "folder for checkpoint.pt, split.json and results", Path("model"), kind=Path
    )
    cache_dir: Path = flag("folder for decoded photos; safe to delete", Path(".cache"), kind=Path)
    image_column: str | None = flag(
        "column of the CSV table that holds paths or names of photos",
        None,
        default_help="guessed",
    )
    label_column: str | None = flag(
        "column of the CSV table that holds classes",
        None,
        default_help="guessed; five classes for Kaggle's styles.csv",
    )
    min_count: int = flag(
        "leave out classes of the CSV table that have fewer photos",
        Columns.min_count,
        kind=int,
        at_least=3,
    )
    max_megapixels: int = flag(
        "skip photos with more megapixels; a worker needs up to 18 MB per megapixel",
        LIMITS.megapixels,
        kind=int,
        at_least=1,
        below=100_001,
    )
    max_megabytes: int = flag(
        "skip files with more megabytes", LIMITS.megabytes, kind=int, at_least=1, below=100_001
    )

    @property
    def limits(self) -> Limits:
        return Limits(self.max_megapixels, self.max_megabytes)

    @property
    def cache(self) -> PhotoCache:
        return PhotoCache(self.cache_dir, self.limits)

    def splitter(self, assigns_new: bool) -> Splitter:
        """What divides photos as the model folder's split.json says. Raises as SplitAssignments.read."""
        return Splitter(SplitAssignments.read(self.model_dir), self.limits, assigns_new)

    @property
    def output_folders(self) -> tuple[Path, ...]:
        """Folders that are no photos' even where they lie in the data folder."""
        return self.model_dir, self.cache_dir

    def photos(self, splitter: Splitter | None = None) -> Photos:
        """Divided as train has divided them, without those that it has not seen yet, or by `splitter`. Raises as dataset.find_photos."""
        columns = Columns(self.image_column, self.label_column, self.min_count)
        return dataset.find_photos(
            self.data_dir,
            self.cache_dir,
            columns,
            splitter or self.splitter(assigns_new=False),
            self.output_folders,
        )

    def photos_of(self, class_names: tuple[str, ...], is_sample: bool) -> Photos:
        """The same. BadInput if they cannot be those that a checkpoint was trained on, or more of the same."""
        self.require_same_kind(is_sample)
        photos = self.photos()
        require_same_classes(class_names, photos)
        return photos

    def require_same_kind(self, is_sample: bool) -> None:
        """BadInput where a checkpoint is of the built-in sample and the photos are not, or the other way round."""
        is_empty = dataset.is_empty(self.data_dir, self.output_folders)
        if is_empty and not is_sample:
            raise BadInput(
                f"{self.data_dir}: empty, but the checkpoint was trained on real photos; look for a missing mount or a misspelt --data-dir, "
                f"or use another --model-dir for the built-in sample"
            )
        if is_sample and not is_empty:
            raise BadInput(
                f"{self.data_dir}: the checkpoint was trained on the built-in sample, not on these photos; run train first"
            )


def require_same_classes(class_names: tuple[str, ...], photos: Photos) -> None:
    """BadInput for photos of other classes than a checkpoint's."""
    if photos.class_names != class_names:
        raise BadInput(
            f"{photos.folder}: classes {', '.join(photos.class_names)}, but the checkpoint was trained on "
            f"{', '.join(class_names)}: use the photos it was trained on, or start over with train --fresh"
        )
