"""The folders in a data folder: splits, and classes with their subfolders; what is not used."""

import errno
import os
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from hogwear.data.class_names import MAX_NAME, SPLIT_NAMES
from hogwear.data.corrections import CORRECTIONS
from hogwear.system.artifacts import CHECKPOINT, MANIFEST, SORTED
from hogwear.system.errors import BadInput
from hogwear.system.files import Manifest
from hogwear.system.paths import Paths
from hogwear.system.text import is_safe, join_some, normalize, plural, shorten

MAX_EXAMPLES = 3  # of what is not used, in a note
# What is not used: one, and several of the kind
LOOSE = "file in no class folder", "files in no class folder"
OUTPUT = "folder that Hogwear writes to", "folders that Hogwear writes to"
LINK = "link to a folder in a class", "links to folders in a class"
UNNAMED = "file that no row names", "files that no row names"
UNNAMED_FOLDER = "folder that no row names", "folders that no row names"
TOO_LONG = "folder with too long a path", "folders with too long a path"


class DataFolder:
    """A data folder, without hidden entries and without folders that Hogwear writes to.

    These are the `output_folders`, folders with a checkpoint, and those with infer's results. The
    `unused` files and folders are listed by kind, as paths within the data folder.
    """

    def __init__(self, path: Path, output_folders: Iterable[Path]) -> None:
        self.path = path
        if written := {name.partition("/")[0] for name in Manifest(path).digests}:
            written.add(SORTED)
        outputs = *output_folders, *(path / name for name in written)
        self.output_folders = frozenset(map(os.path.realpath, outputs))
        self.unused: dict[tuple[str, str], list[str]] = defaultdict(list)
        visible = self.list_visible(path)
        self.entries = [entry for entry in visible if not is_corrections(entry)]
        self.corrections = [path / entry.name for entry in visible if is_corrections(entry)]
        self.folders = sorted(entry.name for entry in self.entries if entry.is_dir())
        for entry in list_visible(path):
            if self.is_output(entry):
                self.add_unused(OUTPUT, path, entry.name)

    @property
    def notes(self) -> list[str]:
        """For people: how many files and folders are not used, and some of them."""
        parts = []
        for kind, paths in self.unused.items():
            some = join_some([shorten(path, MAX_NAME) for path in sorted(paths)], MAX_EXAMPLES)
            parts.append(f"{plural(len(paths), *kind)} ({some})")
        return [f"Not used: {'; '.join(parts)}."] if parts else []

    def add_unused(self, kind: tuple[str, str], folder: Path, name: str) -> None:
        path = str((folder / name).relative_to(self.path))
        if path not in (file.name for file in self.corrections):
            self.unused[kind].append(path)

    def list_visible(self, folder: Path) -> list[os.DirEntry[str]]:
        return [entry for entry in list_visible(folder) if not self.is_output(entry)]

    def is_output(self, entry: os.DirEntry[str]) -> bool:
        files = (f"{entry.path}/{name}" for name in (CHECKPOINT, MANIFEST))
        return entry.is_dir() and (
            os.path.realpath(entry.path) in self.output_folders or any(map(os.path.isfile, files))
        )

    def find_splits(self) -> dict[str, Path]:
        """{split: its folder}; empty if the folders are classes.

        Raises BadInput if a split has two folders, if there is no train, if a folder is a link that
        leads out, and if a class has the name of a split.
        """
        found = {
            split: [name for name in self.folders if SPLIT_NAMES.get(name.lower()) == split]
            for split in dict.fromkeys(SPLIT_NAMES.values())
        }
        names = list(chain(*found.values()))
        others = [name for name in self.folders if name not in names]
        if names and others and not any(map(self.has_folders, names)):
            raise BadInput(
                f"{self.path / names[0]}: a class cannot be called {names[0]}, because folders "
                f"with one of these names are splits: {', '.join(SPLIT_NAMES)}; rename it, for "
                f"example to {names[0]}_photos"
            )
        for split, several in found.items():
            if len(several) > 1:
                raise BadInput(
                    f"{self.path}: found both {' and '.join(several)}; keep only one of them, as "
                    f"the {split} split"
                )
        if names and not found["train"]:
            some = ", ".join(names)
            raise BadInput(f"{self.path}: found {some} but no train; expected train/CLASS/*")
        if names:
            beside = f"beside {', '.join(names)}"
            for name in others:
                self.add_unused((f"folder {beside}", f"folders {beside}"), self.path, name)
            self.add_loose(self.path, self.entries)
        folders = {split: self.path / several[0] for split, several in found.items() if several}
        for folder in folders.values():
            require_inside(folder, self.path)
        return folders

    def has_folders(self, name: str) -> bool:
        return any(entry.is_dir() for entry in self.list_visible(self.path / name))

    def add_loose(self, folder: Path, entries: list[os.DirEntry[str]]) -> None:
        """Note the files that are beside folders."""
        for entry in entries:
            if not entry.is_dir():
                self.add_unused(LOOSE, folder, entry.name)

    def add_unnamed(self, files: Iterable[str], folders: set[str]) -> None:
        """Note the files that no row of a table names, and all folders but those of its photos."""
        for file in files:
            self.add_unused(UNNAMED, self.path, file)
        of_photos = {os.path.realpath(self.path / name) for name in folders}
        for name in self.folders:
            if os.path.realpath(self.path / name) not in of_photos:
                self.add_unused(UNNAMED_FOLDER, self.path, name)

    def find_classes(self, folder: Path) -> dict[str, Paths]:
        """{class: its photos' paths within the folder}, both sorted.

        Photos are folder/CLASS/* and those in subfolders, at any depth, as in torchvision's
        DatasetFolder. A name in two Unicode forms is one class. Raises BadInput for a class that is
        empty, is a link that leads out, or has a name that cannot be printed.
        """
        entries = self.list_visible(folder)
        self.add_loose(folder, entries)
        folders: dict[str, list[str]] = defaultdict(list)
        for name in sorted(entry.name for entry in entries if entry.is_dir()):
            if not is_safe(name):
                problem = f"the name of the class folder {name!r} cannot be printed"
                raise BadInput(f"{folder}: {problem}; rename it")
            require_inside(folder / name, self.path)
            folders[normalize(name)].append(name)
        if not folders:
            raise BadInput(f"{folder}: no class folders in it; expected {folder}/CLASS/*.jpg")
        return {
            name: Paths(
                f"{each}/{file}" for each in names for file in self.list_files(folder / each)
            )
            for name, names in sorted(folders.items())
        }

    def list_files(self, folder: Path) -> list[str]:
        """The paths within a class folder of all its files, at any depth, sorted.

        Whatever is not a folder is a file: FIFOs, links and the like are skipped later, when nobody
        can exchange them any more. Links to folders are not followed. BadInput if there is no file.
        """
        files: list[str] = []
        real, parents = os.path.realpath(folder), [""]  # within the folder; they end with a slash
        while parents:
            parent = parents.pop()
            try:
                entries = list_entries(f"{folder}/{parent}")
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                self.add_unused(TOO_LONG, folder, parent)
                continue
            if parent and (is_own(entries) or f"{real}/{parent}"[:-1] in self.output_folders):
                self.add_unused(OUTPUT, folder, parent)
                continue
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    parents.append(f"{parent}{entry.name}/")
                elif entry.is_symlink() and os.path.isdir(entry):  # noqa: PTH112 (Path's may raise)
                    self.add_unused(LINK, folder, parent + entry.name)
                else:
                    files.append(parent + entry.name)
        if not files:
            raise BadInput(f"{folder}: no photos in this class; add some or remove the folder")
        return sorted(files)


def list_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def is_own(entries: list[os.DirEntry[str]]) -> bool:
    """Whether a folder with these entries is one that Hogwear has written to."""
    return any(entry.name in (CHECKPOINT, MANIFEST) and entry.is_file() for entry in entries)


def is_corrections(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower() == CORRECTIONS and entry.is_file()


def list_visible(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden, in no order."""
    return [entry for entry in list_entries(folder) if not entry.name.startswith(".")]


def require_inside(path: Path, root: Path) -> None:
    """BadInput for a folder or table that is a link to somewhere outside of `root`."""
    if path.is_symlink() and not (target := path.resolve()).is_relative_to(root.resolve()):
        kind = "folder" if target.is_dir() else "file"
        raise BadInput(
            f"{path}: a link that leads out of {root}, to {target}; put the {kind} itself there, "
            "or mount it there"
        )
