"""The arithmetic that this CPU is fast at: measured once, and kept in the cache."""

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from hogwear.system.files import write_atomically
from hogwear.system.workers import Workers

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
CLEARLY_FASTER = 1.25  # a noisy machine shall not choose bfloat16 one day and float32 the next

Net = Callable[[Tensor], Tensor]


def fast_dtype(
    build: Callable[[torch.dtype], Net], shape: tuple[int, ...], cache_dir: Path
) -> torch.dtype:
    """bfloat16 or float32, whichever a network that `build` makes is faster in on uint8 pixels of this shape.

    Measured in half a second when a CPU is seen for the first time with this version of torch; later read from `cache_dir`.
    """
    file, cpu = cache_dir / "fast-dtype.json", f"{cpu_identity()}, torch {torch.__version__}"
    known: dict[str, str] = {}
    with suppress(OSError, ValueError, TypeError):
        known = dict(json.loads(file.read_text()))
    if known.get(cpu) not in DTYPES:
        with Workers(
            1, lambda rank: {"measure": lambda item: faster(build, shape)}
        ) as workers:  # the parent computes nothing: it forks
            [(_, known[cpu])] = workers.run("measure", range(1))
        with suppress(OSError):  # a cache that may not be written: measured again next time
            write_atomically(file, json.dumps(known).encode())
    return DTYPES[known[cpu]]


def faster(build: Callable[[torch.dtype], Net], shape: tuple[int, ...]) -> str:
    """The dtype's name, by the least CPU time of six.

    bfloat16 has to be clearly faster, as it is with AVX-512 BF16 or AMX; where only AVX2 is, torch refuses it.
    """
    pixels, seconds = torch.zeros(shape, dtype=torch.uint8), dict.fromkeys(DTYPES, math.inf)
    nets = {name: build(dtype) for name, dtype in DTYPES.items()}
    try:
        with torch.no_grad():
            for name in 7 * list(DTYPES):  # in turn; the first time oneDNN makes its kernels
                started = time.process_time()
                nets[name](pixels)
                seconds[name] = min(seconds[name], time.process_time() - started)
    except RuntimeError:
        return "float32"
    return "bfloat16" if seconds["bfloat16"] * CLEARLY_FASTER < seconds["float32"] else "float32"


def cpu_identity() -> str:
    """Tells CPUs apart that may be fast at different things: a hash of the first one's name and instructions."""
    told = (
        "model name",
        "flags",
        "CPU implementer",
        "CPU part",
        "Features",
    )  # the last three are ARM's
    first = (
        Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        if Path("/proc/cpuinfo").exists()
        else []
    )
    limits = [os.environ.get(name, "") for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")]
    lines = [platform.machine(), *limits, *(line for line in first if line.startswith(told))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
