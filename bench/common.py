"""What the parts of the bench share: the photos, whole processes under a watch, and how figures are written."""

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


def timed(*command: object) -> tuple[float, str]:
    """Seconds from start to exit of a command run from the project's root, and its stdout."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return time.perf_counter() - started, done.stdout


def folders(photos: Path, work: Path) -> list[object]:
    return ["--data-dir", photos, "--model-dir", work / "model", "--cache-dir", work / "cache"]


def train(photos: Path, work: Path, *flags: object) -> float:
    """Seconds that train.py takes, nothing cached unless `work` was used before."""
    return timed("train.py", *folders(photos, work), *flags)[0]


def evaluate(photos: Path, work: Path) -> dict[str, Any]:
    """What eval.py says of the model in `work`."""
    timed("eval.py", *folders(photos, work))
    results: dict[str, Any] = json.loads((work / "model" / "eval_results.json").read_text())
    return results


def median_seconds(work: Callable[[], object], repeats: int = 15) -> float:
    work(), work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def spread(values: list[float], form: str = ".2f") -> str:
    """The median, with minimum and maximum where there are several."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
