"""Paths in one block of bytes."""

import os
from pathlib import Path

import numpy as np

from hogwear.system.paths import Paths


def test_paths_come_out_as_they_went_in(tmp_path: Path) -> None:
    files = [tmp_path / "a.jpg", Path("é"), Path(os.fsdecode(b"\xff/\xfe")), Path("b c\n")]
    paths = Paths(files)
    assert list(paths) == files == [paths[i] for i in range(len(paths))] and paths[-1] == files[-1]
    assert list(Paths([])) == [] and len(Paths([])) == 0
    assert (
        list(paths.where(np.array([True, False, True, True]))) == [files[0], *files[2:]]
        and list(paths.where(np.zeros(4, bool))) == []
    )
    assert list(Paths.joined([paths, Paths(), paths])) == 2 * files and list(Paths.joined([])) == []
