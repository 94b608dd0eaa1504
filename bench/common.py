"""What the benchmarks share: photos, timed processes, and the format of results."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
FASHION5, CLOTHING10 = SHARED / "fashion5", SHARED / "clothing10"


def time_python(*arguments: object) -> tuple[float, str]:
    """Run Python in the project's root: seconds from start to exit, and stdout."""
    started = time.perf_counter()
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - started, done.stdout


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
