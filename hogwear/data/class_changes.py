"""Classes that were added, removed or renamed since a checkpoint was trained."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hogwear.data.class_names import MAX_NAMES
from hogwear.system.arrays import Int64Array
from hogwear.system.errors import BadInput
from hogwear.system.text import join_some, normalize


@dataclass(frozen=True)
class ClassChange:
    """The classes of a checkpoint and those of the photos, both in the order of the outputs."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    renamed: Mapping[str, str]  # {name before: name after}

    @property
    def kept(self) -> dict[str, str]:
        """{name after: name before} of the classes that remain."""
        names = {self.renamed.get(name, name): name for name in self.before}
        return {name: names[name] for name in self.after if name in names}

    @property
    def keeps_half(self) -> bool:
        """Whether at least half of the classes before remain."""
        return 2 * len(self.kept) >= len(self.before)

    @property
    def is_renaming(self) -> bool:
        """Whether all classes remain and none is new."""
        return len(self.kept) == len(self.before) == len(self.after)

    @property
    def rows(self) -> Int64Array:
        """The output that each class had before, (classes,), or -1 for a new class."""
        kept = self.kept
        return np.array([self.before.index(kept[n]) if n in kept else -1 for n in self.after])

    @property
    def names_before(self) -> tuple[str, ...]:
        """For each class its name before, or the present one for a new class."""
        return tuple(self.kept.get(name, name) for name in self.after)

    @property
    def added(self) -> list[str]:
        return [name for name in self.after if name not in self.kept]

    @property
    def removed(self) -> list[str]:
        return [name for name in self.before if name not in self.kept.values()]

    def describe(self) -> str:
        """What has changed, as a part of a sentence."""
        parts = {
            "added": self.added,
            "removed": self.removed,
            "renamed": [f"{old} to {new}" for old, new in self.renamed.items()],
        }
        return "; ".join(
            f"{what} {join_some(names, MAX_NAMES)}" for what, names in parts.items() if names
        )


def find_change(
    before: tuple[str, ...], after: tuple[str, ...], renamed: Mapping[str, str], folder: Path
) -> ClassChange | None:
    """What is different in the photos of `folder`, or None if nothing is.

    BadInput for a renaming that fits neither side, and if fewer than half of the classes remain.
    """
    renamed = {old: new for old, new in renamed.items() if not is_done(old, new, before, after)}
    for old, new in renamed.items():
        if problem := find_problem(old, new, before, after, folder):
            raise BadInput(f"--rename {old}={new}: {problem}")
    if before == after:
        return None
    change = ClassChange(before, after, renamed)
    if not change.keeps_half:
        raise BadInput(describe_difference(before, after, folder))
    return change


def is_done(old: str, new: str, before: tuple[str, ...], after: tuple[str, ...]) -> bool:
    """Whether a renaming has been saved already, by the same command before it was interrupted."""
    return old not in (*before, *after) and new in before and new in after


def find_problem(
    old: str, new: str, before: tuple[str, ...], after: tuple[str, ...], folder: Path
) -> str:
    """Why a class cannot be renamed, and what to do; empty if it can."""
    if old not in before:
        names = join_some(before, MAX_NAMES)
        return f"the checkpoint has no class {old}; its classes are {names}"
    if new in before:
        return (
            f"the checkpoint has a class {new} already; to merge both, move the photos of {old} "
            f"to {new} and omit --rename"
        )
    if new not in after:
        return f"there is no class {new} in {folder}; rename {old} there first"
    if old in after:
        return (
            f"there is a class {old} in {folder}, too; move its photos to {new}, "
            f"or omit --rename if {new} is another class"
        )
    return ""


def require_same_classes(before: tuple[str, ...], after: tuple[str, ...], folder: Path) -> None:
    """BadInput where the photos in `folder` have other classes than the checkpoint, `before`."""
    if before != after:
        raise BadInput(describe_difference(before, after, folder))


def describe_difference(before: tuple[str, ...], after: tuple[str, ...], folder: Path) -> str:
    """An error message with both and the fix."""
    fix = "or start over with train --fresh"
    if ClassChange(before, after, {}).keeps_half:
        fix = "or run train, which adapts the network to the new classes"
    return (
        f"{folder}: classes {', '.join(after)}, but the checkpoint was trained on "
        f"{', '.join(before)}: use the photos it was trained on, {fix}"
    )


def parse_renames(texts: Iterable[str]) -> dict[str, str]:
    """{old: new} of texts "OLD=NEW". BadInput if one has another form or a name occurs twice."""
    renamed: dict[str, str] = {}
    for text in texts:
        old, _, new = normalize(text).partition("=")
        if not (old and new) or old == new:
            raise BadInput(f"--rename: {text!r} is not OLD=NEW, two different names of a class")
        if old in renamed or new in renamed.values():
            twice = old if old in renamed else new
            raise BadInput(f"--rename {text}: {twice} occurs twice; name each class once")
        renamed[old] = new
    return renamed
