"""Does a data set that grows a hundredfold cost more a photo, or more memory?"""

import csv
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.common import FASHION5, ROOT, table
from hogwear.data.sample import garments

SHARES = {"train": 0.85, "val": 0.15}
POLL = 0.02  # seconds between two looks at the cache's folder
# train.py to the point where its workers are forked: what a start takes once the photos are cached.
UNTIL_FIRST_BATCH = "import os, train; from hogwear import progress, settings; progress.TrainingBar = lambda *a: os._exit(0); settings.run(train.main, train.Settings)"


def growth(
    counts: tuple[int, ...] = (2_000, 20_000, 200_000), size: int = 64, workers: int = 2
) -> str:
    """One epoch of `train.py` on 2 k, 20 k and 200 k photos: seconds a photo, memory, and what a warm cache costs.

    The photos are hard links to fashion5's under new names, at 64 px, so that 200 k fit on the disk and take minutes.
    Decoding includes the import of torch that goes on meanwhile; of 2 k photos that is most of it. Memory is the highest
    PSS of all processes together, sampled every second. A warm start lasts from `train.py`'s start, with every photo in
    the cache, until its workers are forked and wait for their first batch.
    """
    rows = []
    smallest: float | None = None
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            link(folder / "data", count)
            command = [
                "train.py",
                "--image-size",
                str(size),
                "--epochs",
                "1",
                "--workers",
                str(workers),
            ]
            command += [f"--{part}-dir={folder / part}" for part in ("data", "model", "cache")]
            decoding, peak = watch([sys.executable, *command], folder / "cache")
            with (folder / "model" / "metrics.csv").open() as file:
                training = 1000 / float(next(csv.DictReader(file))["images_per_second"])
            started = time.perf_counter()
            again = [sys.executable, "-c", UNTIL_FIRST_BATCH, *command[1:], "--fresh"]
            subprocess.run(again, cwd=ROOT, check=True, stdout=subprocess.PIPE)
            warm = time.perf_counter() - started
        smallest = smallest or warm
        milliseconds = 1000 * decoding / count
        rows.append(
            [
                f"{count:,}",
                f"{milliseconds:.2f}",
                f"{training:.2f}",
                f"{peak / 1e6:,.0f}",
                f"{warm:.2f}",
                f"{warm - smallest:+.2f}",
            ]
        )
    return table(
        [
            "photos",
            "decoding, ms a photo",
            "training, ms a photo",
            "highest PSS, MB",
            "warm start, s",
            "over the smallest's, s",
        ],
        rows,
    )


def link(folder: Path, count: int) -> None:
    """`count` photos as hard links to fashion5's (or the sample's), or to copies where `folder` is on another file system."""
    source = FASHION5 if FASHION5.is_dir() else garments.ensure_sample(folder.parent / "sample")
    originals = [source / split for split in SHARES]
    try:
        os.link(next(originals[0].glob("*/*")), folder.parent / "probe")
    except OSError:
        originals = [
            Path(shutil.copytree(original, folder.parent / "originals" / original.name))
            for original in originals
        ]
    for original, share in zip(originals, SHARES.values(), strict=True):
        photos = itertools.cycle(sorted(original.glob("*/*")))
        for number, photo in enumerate(itertools.islice(photos, round(share * count))):
            copy = folder / original.name / photo.parent.name / f"{number}-{photo.name}"
            copy.parent.mkdir(parents=True, exist_ok=True)
            os.link(photo, copy)


def watch(command: list[str], cache: Path) -> tuple[float, int]:
    """Run `command` to its end -> seconds in which it filled the caches of all splits, and its highest PSS in bytes."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    begun = done = sampled = 0.0
    peak = 0
    while process.poll() is None:
        now = time.perf_counter()
        if not begun and any(cache.glob("pixels/*")):
            begun = now
        if not done and sum(
            not file.with_name("done.npy").exists()
            for file in cache.glob("pixels/*/*/skipped.json")
        ) == len(SHARES):
            done = now
        if now - sampled >= 1:
            peak, sampled = max(peak, sum(map(pss, family(process.pid)))), now
        time.sleep(POLL)
    if process.returncode:
        raise RuntimeError(
            f"{' '.join(command)}: exit code {process.returncode}\n{process.stderr and process.stderr.read()}"
        )
    return done - begun, peak


def family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has just ended
        return []
    return [pid, *itertools.chain.from_iterable(map(family, map(int, children)))]


def pss(pid: int) -> int:
    """Bytes of memory that a process has to itself, and its share of what it shares; 0 when it has ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return 1024 * int(re.findall(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)[0])
