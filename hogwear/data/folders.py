"""The folders in a data folder: splits, classes, or Hogwear's own, which are neither."""

import os
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from hogwear.data.class_names import MAX_NAMES, SPLIT_NAMES
from hogwear.system.artifacts import CHECKPOINT, MANIFEST
from hogwear.system.errors import BadInput
from hogwear.system.files import Manifest
from hogwear.system.paths import Paths
from hogwear.system.text import is_safe, join_some, normalize


class DataFolder:
    """A data folder, without hidden entries and without folders that Hogwear writes to.

    These are the `output_folders`, folders with a checkpoint, and those with infer's results.
    """

    def __init__(self, path: Path, output_folders: Iterable[Path]) -> None:
        self.path = path
        written = (path / name.partition("/")[0] for name in Manifest(path).digests)
        self.output_folders = frozenset(map(os.path.realpath, (*output_folders, *written)))
        self.entries = self.list_visible(path)
        self.folders = sorted(entry.name for entry in self.entries if entry.is_dir())
        self.notes: list[str] = []  # on folders that are not used, for people
        if ignored := sorted(entry.name for entry in list_visible(path) if self.is_output(entry)):
            self.notes.append(f"Not classes, because Hogwear writes to them: {', '.join(ignored)}.")

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
        if names and others:
            unused = join_some(others, MAX_NAMES)
            self.notes.append(f"Not used, because they are beside {', '.join(names)}: {unused}.")
        folders = {split: self.path / several[0] for split, several in found.items() if several}
        for folder in folders.values():
            require_inside(folder, self.path)
        return folders

    def has_folders(self, name: str) -> bool:
        return any(entry.is_dir() for entry in self.list_visible(self.path / name))

    def find_classes(self, folder: Path) -> dict[str, Paths]:
        """{class: its photos' paths within the folder}, for folder/CLASS/*, both sorted.

        A name in two Unicode forms is one class. Raises BadInput for a class that is empty, is a
        link that leads out, or has a name that cannot be printed.
        """
        folders: dict[str, list[str]] = defaultdict(list)
        for name in sorted(entry.name for entry in self.list_visible(folder) if entry.is_dir()):
            if not is_safe(name):
                problem = f"the name of the class folder {name!r} cannot be printed"
                raise BadInput(f"{folder}: {problem}; rename it")
            require_inside(folder / name, self.path)
            folders[normalize(name)].append(name)
        if not folders:
            raise BadInput(f"{folder}: no class folders in it; expected {folder}/CLASS/*.jpg")
        return {
            name: Paths(f"{each}/{file}" for each in names for file in list_photos(folder / each))
            for name, names in sorted(folders.items())
        }


def list_visible(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden, in no order."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def list_photos(folder: Path) -> list[str]:
    """The sorted names of everything that is not a folder. BadInput if there is nothing.

    Links, FIFOs and the like are skipped later, when nobody can exchange them any more.
    """
    entries = list_visible(folder)
    names = sorted(entry.name for entry in entries if not entry.is_dir(follow_symlinks=False))
    if not names:
        raise BadInput(f"{folder}: no photos in this class; add some or remove the folder")
    return names


def require_inside(path: Path, root: Path) -> None:
    """BadInput for a folder or table that is a link to somewhere outside of `root`."""
    if path.is_symlink() and not (target := path.resolve()).is_relative_to(root.resolve()):
        kind = "folder" if target.is_dir() else "file"
        raise BadInput(
            f"{path}: a link that leads out of {root}, to {target}; put the {kind} itself there, "
            "or mount it there"
        )
