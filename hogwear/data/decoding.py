"""One photo from a stranger -> pixels, or the reason why not; within limits of size, memory and time.

`decode` is the one way from a file to pixels. `SafeDecoder` calls it in forked workers, where a photo that crashes its decoder or
keeps it busy for ever costs a worker and not the run. Why so: docs/decisions/hostile-photos.md.
"""

import errno
import hashlib
import io
import mmap
import os
import resource
import signal
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm import tqdm

from hogwear.system import machine
from hogwear.system.arrays import UInt8Array
from hogwear.system.files import Paths
from hogwear.system.text import escape
from hogwear.system.workers import MAX_IN_FLIGHT, Jobs, Workers

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # by content; the file's name does not matter
UNREADABLE = Exception  # a decoder fed by strangers may raise anything
TURNS: dict[object, Image.Transpose] = {  # EXIF orientation -> what puts the photo upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITE = (255, 255, 255)
STRIP = (
    1 << 22
)  # pixels made RGB at a time: all of a large photo at once would be in memory several times
BYTES_A_PIXEL, BYTES_AT_LEAST = (
    24,
    512 << 20,
)  # of memory for a photo; honest ones take at most 18 a pixel
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
NOBODY = -1  # no row: this worker is not decoding
HASH_SIZE = 16  # bytes of the BLAKE2b of a file's, as `b2sum --length=128` tells it
CHUNK = 64  # photos in one order to a worker that only looks at them

tqdm.monitor_interval = 0  # its thread is the one thing that would make forking unsafe
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit, which only warns at first; ours is `Limits`

T = TypeVar("T")
Look = Callable[[Path, int, "Limits", frozenset[str] | None], T]  # what `decode` is


@dataclass(frozen=True)
class Limits:
    """What a photo may have; one with more is not decoded."""

    megapixels: int = 50
    megabytes: int = 100  # of the file
    seconds: float = (
        10.0  # of CPU time; the slowest honest ones within the other default limits take 4
    )


LIMITS = Limits()


class Refused(Exception):
    """Not even tried to decode; the message says why."""


class Passing(str):
    """A reason that lies with the system, not with the photo: a right, a disk, memory. It may be gone the next time, so it is never kept."""


def decode(
    path: Path, size: int, limits: Limits = LIMITS, within: frozenset[str] | None = None
) -> UInt8Array:
    """One photo -> (size, size, 3) uint8 RGB: upright, its first frame, over white, its longer side fitted to `size`.

    A link may lead only to the real paths `within`, or into them; None: anywhere.
    Raises any exception (UNREADABLE) for what is not a readable photo; `reason` puts it into words.
    """
    with open_photo(path, limits, within) as file:
        return letterbox(read(file, size, limits).image, size)


def decode_verified(
    path: Path, size: int, limits: Limits, within: frozenset[str] | None, known: bytes
) -> UInt8Array:
    """The same, of a file whose content has this hash. OSError for one that has other bytes by now."""
    content = content_of(path, limits, within)
    if hash_content(content) != known:
        raise OSError(
            errno.ESTALE, "changed while the photos were read; it is looked at again the next time"
        )
    return letterbox(read(io.BytesIO(content), size, limits).image, size)


def content_hash(path: Path, size: int, limits: Limits, within: frozenset[str] | None) -> bytes:
    """(HASH_SIZE) of a photo's file, which nothing is decoded of. Raises as `decode` does."""
    return hash_content(content_of(path, limits, within))


def hash_content(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=HASH_SIZE).digest()


def content_of(path: Path, limits: Limits, within: frozenset[str] | None) -> bytes:
    """As long as the file is when it is opened: one that grows all the time has an end, too."""
    with open_photo(path, limits, within) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def letterbox(fitted: Image.Image, size: int) -> UInt8Array:
    """(size, size, 3), the image in its middle."""
    square = Image.new("RGB", (size, size), WHITE)
    square.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2))
    return np.asarray(square)


class Read(NamedTuple):
    """A decoded photo, and what its file says of it."""

    image: Image.Image  # RGB, upright, its longer side fitted
    format: str  # one of FORMATS
    side: int  # the shorter one, in pixels of the file
    turned: bool  # by EXIF


def read(file: IO[bytes], size: int, limits: Limits) -> Read:
    """What `decode` makes square."""
    image: Image.Image = Image.open(file, formats=FORMATS)
    if (megapixels := image.width * image.height / 1e6) > limits.megapixels:
        raise Refused(
            f"{megapixels:.1f} megapixels, over the limit of {limits.megapixels} (--max-megapixels)"
        )
    format, side, scale = image.format, min(image.size), size / max(image.size)
    image.draft(
        "RGB", (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    )  # JPEG: decodes at 1/2, 1/4, 1/8
    turn = TURNS.get(orientation(image))
    image.load()
    if turn is not None:
        image = image.transpose(turn)
    image = flatten_onto_white(image)
    scale = size / max(image.size)
    fitted = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))),
        Image.Resampling.BILINEAR,
    )
    return Read(
        fitted, "JPEG" if format == "MPO" else format or "", side, turn is not None
    )  # MPO: JPEGs with several pictures


def open_photo(path: Path, limits: Limits, within: frozenset[str] | None) -> BinaryIO:
    """The file, looked at only once it is open, so that nobody can put another in its place between."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO would wait for somebody to write
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        real = os.path.realpath(path)
        if within is not None and within.isdisjoint((real, *map(str, Path(real).parents))):
            raise Refused(
                "a link that leads out of the folder; put the photo itself there"
            ) from None
        descriptor = os.open(real, flags)
    if why := objection(os.fstat(descriptor), limits):
        os.close(descriptor)
        raise Refused(why)
    return os.fdopen(descriptor, "rb")


def objection(status: os.stat_result, limits: Limits) -> str | None:
    """What speaks against reading a file, if anything does."""
    if not stat.S_ISREG(status.st_mode):
        return "not a file"
    if (megabytes := status.st_size / 1e6) > limits.megabytes:
        return f"{megabytes:.1f} megabytes, over the limit of {limits.megabytes} (--max-megabytes)"
    return None if status.st_size else "empty file"


def orientation(image: Image.Image) -> object:
    """The EXIF orientation, 1 to 8, or whatever stands there instead; None where EXIF is missing or broken."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except (
        Exception
    ):  # broken EXIF data fail in as many ways as there are; the pixels may still be good
        return None


def flatten_onto_white(image: Image.Image) -> Image.Image:
    """The image as RGB, white where it is transparent; made in strips, which changes no pixel."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    flat = Image.new("RGB", image.size)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if strip.mode.startswith("I;16"):
            strip = Image.fromarray((np.asarray(strip, dtype=np.uint16) >> 8).astype(np.uint8))
        if strip.has_transparency_data:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, WHITE), strip)
        flat.paste(strip.convert("RGB"), (0, top))
    return flat


def describe_error(error: Exception) -> str:
    """Why a photo was not read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return f"not one of {', '.join(FORMATS)}"
    if isinstance(error, MemoryError):
        return "needs too much memory to decode"
    text = (
        (error.strerror if isinstance(error, OSError) else None)
        or str(error)
        or type(error).__name__
    )
    return escape(text)[:200]


def is_passing(error: Exception) -> bool:
    """Whether it came from the system. (What Pillow says of a photo has no errno.)"""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno is not None)
        or "out of memory" in str(error)
    )


class SafeDecoder:
    """Decodes photos in forked workers: one that crashes its decoder or takes too long is rejected, and the rest go on.

        decoder = SafeDecoder(paths, 160, LIMITS, processes, within=[data_dir])
        with decoder.workers({"decode": decoder.decode}) as workers:
            dict(workers.run("decode", range(len(paths))))     # {row: pixels, or the reason why there are none}

    Such a photo costs the `seconds` of the limits, and what its worker had in hand besides is done again. Workers killed otherwise are
    no photo's fault: `Workers` counts their deaths.
    """

    def __init__(
        self, paths: Paths, size: int, limits: Limits, processes: int, within: Iterable[Path]
    ) -> None:
        self.paths, self.size, self.limits, self.processes = paths, size, limits, processes
        self.within = frozenset(map(os.path.realpath, within))
        self.rank = NOBODY  # in a worker: its own
        self.rejected: dict[
            int, str
        ] = {}  # {row: why}; a worker knows those from before it was forked
        self.busy = np.frombuffer(
            mmap.mmap(-1, 8 * processes), np.int64
        )  # (processes,) the row that each worker is decoding, shared
        self.busy[:] = NOBODY

    def workers(self, jobs: Jobs) -> Workers:
        """Workers for jobs that call `decode`."""

        def prepare(rank: int) -> Jobs:
            self.rank = rank
            warnings.simplefilter("ignore")  # Pillow's, about what is strange in a photo
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            lower(resource.RLIMIT_CORE, 0)
            with suppress(
                FileNotFoundError
            ):  # only Linux tells what is mapped, and keeps this limit
                mapped = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
                photo = max(BYTES_AT_LEAST, int(BYTES_A_PIXEL * 1e6 * self.limits.megapixels))
                lower(
                    resource.RLIMIT_AS, mapped + photo + self.limits.megabytes * 1_000_000
                )  # and its file
            return jobs

        return Workers(self.processes, prepare, self.on_worker_death)

    def decode(self, row: int) -> UInt8Array | str:
        """In a worker: the photo as `decode` gives it, or why there is none."""
        return self.call(row, decode)

    def call(self, row: int, function: Look[T]) -> T | str:
        """In a worker: what a function like `decode` makes of the photo, or why nothing."""
        if row in self.rejected:
            return self.rejected[row]
        self.busy[self.rank] = row
        signal.setitimer(
            signal.ITIMER_PROF, self.limits.seconds
        )  # ends the process; a Python handler would wait for a decoder in C to return
        try:
            return function(self.paths[row], self.size, self.limits, self.within)
        except UNREADABLE as error:
            return Passing(describe_error(error)) if is_passing(error) else describe_error(error)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self.busy[self.rank] = NOBODY

    def on_worker_death(self, rank: int, exitcode: int) -> bool:
        """Condemn the photo that a worker has died of; False where it was none, or where anything may have killed it (SIGKILL)."""
        row = int(self.busy[rank])
        self.busy[rank] = NOBODY
        if row == NOBODY or -exitcode not in (signal.SIGPROF, *CRASHES):
            return False
        slow = -exitcode == signal.SIGPROF
        self.rejected[row] = (
            f"takes more than {self.limits.seconds:g} s to decode"
            if slow
            else f"its decoder crashed ({signal.Signals(-exitcode).name})"
        )
        return True


def map_photos(
    paths: Paths, size: int, limits: Limits, root: Path, look: Look[T], doing: str
) -> Iterator[tuple[int, T | str]]:
    """(row, what `look` makes of that photo, or why nothing), as they come, by all CPUs and with a bar. Links may lead to within `root`."""
    if not len(paths):
        return
    decoder = SafeDecoder(paths, size, limits, min(machine.cpus(), len(paths)), within=[root])
    chunk = min(CHUNK, -(-len(paths) // (MAX_IN_FLIGHT * decoder.processes)))

    def look_at_some(start: int) -> list[T | str]:
        return [decoder.call(row, look) for row in range(start, min(start + chunk, len(paths)))]

    with (
        decoder.workers({"look": look_at_some}) as workers,
        tqdm(
            total=len(paths), desc=doing, unit=" photos", disable=None, delay=0.5, leave=False
        ) as bar,
    ):
        for start, answers in workers.run("look", range(0, len(paths), chunk)):
            yield from enumerate(answers, start)
            bar.update(len(answers))


def lower(what: int, limit: int) -> None:
    """Lower a limit of this process; one that is lower already stays."""
    soft, hard = resource.getrlimit(what)
    if soft == resource.RLIM_INFINITY or soft > limit:
        resource.setrlimit(what, (limit, hard))
