"""What the folders in a data folder are: splits, classes, or Hogwear's own, which are neither."""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from hogwear.data.tables import CLASSES_SHOWN, SPLITS
from hogwear.system.artifacts import CHECKPOINT, MANIFEST
from hogwear.system.errors import BadInput
from hogwear.system.files import Manifest, Paths
from hogwear.system.text import is_safe, normalize


class DataFolder:
    """A data folder without what is hidden (.gitkeep, .DS_Store) and without folders that Hogwear itself writes to.

    Those are the folders `own`, any with a checkpoint in it, and any that infer has written to.
    """

    def __init__(self, path: Path, output_folders: Iterable[Path]) -> None:
        self.path = path
        written = (path / name.partition("/")[0] for name in Manifest(path).digests)
        self.output_folders = frozenset(map(os.path.realpath, (*output_folders, *written)))
        self.entries = self.visible(path)
        self.folders = sorted(entry.name for entry in self.entries if entry.is_dir())
        self.notes: tuple[str, ...] = ()  # on folders that are not used, for people
        if overlooked := sorted(entry.name for entry in visible(path) if self.is_own(entry)):
            self.notes = (f"Not classes, because Hogwear writes to them: {', '.join(overlooked)}.",)

    def visible(self, folder: Path) -> list[os.DirEntry[str]]:
        return [entry for entry in visible(folder) if not self.is_own(entry)]

    def is_own(self, entry: os.DirEntry[str]) -> bool:
        files = (f"{entry.path}/{name}" for name in (CHECKPOINT, MANIFEST))
        return entry.is_dir() and (
            os.path.realpath(entry.path) in self.output_folders or any(map(os.path.isfile, files))
        )

    def splits(self) -> dict[str, Path]:
        """{split: its folder}, whatever their case; empty where the folders are classes.

        BadInput if a split has two folders or none to train on, if one leads out, and if a class has the name of a split.
        """
        found = {
            split: [name for name in self.folders if SPLITS.get(name.lower()) == split]
            for split in dict.fromkeys(SPLITS.values())
        }
        names = [name for several in found.values() for name in several]
        others = [name for name in self.folders if name not in names]
        if (
            others
            and names
            and not any(
                entry.is_dir() for name in names for entry in self.visible(self.path / name)
            )
        ):
            raise BadInput(
                f"{self.path / names[0]}: a class cannot be called {names[0]}, because folders of that name are splits "
                f"({', '.join(SPLITS)}); rename it, for example to {names[0]}_photos"
            )
        for split, several in found.items():
            if len(several) > 1:
                raise BadInput(
                    f"{self.path}: both {' and '.join(several)} are there; keep one of them as the {split} split"
                )
        if names and not found["train"]:
            raise BadInput(
                f"{self.path}: there is {', '.join(names)} but no train; expected train/CLASS/*"
            )
        if names and others:
            more = f" and {len(others) - CLASSES_SHOWN} more" if len(others) > CLASSES_SHOWN else ""
            self.notes += (
                f"Not used, because they are beside {', '.join(names)}: {', '.join(others[:CLASSES_SHOWN])}{more}.",
            )
        folders = {split: self.path / several[0] for split, several in found.items() if several}
        for folder in folders.values():
            require_inside(folder, self.path)
        return folders

    def classes(self, folder: Path) -> dict[str, Paths]:
        """{class: paths of its photos within the folder}, folder/CLASS/*, both sorted; a name in two Unicode forms is one class.

        BadInput if a class is empty, leads out, or has a name that cannot be printed.
        """
        folders: dict[str, list[str]] = defaultdict(list)
        for name in sorted(entry.name for entry in self.visible(folder) if entry.is_dir()):
            if not is_safe(name):
                raise BadInput(
                    f"{folder}: the name of the class folder {name!r} cannot be printed; rename it"
                )
            require_inside(folder / name, self.path)
            folders[normalize(name)].append(name)
        if not folders:
            raise BadInput(f"{folder}: no class folders in it; expected {folder}/CLASS/*.jpg")
        return {
            name: Paths(
                f"{each}/{file}" for each in folders[name] for file in photos_in(folder / each)
            )
            for name in sorted(folders)
        }


def visible(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, in no order, without hidden entries."""
    with os.scandir(folder) as entries:
        return [e for e in entries if not e.name.startswith(".")]


def photos_in(folder: Path) -> list[str]:
    """The names of what is no folder, sorted. BadInput if there is none.

    Links, FIFOs and the like are named as skipped later, when nobody can exchange them any more.
    """
    names = sorted(e.name for e in visible(folder) if not e.is_dir(follow_symlinks=False))
    if not names:
        raise BadInput(f"{folder}: no photos in this class; add some or remove the folder")
    return names


def require_inside(path: Path, root: Path) -> None:
    """BadInput for a folder or table that is a link to somewhere outside of `root`."""
    if path.is_symlink() and not (target := path.resolve()).is_relative_to(root.resolve()):
        what = "folder" if target.is_dir() else "file"
        raise BadInput(
            f"{path}: a link that leads out of {root}, to {target}; put the {what} itself there, or mount it there"
        )
