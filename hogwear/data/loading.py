"""Load a split: decode its photos with a progress bar, and exclude what was trained on."""

from collections.abc import Callable
from dataclasses import dataclass, field

from hogwear.data.cache import DecodingJob, PhotoCache
from hogwear.data.photos import Split
from hogwear.data.pixels import ALL_ROWS, Pixels
from hogwear.data.safe_decoder import show_progress
from hogwear.system.text import plural, warn

MAX_WARNINGS = 10


@dataclass(frozen=True)
class Loader:
    """Decodes the photos of a split that are not in the cache yet, and warns about unreadable ones.

    In a cluster, `part` is this machine's share of the rows, `heartbeat` tells the others that it
    is still working, and only one machine shows progress. Photos that were loaded at another size
    before have been warned about.
    """

    cache: PhotoCache
    part: slice = field(default_factory=lambda: ALL_ROWS)
    heartbeat: Callable[[], object] = lambda: None
    shows_progress: bool = True
    warns: bool = True

    def load(self, split: Split, size: int) -> Pixels:
        """The readable photos of a split as pixels. Raises like DecodingJob.finish."""
        return self.finish(self.start(split, size))

    def start(self, split: Split, size: int) -> DecodingJob:
        """Start decoding in worker processes."""
        return self.cache.start(split, size, self.part)

    def finish(self, decoding: DecodingJob) -> Pixels:
        """Wait for a job with a progress bar. Raises like DecodingJob.finish."""
        split = decoding.folder.split
        count = len(range(len(split))[self.part])
        disable = None if self.shows_progress else True
        with show_progress(count, f"decoding {split.name}", disable) as bar:

            def on_progress(count: int) -> None:
                bar.update(count)
                self.heartbeat()

            pixels = decoding.finish(on_progress)
        if self.warns:
            warn_about_skipped(pixels, split.name)
        return pixels


def warn_about_skipped(pixels: Pixels, split: str) -> None:
    """Name the first MAX_WARNINGS photos that could not be read, and count the others."""
    for path, why in list(pixels.skipped.items())[:MAX_WARNINGS]:
        warn(f"skipped '{path}': {why}")
    if (more := len(pixels.skipped) - MAX_WARNINGS) > 0:
        warn(f"skipped {plural(more, 'more photo')} in {split}")
