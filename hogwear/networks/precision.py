"""The dtype that this CPU computes fastest in: measured once, then read from the cache."""

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
from hogwear.system.workers import call_in_worker

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
REQUIRED_SPEEDUP = 1.25  # of bfloat16, so that noise does not change the choice from run to run
# Lines of /proc/cpuinfo; the last three are those of ARM.
CPU_LINES = ("model name", "flags", "CPU implementer", "CPU part", "Features")

Build = Callable[[torch.dtype], Callable[[Tensor], Tensor]]


def choose_dtype(build: Build, shape: tuple[int, ...], cache_dir: Path) -> torch.dtype:
    """bfloat16 or float32: whichever `build(dtype)` is faster in on uint8 pixels of this shape.

    The first call on a CPU with this version of torch takes half a second; later ones read the
    answer from `cache_dir`.
    """
    file = cache_dir / "fast-dtype.json"
    cpu = f"{cpu_identity()}, torch {torch.__version__}"
    known: dict[str, str] = {}
    with suppress(OSError, ValueError, TypeError):
        known = dict(json.loads(file.read_text()))
    if known.get(cpu) not in DTYPES:
        # In a worker, because a parent that has computed with threads must not fork.
        known[cpu] = call_in_worker(lambda: measure_fastest(build, shape))
        with suppress(OSError):  # without a writable cache it is measured again next time
            write_atomically(file, json.dumps(known).encode())
    return DTYPES[known[cpu]]


def measure_fastest(build: Build, shape: tuple[int, ...]) -> str:
    """The name of the faster dtype, by the least CPU time of six runs.

    bfloat16 has to win clearly, as it does with AVX-512 BF16 or AMX. Where the CPU has only AVX2,
    torch refuses bfloat16 convolutions.
    """
    pixels = torch.zeros(shape, dtype=torch.uint8)
    seconds = dict.fromkeys(DTYPES, math.inf)
    nets = {name: build(dtype) for name, dtype in DTYPES.items()}
    try:
        with torch.no_grad():
            for name in 7 * list(DTYPES):  # alternating; in the first run oneDNN builds its kernels
                started = time.process_time()
                nets[name](pixels)
                seconds[name] = min(seconds[name], time.process_time() - started)
    except RuntimeError:
        return "float32"
    return "bfloat16" if seconds["bfloat16"] * REQUIRED_SPEEDUP < seconds["float32"] else "float32"


def cpu_identity() -> str:
    """A hash of the CPU's name and instructions, and of the variables that limit what is used."""
    cpuinfo = Path("/proc/cpuinfo")
    first = cpuinfo.read_text().split("\n\n")[0].splitlines() if cpuinfo.exists() else []
    limits = [os.environ.get(name, "") for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")]
    lines = [platform.machine(), *limits, *(line for line in first if line.startswith(CPU_LINES))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
