"""train.py with a probe inside: `python -m bench.probe PROBE [FLAGS OF TRAIN]`."""

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import train
from hogwear.system import command
from hogwear.system.workers import Workers

JOBS = ("trunk", "train")  # of training's workers: closed form, training steps
run = Workers.run


def exit_before_first_batch() -> None:
    """Exit when the workers have been forked and wait for their first batch."""

    def leave(self: Workers, job: str, *arguments: Any, **options: Any) -> Iterator[Any]:
        if job in JOBS:
            os._exit(0)
        return run(self, job, *arguments, **options)

    Workers.run = leave  # type: ignore[method-assign]


def print_first_results() -> None:
    """Print when the workers return the first result of each job: `first JOB SECONDS`."""
    seen: set[str] = set()

    def watch(self: Workers, job: str, *arguments: Any, **options: Any) -> Iterator[Any]:
        for result in run(self, job, *arguments, **options):
            if job not in seen:
                seen.add(job)
                print("first", job, time.time(), flush=True)
            yield result

    Workers.run = watch  # type: ignore[method-assign]


PROBES = {probe.__name__: probe for probe in (exit_before_first_batch, print_first_results)}

if __name__ == "__main__":
    PROBES[sys.argv.pop(1)]()
    command.run(train.main, train.Settings)
