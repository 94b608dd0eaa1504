"""Run benchmarks and write bench/RESULTS.md: `python -m bench [PART ...]`.

Without a part, all of them run, which takes hours. Each part replaces its own section of the
results and names the machine and the date. Machines are noisy, so what is compared runs in turn
within one part, and ratios are of neighbouring runs.
"""

import platform
import re
import sys
import time

import torch

from bench import cluster, runs, speed
from bench.common import ROOT
from bench.growth import growth
from hogwear.system import machine

RESULTS = ROOT / "bench" / "RESULTS.md"
INTRODUCTION = """# Results

`make bench` measures all of this. Values are medians, with minimum and maximum in parentheses. To
measure one part again, name it: `python -m bench peers`.
"""
PARTS = {
    part.__name__: part
    for part in (
        runs.peers,
        runs.accuracy,
        runs.time_budget,
        runs.predecessor,
        runs.fashion_mnist,
        runs.start_up,
        speed.training_step,
        speed.hogwild_speedup,
        speed.staleness,
        growth,
        cluster.cluster,
        cluster.cluster_accuracy,
    )
}


def main(names: list[str]) -> None:
    if unknown := set(names) - set(PARTS):
        sys.exit(f"bench: {', '.join(sorted(unknown))}: expected one of {', '.join(PARTS)}")
    torch.set_num_threads(1)
    machine.keep_freed_memory()
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    cpu = f"{machine.cpu_name()} ({torch.backends.cpu.get_cpu_capability()})"
    where = f"{cpu}, {machine.cpus()} CPUs, {versions}"
    sections = read_sections()
    for name in names or PARTS:
        description = " ".join((PARTS[name].__doc__ or "").split())
        date = time.strftime("%Y-%m-%d")
        sections[name] = f"\n{description}\n\n{PARTS[name]()}\n\n{date}, {where}.\n"
        print(f"## {name}\n{sections[name]}", flush=True)
        written = [f"\n## {part}\n{sections[part]}" for part in PARTS if part in sections]
        RESULTS.write_text(INTRODUCTION + "".join(written))


def read_sections() -> dict[str, str]:
    """The text below each heading of the results so far."""
    text = RESULTS.read_text() if RESULTS.exists() else ""
    sections = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return {name: section.rstrip() + "\n" for name, section in sections}


if __name__ == "__main__":
    main(sys.argv[1:])
