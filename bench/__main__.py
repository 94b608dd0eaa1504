"""Measure, and write bench/RESULTS.md: `python -m bench [PART ...]`; without a part, all of them, which takes hours.

Ratios are of runs made in turn in one go, because machines are noisy; absolute figures are medians with their range.
Each part writes a section of its own, with the machine and the date it was measured on.
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
INTRODUCTION = "# Results\n\n`make bench` measures all of this: medians, with minimum and maximum. A part is measured again by its name, as\n`python -m bench peers`.\n"
EVERY = (speed.phases, speed.hogwild_pays, speed.staleness, runs.accuracy, runs.peers, runs.ancestor, runs.fashion_mnist, runs.budget, runs.start, growth, cluster.cluster, cluster.cluster_accuracy)  # fmt: skip
PARTS = {part.__name__: part for part in EVERY}


def main(names: list[str]) -> None:
    if unknown := set(names) - set(PARTS):
        sys.exit(f"bench: {', '.join(sorted(unknown))}: not one of {', '.join(PARTS)}")
    torch.set_num_threads(1)
    machine.keep_freed_memory()
    where = f"{machine.cpu_name()}, {machine.cpus()} CPUs, Python {platform.python_version()}, PyTorch {torch.__version__}"
    sections = dict(
        re.findall(
            r"^## (\w+)\n(.*?)(?=^## |\Z)",
            RESULTS.read_text() if RESULTS.exists() else "",
            re.M | re.S,
        )
    )
    for name in names or PARTS:
        description = " ".join((PARTS[name].__doc__ or "").split())
        sections[name] = (
            f"\n{description}\n\n{PARTS[name]()}\n\n{time.strftime('%Y-%m-%d')}, {where}.\n\n"
        )
        print(f"## {name}\n{sections[name]}", flush=True)
        RESULTS.write_text(
            INTRODUCTION
            + "".join(
                f"\n## {part}\n{sections[part].rstrip()}\n" for part in PARTS if part in sections
            )
        )


if __name__ == "__main__":
    main(sys.argv[1:])
