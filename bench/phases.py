"""Where the time of train.py goes: `python -m bench.phases [FLAGS OF TRAIN]`.

It runs train.py with timers around the functions of PHASES. The last line is JSON: the seconds of
each phase, and of all from process start.
"""

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import train
from bench.common import (
    folder_flags,
    format_range,
    markdown_table,
    process_start,
    time_python,
    workspace,
)
from bench.photos import data_sets
from hogwear.system import command

RUNS = 5
START, REST, EXIT = "Python and the imports of train.py", "everything else", "exit"
# The time of a function goes to its phase, without that of others of the table that it calls. It is
# wrapped where it is looked up, as soon as its module has been imported: none is imported for that,
# because train.py imports torch while photos are decoded.
PHASES = {
    "hogwear.commands.starting_point:split_photos": "finding and hashing photos",
    "hogwear.commands.image_size:median_side": "choosing the size of photos",
    "hogwear.commands.image_size:forecast_small": "choosing the size of photos",
    "hogwear.commands.preparation:load_data": "decoding, what is left of it",
    "hogwear.data.leakage:warn_about_leakage": "looking for leakage",
    "hogwear.commands.preparation:build_network": "building the network",
    "model:choose_dtype": "choosing the precision",
    "hogwear.training.trainer:Trainer.__init__": "weights into shared memory",
    "hogwear.system.workers:Workers.__enter__": "starting and ending workers",
    "hogwear.system.workers:Workers.__exit__": "starting and ending workers",
    "hogwear.training.passes:Pass.run": "computing features",
    "hogwear.training.heads:HeadFitter.solve": "solving heads",
    "hogwear.training.trainer:Trainer.train_steps": "training",
    "hogwear.training.trainer:Trainer.take_snapshot": "snapshots",
    "hogwear.evaluation.predict:collect_logits": "validation",
    "hogwear.training.validation:Validator.record": "calibration",
    "hogwear.training.model_folder:ModelFolder.save": "saving",
}


class Timers:
    """Seconds of each phase. Of nested phases, only the innermost runs."""

    def __init__(
        self, phases: dict[str, str], now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.missing = dict(phases)  # what is not wrapped yet
        self.now, self.since = now, now()
        self.seconds: dict[str, float] = {}
        self.running = [REST]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.stop()
        self.running.append(name)
        try:
            yield
        finally:
            self.wrap_imported()
            self.stop()
            self.running.pop()

    def stop(self) -> None:
        """Give the time since the last call to the phase that runs."""
        name, before = self.running[-1], self.since
        self.since = self.now()
        self.seconds[name] = self.seconds.get(name, 0.0) + self.since - before

    def wrap_imported(self) -> None:
        """Wrap the functions whose modules have been imported since the last call."""
        for target, name in list(self.missing.items()):
            module, _, path = target.partition(":")
            owner: Any = sys.modules.get(module)
            *classes, function = path.split(".")
            for part in classes:
                owner = getattr(owner, part, None)
            if owner is not None and hasattr(owner, function):
                setattr(owner, function, self.wrap(getattr(owner, function), name))
                del self.missing[target]

    def wrap(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.phase(name):
                return function(*arguments, **options)

        return timed


def run(settings: train.Settings) -> None:
    timers = Timers(PHASES)
    started = process_start()
    timers.seconds[START] = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    timers.wrap_imported()
    try:
        train.main(settings)
    finally:
        timers.stop()
        for target in timers.missing:
            print(f"bench.phases: no {target}: adapt PHASES", file=sys.stderr)
        print(json.dumps(timers.seconds), flush=True)


def profile() -> str:
    """Where the time of a cold run of `train.py` with default settings goes, on the first data set.

    Seconds of the main process, with nothing cached; workers compute meanwhile.
    """
    runs: list[dict[str, float]] = []
    for seed in range(RUNS):
        with workspace() as work:
            flags = (*folder_flags(data_sets()[0], work), "--seed", seed)
            seconds, output = time_python("-m", "bench.phases", *flags)
        phases: dict[str, float] = json.loads(output.splitlines()[-1])
        runs.append(phases | {EXIT: seconds - sum(phases.values()), "all": seconds})
    names = dict.fromkeys((START, *PHASES.values(), REST, EXIT, "all"))
    rows = []
    for name in names:
        values = [phases[name] for phases in runs if name in phases]
        if values:
            shares = [phases[name] / phases["all"] for phases in runs if name in phases]
            rows.append([name, format_range(values), f"{statistics.median(shares):.0%}"])
    return markdown_table(["", "seconds", "share"], rows)


if __name__ == "__main__":
    command.run(run, train.Settings)
