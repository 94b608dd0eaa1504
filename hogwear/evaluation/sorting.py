"""Sort photos: a copy of each in sorted/CLASS/, or in sorted/unsure/ or sorted/unknown/.

Nothing there is ever overwritten or deleted. So photos in these folders may be moved by hand, and a
run may be repeated: a photo that is in one of them already, whichever it is, stays there.
"""

import fcntl
import itertools
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO

from hogwear.data import decoding
from hogwear.data.decoding import Limits, RejectedPhoto
from hogwear.evaluation.prediction import Photo, Prediction
from hogwear.system.errors import BadInput, naming
from hogwear.system.text import escape, normalize, plural

DOUBTS = "unsure", "unknown"  # the folders of photos with such a Prediction.doubt
MAX_STEM, MAX_SUFFIX = 180, 20  # bytes of a name; file systems allow 255 in total
# What Windows, exFAT and SMB do not allow in names, and names that they reserve
FORBIDDEN = re.compile(r'[<>:"/\\|?*]')
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
UNFINISHED = ".unfinished-"  # how the names of copies begin that are being made
FICLONE = 0x40049409  # of <linux/fs.h>: the files share their blocks until one of them is changed


class Sorter:
    """Copies photos into the folders of their predicted classes.

    sorter = Sorter(Path("responses/sorted"), ("hats", "socks"), LIMITS, within=[photos_dir])
    predictions = [sorter.sort(prediction) for prediction in predictions]
    print(sorter.summary())
    """

    def __init__(
        self, folder: Path, class_names: Iterable[str], limits: Limits, within: Iterable[Path]
    ) -> None:
        """Links of photos may lead only to the paths `within`, or into them.

        Raises BadInput where one of the folders is a link, or no folder.
        """
        self.folder, self.limits = folder, limits
        self.within = frozenset(map(os.path.realpath, within))
        self.doubted = {doubt: folder / doubt for doubt in DOUBTS}
        self.folders = {name: folder / safe for name, safe in name_folders(class_names).items()}
        self.copied = self.already_there = self.unreadable = 0
        for path in folder, *self.doubted.values(), *self.folders.values():
            if os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
                raise BadInput(
                    f"{path}: not a folder; move it away, or choose another --responses-dir"
                )
        for leftover in folder.glob(f"{UNFINISHED}*"):  # of a run that was killed
            leftover.unlink()

    def sort(self, prediction: Prediction) -> Prediction:
        """Copy a photo. The result says where it is now, or why it can no longer be read.

        Raises OSError where the copy cannot be written; then there is none.
        """
        photo = prediction.photo
        if photo.error is not None:
            self.unreadable += 1
            return prediction
        with ExitStack() as opened:
            try:
                file = decoding.open_photo(photo.file, self.limits, self.within)
                source = opened.enter_context(file)
                content = decoding.read_verified(source, photo.content_hash)
            except (OSError, RejectedPhoto) as error:
                self.unreadable += 1
                reason = decoding.describe_error(error)
                return Prediction(replace(photo, image=None, error=reason), {})
            copy = self.find_copy(photo, content)
            if copy:
                self.already_there += 1
            else:
                doubt = prediction.doubt
                folder = self.doubted[doubt] if doubt else self.folders[prediction.predicted]
                copy = self.copy(source, content, names_in(folder, photo))
                self.copied += 1
        return replace(prediction, sorted_to=str(copy.relative_to(self.folder.parent)))

    def find_copy(self, photo: Photo, content: bytes) -> Path | None:
        """The file with this content and one of the photo's names, in any of the folders."""
        for folder in *self.doubted.values(), *self.folders.values():
            for path in itertools.takewhile(os.path.lexists, names_in(folder, photo)):
                if has_content(path, content):
                    return path
        return None

    def copy(self, source: BinaryIO, content: bytes, paths: Iterator[Path]) -> Path:
        """Copy a file, whose content has been read, to the first path that is free.

        The blocks are shared with the source where the file system can do that.
        """
        first = next(paths)
        first.parent.mkdir(parents=True, exist_ok=True)
        with (
            naming(first),
            NamedTemporaryFile(dir=self.folder, prefix=UNFINISHED, delete=False) as unfinished,
        ):
            try:
                try:
                    fcntl.ioctl(unfinished.fileno(), FICLONE, source.fileno())
                except OSError:
                    unfinished.write(content)
                    unfinished.flush()
                os.fchmod(unfinished.fileno(), 0o644)
                paths = itertools.chain([first], paths)
                return next(path for path in paths if name_file(Path(unfinished.name), path))
            finally:
                with suppress(OSError):
                    Path(unfinished.name).unlink()

    def summary(self) -> str:
        """One line for people."""
        parts = [f"{plural(self.copied, 'photo')} copied to {self.folder}"]
        if self.already_there:
            parts.append(f"{self.already_there} there already")
        if self.unreadable:
            parts.append(f"{self.unreadable} not readable")
        return f"Sorted: {', '.join(parts)}."


def name_folders(class_names: Iterable[str]) -> dict[str, str]:
    """{class: the name of its folder}, all different, for file systems that ignore case, too."""
    folders: dict[str, str] = {}
    taken = set(DOUBTS)
    for name in class_names:
        safe = to_safe_name(name, MAX_STEM)
        numbered = itertools.chain([safe], (f"{safe}_{n}" for n in itertools.count(2)))
        folders[name] = next(n for n in numbered if normalize(n).casefold() not in taken)
        taken.add(normalize(folders[name]).casefold())
    return folders


def names_in(folder: Path, photo: Photo) -> Iterator[Path]:
    """The paths that a copy of a photo may have: its name, then with the hash of its content.

    Numbers instead would take longer the more photos have the same name.
    """
    stem = to_safe_name(photo.file.stem, MAX_STEM)
    suffix = photo.file.suffix and f".{to_safe_name(photo.file.suffix[1:], MAX_SUFFIX)}"
    yield folder / f"{stem}{suffix}"
    hashed = f"{stem}_{photo.content_hash.hex()[:8]}"
    yield folder / f"{hashed}{suffix}"
    for number in itertools.count(2):
        yield folder / f"{hashed}_{number}{suffix}"


def to_safe_name(text: str, max_bytes: int) -> str:
    """A name that is visible and allowed on all common file systems."""
    name = FORBIDDEN.sub("_", escape(text)).encode()[:max_bytes].decode(errors="ignore").strip()
    name = re.sub(r"^\.|[ .]+$", "_", name) or "_"
    return f"_{name}" if RESERVED.fullmatch(name) else name


def has_content(path: Path, content: bytes) -> bool:
    """Whether a path is a file, and no link, with this content that can be read."""
    with suppress(OSError):
        status = path.lstat()
        is_alike = stat.S_ISREG(status.st_mode) and status.st_size == len(content)
        return is_alike and path.read_bytes() == content
    return False


def name_file(file: Path, path: Path) -> bool:
    """Give a file another name. False where that is taken, even if only a moment ago."""
    try:
        os.link(file, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links, such as exFAT
        if os.path.lexists(path):
            return False
        file.rename(path)
    return True
