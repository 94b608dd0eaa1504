"""What a photo costs in a data set of two thousand photos and in one of two hundred thousand."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.common import ROOT, markdown_table, read_hogwild_speed, time_python
from bench.photos import data_sets

COUNTS = (2_000, 20_000, 200_000)
SIZE, WORKERS = 64, 2
SHARES = {"train": 0.85, "val": 0.15}
POLL_INTERVAL, MEMORY_INTERVAL = 0.02, 1.0  # seconds


def growth() -> str:
    """Time and memory of `train.py` for 2,000, 20,000 and 200,000 photos, one epoch at 64 px.

    The photos are hard links to those of fashion5, so that 200,000 fit on the disk. Decoding
    includes the import of torch, which happens at the same time; with 2,000 photos that is most of
    it. Memory is the highest PSS of all processes together, sampled every second. A warm start is
    the time from the start of `train.py`, with all photos in the cache, until its workers wait for
    their first batch.
    """
    rows = []
    smallest = 0.0
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            link_photos(folder / "data", count)
            flags = ["--image-size", SIZE, "--epochs", 1, "--workers", WORKERS]
            flags += [f"--{part}-dir={folder / part}" for part in ("data", "model", "cache")]
            decoding, memory = watch_training(flags, folder / "cache")
            rate = read_hogwild_speed(folder / "model")
            probe = ("-m", "bench.probe", "exit_before_first_batch")
            warm, _ = time_python(*probe, *flags, "--fresh")
        smallest = smallest or warm
        rows.append(
            [
                f"{count:,}",
                f"{1000 * decoding / count:.2f}",
                f"{1000 / rate:.2f}",
                f"{memory / 1e6:,.0f}",
                f"{warm:.2f}",
                f"{warm - smallest:+.2f}",
            ]
        )
    header = ["photos", "decoding, ms per photo", "training, ms per photo", "peak memory, MB"]
    return markdown_table([*header, "warm start, s", "compared with 2,000 photos, s"], rows)


def link_photos(folder: Path, count: int) -> None:
    """Make `count` hard links to photos of the first data set, under new names.

    Where `folder` is on another file system, they are links to copies.
    """
    splits = [data_sets()[0] / split for split in SHARES]
    try:
        os.link(next(splits[0].glob("*/*")), folder.parent / "probe")
    except OSError:
        copies = folder.parent / "originals"
        splits = [Path(shutil.copytree(split, copies / split.name)) for split in splits]
    for split, share in zip(splits, SHARES.values(), strict=True):
        photos = itertools.cycle(sorted(split.glob("*/*")))
        for number, photo in enumerate(itertools.islice(photos, round(share * count))):
            copy = folder / split.name / photo.parent.name / f"{number}-{photo.name}"
            copy.parent.mkdir(parents=True, exist_ok=True)
            os.link(photo, copy)


def watch_training(flags: list[object], cache: Path) -> tuple[float, int]:
    """Run train.py: seconds that it decoded photos, and its peak memory in bytes."""
    process = subprocess.Popen(
        [sys.executable, "train.py", *map(str, flags)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    started = finished = sampled = 0.0
    peak = 0
    while process.poll() is None:
        now = time.perf_counter()
        if not started and any(cache.glob("pixels/*")):
            started = now
        if not finished and count_decoded_splits(cache) == len(SHARES):
            finished = now
        if now - sampled >= MEMORY_INTERVAL:
            peak, sampled = max(peak, sum(map(read_pss, process_tree(process.pid)))), now
        time.sleep(POLL_INTERVAL)
    if process.returncode:
        errors = process.stderr.read() if process.stderr else ""
        raise RuntimeError(f"train.py: exit code {process.returncode}\n{errors}")
    return finished - started, peak


def count_decoded_splits(cache: Path) -> int:
    """Splits in the cache of decoded photos of which nothing is left to decode."""
    splits = [file.parent for file in cache.glob("pixels/*/*/skipped.json")]
    return sum(not (split / "done.npy").exists() for split in splits)


def process_tree(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has just ended
        return []
    return [pid, *itertools.chain.from_iterable(map(process_tree, map(int, children)))]


def read_pss(pid: int) -> int:
    """A process's private memory and its share of what it shares, in bytes; 0 if it has ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return 1024 * int(re.findall(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)[0])
