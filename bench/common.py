"""What the benchmarks share: photos, timed processes, and the format of results."""

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parent.parent
T = TypeVar("T")


def time_python(*arguments: object) -> tuple[float, str]:
    """Run Python in the project's root: seconds from start to exit, and stdout."""
    started = time.perf_counter()
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - started, done.stdout


def process_start() -> float:
    """When this process started, in seconds since the machine did (time.CLOCK_BOOTTIME)."""
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return int(ticks) / os.sysconf("SC_CLK_TCK")


def folder_flags(photos: Path, work: Path) -> list[object]:
    return ["--data-dir", photos, "--model-dir", work / "model", "--cache-dir", work / "cache"]


def train(photos: Path, work: Path, *flags: object) -> float:
    """Seconds that train.py takes. Nothing is cached, unless `work` has been used before."""
    return time_python("train.py", *folder_flags(photos, work), *flags)[0]


def evaluate(photos: Path, work: Path) -> dict[str, Any]:
    """Run eval.py on the model in `work`: the contents of eval_results.json."""
    time_python("eval.py", *folder_flags(photos, work))
    results: dict[str, Any] = json.loads((work / "model" / "eval_results.json").read_text())
    return results


def read_history(model: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv."""
    with (model / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_hogwild_speed(model: Path) -> float:
    """Images per second of Hogwild, over all validations."""
    rows = [row for row in read_history(model) if row["stage"] == "hogwild"]
    images = [int(row["images"]) for row in rows]
    speeds = [float(row["images_per_second"]) for row in rows]
    return sum(images) / sum(n / speed for n, speed in zip(images, speeds, strict=True))


@contextmanager
def workspace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


class Attempts:
    """Runs that may fail, for example for want of a library: the others go on without them."""

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}  # {name: why}

    def run(self, name: str, work: Callable[[], T]) -> T | None:
        """What `work` returns; None if it fails, which is printed, or has failed before."""
        if name in self.failed:
            return None
        try:
            return work()
        except Exception as error:
            code = getattr(error, "returncode", None)
            problem = f"{type(error).__name__}: {error}" if code is None else f"exit code {code}"
            self.failed[name] = problem
            print(f"FAILED: {name} ({problem})", file=sys.stderr, flush=True)
            return None

    def report(self) -> str:
        """A sentence to stand below the table; empty if nothing failed."""
        failed = "; ".join(f"{name} ({problem})" for name, problem in self.failed.items())
        return f"\n\nFailed: {failed}." if failed else ""


def median_seconds(work: Callable[[], object], repeats: int = 15) -> float:
    """Median time of a call, after two calls to warm up."""
    work()
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def format_range(values: list[float], form: str = ".2f") -> str:
    """The median, and minimum and maximum if there are several values."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def format_ratios(values: list[float], others: list[float], form: str = ".2f") -> str:
    """The range of the ratios of values that were measured in pairs."""
    return format_range([a / b for a, b in zip(values, others, strict=True)], form)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
