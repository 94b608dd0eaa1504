"""How fast `serve` answers, beside eval and beside a plain server of FastAPI and PyTorch."""

import http.client
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from bench.common import ROOT, Attempts, folder_flags, markdown_table, time_python, train, workspace
from bench.photos import data_sets

CLIENTS = (1, 8, 64)
SECONDS = 8.0  # of asking, for each number of clients
PORT = 8765
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def serving() -> str:
    """Photos per second, and per CPU-second of the server's processes; milliseconds of an answer.

    Clients on the same machine, in one process, send one photo after the other (224 px JPEG). Where
    CPUs are few, they take a part of them, so photos per CPU-second tell more than photos per
    second. For eval: all of its processes, with nothing cached, minus the same for a twentieth of
    the photos.
    """
    photos, attempts = data_sets()[0], Attempts()
    with workspace() as work:
        train(photos, work, "--epochs", 0)
        flags = folder_flags(photos, work)[2:]  # without the photos
        contents = [file.read_bytes() for file in sorted((photos / "val").glob("*/*"))]
        rows = [["eval", "", "", f"{measure_eval(photos, work):.0f}", "", ""]]
        commands = {
            "serve": ("-m", "hogwear.commands.serve", *flags, "--port", PORT),
            "FastAPI + PyTorch": ("-m", "bench.peers.server", PORT),
        }
        for name, command in commands.items():
            rows += attempts.run(name, partial(measure, name, command, contents)) or []
    header = ["server", "clients", "photos/s", "photos per CPU-second", "median, ms", "p99, ms"]
    return markdown_table(header, rows) + attempts.report()


def measure(name: str, command: tuple[object, ...], contents: list[bytes]) -> list[list[str]]:
    """A row per number of clients."""
    rows = []
    with running(command) as server:
        ask_for(contents, 8, 2.0)  # to warm up
        for clients in CLIENTS:
            before, started = cpu_seconds(server.pid), time.monotonic()
            latencies = ask_for(contents, clients, SECONDS)
            seconds, cpu = time.monotonic() - started, cpu_seconds(server.pid) - before
            centiles = statistics.quantiles(latencies, n=100)
            rows.append(
                [
                    name,
                    str(clients),
                    f"{len(latencies) / seconds:.0f}",
                    f"{len(latencies) / cpu:.0f}",
                    f"{1000 * centiles[49]:.0f}",
                    f"{1000 * centiles[98]:.0f}",
                ]
            )
    return rows


@contextmanager
def running(command: tuple[object, ...]) -> Iterator["subprocess.Popen[bytes]"]:
    """A server that answers."""
    server = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT)
    try:
        for _ in range(300):
            time.sleep(0.1)
            try:
                with closing(connect()) as connection:
                    request(connection, "GET", "/health")
                break
            except OSError:
                continue
        yield server
    finally:
        server.terminate()
        server.wait()


def ask_for(contents: list[bytes], clients: int, seconds: float) -> list[float]:
    """Send photos with so many clients for so long: the seconds of each answer."""
    end = time.monotonic() + seconds

    def ask(first: int) -> list[float]:
        latencies: list[float] = []
        with closing(connect()) as connection:
            for number in itertools.count(first, clients):
                started = time.monotonic()
                if started > end:
                    break
                request(connection, "POST", "/predict", contents[number % len(contents)])
                latencies.append(time.monotonic() - started)
        return latencies

    with ThreadPoolExecutor(clients) as pool:
        return [each for one in pool.map(ask, range(clients)) for each in one]


def connect() -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)


def request(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None
) -> None:
    connection.request(method, path, body, {"Content-Type": "image/jpeg"} if body else {})
    response = connection.getresponse()
    content = response.read()
    assert response.status == 200, content


def cpu_seconds(pid: int) -> float:
    """Of a process and its descendants so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = sum(map(int, fields[11:15])) / CLOCK_TICKS  # with children that have ended
    return own + sum(cpu_seconds(int(child)) for child in children)


def measure_eval(photos: Path, work: Path) -> float:
    """Photos per CPU-second of eval, decoding included, without its start."""
    counts, times = [], []
    for step in (20, 1):
        folder = work / f"every-{step}"
        for split, chosen in (("train", 100), ("val", 100), ("test", step)):
            for file in sorted((photos / split).glob("*/*"))[::chosen]:
                copy = folder / split / file.parent.name / file.name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)
        flags = ("--model-dir", work / "model", "--cache-dir", work / f"cache-{step}")
        before = os.times()
        time_python("eval.py", "--data-dir", folder, *flags)
        after = os.times()
        times.append(sum(after[2:4]) - sum(before[2:4]))
        results = json.loads((work / "model" / "eval_results.json").read_text())
        counts.append(results["num_examples"])
    return (counts[1] - counts[0]) / (times[1] - times[0])
