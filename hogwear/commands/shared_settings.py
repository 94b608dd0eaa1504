"""What all commands share: the first flags, and how they open the checkpoint and its photos."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hogwear.data import dataset
from hogwear.data.cache import PhotoCache
from hogwear.data.class_changes import require_same_classes
from hogwear.data.decoding import LIMITS, Limits
from hogwear.data.photos import Photos
from hogwear.data.products import GROUP_BY
from hogwear.data.split_assignments import SplitAssignments
from hogwear.data.splitting import Splitter
from hogwear.data.tables import Columns
from hogwear.system import machine
from hogwear.system.errors import BadInput
from hogwear.system.flags import Range, flag
from hogwear.system.text import escape

if TYPE_CHECKING:
    import torch

    from hogwear.evaluation.trained_model import TrainedModel


UNKNOWN_RATE = flag(
    "call a photo unknown if it is less like the training photos than all but this share of val",
    0.05,
    Range(0, 1),
)


@dataclass(frozen=True)
class SharedSettings:
    """The flags that every command has."""

    data_dir: Path = flag(
        "photos: {train,val,test}/CLASS/*, CLASS/* (with subfolders) or a CSV table; "
        "empty: the built-in sample",
        Path("data"),
    )
    model_dir: Path = flag("folder for checkpoint.pt, split.json and results", Path("model"))
    cache_dir: Path = flag("folder for decoded photos; safe to delete", Path(".cache"))
    image_column: str | None = flag(
        "column of the CSV table with the paths or names of photos",
        None,
        default_help="guessed",
    )
    label_column: str | None = flag(
        "column of the CSV table with the classes",
        None,
        default_help="guessed; five classes for Kaggle's styles.csv",
    )
    group_by: str | None = flag(
        "subfolders of classes: products, whose photos stay together (folder), or not (none)",
        None,
        choices=GROUP_BY,
        default_help="products, if ten or more, with at most 10 %% of the class each",
    )
    group_column: str | None = flag(
        "column of the CSV table with the products, whose photos stay together",
        None,
        default_help="none",
    )
    min_count: int = flag(
        "in CSV tables: ignore classes with fewer photos than this",
        Columns.min_count,
        Range(3),
    )
    max_megapixels: int = flag(
        "skip photos with more megapixels than this; a worker needs up to 18 MB per megapixel",
        LIMITS.megapixels,
        Range(1, 100_001),
    )
    max_megabytes: int = flag("skip files larger than this", LIMITS.megabytes, Range(1, 100_001))

    @property
    def limits(self) -> Limits:
        return Limits(self.max_megapixels, self.max_megabytes)

    @property
    def cache(self) -> PhotoCache:
        return PhotoCache(self.cache_dir, self.limits)

    @property
    def output_folders(self) -> tuple[Path, ...]:
        """Folders whose files are never photos, even inside the data folder."""
        return self.model_dir, self.cache_dir

    def splitter(self, assigns_new: bool) -> Splitter:
        """A splitter that follows model/split.json. Raises as SplitAssignments.read."""
        return Splitter(SplitAssignments.read(self.model_dir), self.limits, assigns_new)

    def photos(self, splitter: Splitter) -> Photos:
        """The photos of the data folder, split by `splitter`. Raises as dataset.find_photos."""
        columns = Columns(
            self.image_column,
            self.label_column,
            self.min_count,
            self.group_column,
            self.group_by,
        )
        return dataset.find_photos(
            self.data_dir, self.cache_dir, columns, splitter, self.output_folders
        )

    def require_same_kind(self, is_sample: bool) -> None:
        """BadInput unless checkpoint and photos are both the built-in sample's, or neither is."""
        is_empty = dataset.is_empty(self.data_dir, self.output_folders)
        if is_empty and not is_sample:
            raise BadInput(
                f"{self.data_dir}: empty, but the checkpoint was trained on real photos; "
                "check for a missing mount or a misspelt --data-dir, "
                "or use another --model-dir for the built-in sample"
            )
        if is_sample and not is_empty:
            raise BadInput(
                f"{self.data_dir}: the checkpoint was trained on the built-in sample, "
                "not on these photos; run train first"
            )


def load_model(settings: SharedSettings, dtype: "torch.dtype | None" = None) -> "TrainedModel":
    """The best network of the checkpoint, by default in the dtype that this CPU is fastest in.

    Prepares the process for forking workers. Raises as model.load.
    """
    import torch  # takes seconds, so only once the flags are known to be valid

    import model

    machine.keep_freed_memory()
    torch.set_num_threads(1)
    return model.load(settings.model_dir, dtype or model.choose_dtype(settings.cache_dir))


def find_photos(settings: SharedSettings, trained: "TrainedModel") -> Photos:
    """The photos of the data folder, split as when the model was trained, without new ones.

    Prints what corrections.csv has changed. BadInput where its classes or its split.json are not
    those that the model was trained with.
    """
    SplitAssignments.read(settings.model_dir).require(trained.split)
    settings.require_same_kind(trained.is_sample)
    photos = settings.photos(settings.splitter(assigns_new=False))
    require_same_classes(trained.class_names, photos.class_names, photos.folder)
    if photos.corrections:
        print(escape(photos.corrections.describe()))
    return photos
