"""Find the photos that the rows of a table name. For a million rows, each folder is listed once."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from hogwear.system.text import normalize

SUFFIXES = ("", ".jpg", ".jpeg", ".png")  # tried for a name without one
MAX_PATH = 4096  # Linux's limit

NO_IMAGE = "without an image"
OUTSIDE = "with a path out of the folder"
AMBIGUOUS = "whose image has several spellings on the disk"


class SkippedRow(Exception):
    """A row that gives no photo: the reason, to be counted, and its value, as an example."""

    def __init__(self, reason: str, value: str) -> None:
        super().__init__(reason)
        self.reason, self.value = reason, value


class RowFiles:
    """The files in a folder and its subfolders, which rows may name in several ways."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        self.no_files = FileNames([])
        self.by_real_path: dict[str, FileNames] = {}
        self.by_parent: dict[str, FileNames | None] = {}  # as rows write it; None: it leads out

    def find(self, value: str) -> str:
        r"""The path within the folder of the photo that a row names by its path or name in images/.

        The suffix may be missing. If no file has exactly this name, the spelling of another system
        counts, too: `images\1.JPG` for images/1.jpg. Raises SkippedRow if there is no such file, if
        there are several, and if the path leads out of the folder.
        """
        if not value or len(value) > MAX_PATH:
            raise SkippedRow(NO_IMAGE, value)
        spellings = dict.fromkeys((value, value.replace("\\", "/")))
        paths = [os.path.normpath(path) for path in spellings]
        for path in paths:
            if f"{path}/".startswith(("/", "../")):
                raise SkippedRow(OUTSIDE, value)
            for parent, name in candidates(path):
                if name in (names := self.list_parent(parent, value)).is_named:
                    names.is_named[name] = True
                    return f"{parent}{name}"
        for parent, name in (candidate for path in paths for candidate in candidates(path)):
            names = self.list_parent(parent, value)
            if same := names.by_simple_name.get(simplify(name)):
                if len(same) > 1:
                    raise SkippedRow(AMBIGUOUS, value)
                names.is_named[same[0]] = True
                return f"{parent}{same[0]}"
        raise SkippedRow(NO_IMAGE, value)

    def unnamed(self) -> Iterator[str]:
        """The paths within the folder of files that no row has named, where rows look for files."""
        for parent, names in zip(self.folders(), self.by_real_path.values(), strict=True):
            for name, is_named in names.is_named.items():
                if not (is_named or name.startswith(".")):
                    yield f"{parent}/{name}" if parent else name

    def folders(self) -> Iterator[str]:
        """The paths within the folder of those in which rows look for files; "" is itself."""
        for real in self.by_real_path:
            yield real.removeprefix(self.root).lstrip("/")

    def list_parent(self, parent: str, value: str) -> "FileNames":
        """The files of a folder, "" or one that ends with /. SkippedRow if it leads out."""
        if parent not in self.by_parent:
            self.by_parent[parent] = self.list_folder(f"{self.root}/{parent}")
        if (names := self.by_parent[parent]) is None:
            raise SkippedRow(OUTSIDE, value)
        return names

    def list_folder(self, folder: str) -> "FileNames | None":
        """The files of a folder; nothing for a missing one, None for one that leads out."""
        # os.path, because Path's raises for a name too long; first, because realpath is slow
        if not os.path.isdir(folder):  # noqa: PTH112
            return self.no_files
        real = os.path.realpath(folder)
        if not Path(real).is_relative_to(self.root):
            return None
        if real not in self.by_real_path:
            with os.scandir(real) as entries:
                files = [entry for entry in entries if not entry.is_dir(follow_symlinks=False)]
            self.by_real_path[real] = FileNames(entry.name for entry in files)
        return self.by_real_path[real]


class FileNames:
    """The names of the files in one folder."""

    def __init__(self, names: Iterable[str]) -> None:
        self.is_named = dict.fromkeys(names, False)  # {file: whether a row has named it}

    @cached_property
    def by_simple_name(self) -> dict[str, list[str]]:
        """{simplified name: names}; computed only if a row names a file that is not there."""
        names = defaultdict(list)
        for name in self.is_named:
            names[simplify(name)].append(name)
        return names


def candidates(path: str) -> Iterator[tuple[str, str]]:
    """(folder, name) of the places where the file of a row may be."""
    for place in (path, *(f"images/{path}{suffix}" for suffix in SUFFIXES)):
        parent, slash, name = place.rpartition("/")
        yield parent + slash, name


def simplify(name: str) -> str:
    """One form for all names that Windows or macOS may write for the same file."""
    stem, dot, suffix = normalize(name).rpartition(".")
    return f"{stem}.{suffix.lower()}" if dot else suffix
