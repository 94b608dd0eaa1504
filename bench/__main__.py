"""Run benchmarks and write bench/RESULTS.md: `python -m bench [--photos DIR] [PART ...]`.

Without a part, all of them run, which takes hours. Each part replaces its own section of the
results and names the machine and the date. Machines are noisy, so what is compared runs in turn
within one part, and ratios are of neighbouring runs.
"""

import argparse
import platform
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from bench import cluster, photos, runs, speed
from bench.growth import growth
from bench.pareto import pareto
from bench.phases import profile
from bench.serving import serving
from hogwear.system import machine
from hogwear.system.errors import BadInput

INTRODUCTION = f"""# Results

`make bench` measures all of this. Values are medians, with minimum and maximum in parentheses. To
measure one part again, name it: `python -m bench peers`.
{photos.ORIGINS}"""
PARTS = {
    part.__name__: part
    for part in (
        runs.peers,
        pareto,
        profile,
        runs.time_budget,
        runs.predecessor,
        runs.fashion_mnist,
        runs.start_up,
        serving,
        speed.training_step,
        speed.hogwild_speedup,
        speed.staleness,
        growth,
        cluster.cluster,
        cluster.cluster_accuracy,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", metavar="PART", nargs="*", help=", ".join(PARTS))
    parser.add_argument(
        "--photos", type=Path, metavar="DIR", help="CLASS/*, or {train,val}/CLASS/*"
    )
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: expected one of {', '.join(PARTS)}")
    torch.set_num_threads(1)
    machine.keep_freed_memory()
    with tempfile.TemporaryDirectory() as work:
        try:
            description = photos.choose(options.photos, Path(work))
        except BadInput as error:
            parser.error(str(error))
        print(description, photos.ORIGINS, sep="\n", flush=True)
        failed = [name for name in options.parts or PARTS if not measure(name, description)]
    sys.exit(f"bench: failed: {', '.join(failed)}" if failed else 0)


def measure(name: str, photos_used: str) -> bool:
    """Run a part and write its section. False, with a traceback on stderr, if it fails."""
    try:
        results = PARTS[name]()
    except Exception:
        traceback.print_exc()
        return False
    description = " ".join((PARTS[name].__doc__ or "").split())
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    cpu = f"{machine.cpu_name()} ({torch.backends.cpu.get_cpu_capability()})"
    where = f"{time.strftime('%Y-%m-%d')}, {cpu}, {machine.cpus()} CPUs, {versions}."
    if photos.chosen:
        where += f" {photos_used}"
    file = photos.results_folder() / "RESULTS.md"
    sections = read_sections(file)
    sections[name] = f"\n{description}\n\n{results}\n\n{where}\n"
    print(f"## {name}\n{sections[name]}", flush=True)
    written = [f"\n## {part}\n{sections[part]}" for part in PARTS if part in sections]
    file.write_text(INTRODUCTION + "".join(written))
    return True


def read_sections(file: Path) -> dict[str, str]:
    """The text below each heading of the results so far."""
    text = file.read_text() if file.exists() else ""
    sections = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return {name: section.rstrip() + "\n" for name, section in sections}


if __name__ == "__main__":
    main()
