"""Fixtures: a few real photos, trained models, real processes, a Docker engine; and the table of faults."""

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from containers import PROJECT, copy_checkout, engine_answers, give, run
from containers import ROOT as ROOT  # for the tests, too
from helpers import (
    CLASSES,
    COUNTS,
    FASHION5,
    FAST,
    LEAKED,
    SMALL_RUN,
    Completed,
    Script,
    Trained,
    at,
)

from hogwear.data.sample import garments
from hogwear.system import flags, machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full",
        action="store_true",
        help="as `make faults` does: long tests too, faults injected many times, docs/faults.md written",
    )


def pytest_report_header() -> str:
    return f"CPU: {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} of them; networks compute in {FAST}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is marked `long`, unless --full asks for it."""
    if not config.getoption("--full"):
        left_out = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """times(quick, full): how often to inject a fault."""
    return lambda quick, full: full if request.config.getoption("--full") else quick


@pytest.fixture
def held(request: pytest.FixtureRequest) -> Callable[[str, int, str], None]:
    """held("SIGKILL of train", 100, "the next run went on"): a row of the table of faults, once a test has passed."""
    return lambda fault, tried, what: request.node.user_properties.append(
        ("held", (fault, tried, what))
    )


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table: fault, times tried, what held."""
    if not config.getoption("--full"):
        return
    rows = [
        f"| {fault} | {tried:,} | {what} |"
        for report in terminalreporter.getreports("passed")
        for fault, tried, what in held_in(report)
    ]
    table = "\n".join(["| fault | times tried | what held |", "| --- | --- | --- |", *rows])
    terminalreporter.write_line(f"\n{table}\n")
    whole = config.args == ["tests/faults"] and not config.getoption("keyword")
    if whole and not terminalreporter.getreports("failed") + terminalreporter.getreports("error"):
        when = f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}, PyTorch {torch.__version__}"
        (ROOT / "docs" / "faults.md").write_text(f"{FAULTS_HEAD}\n{table}\n\n{when}.\n")


def held_in(report: pytest.TestReport) -> list[tuple[str, int, str]]:
    """Rows of a passed test: what it told `held`, else the sentence that is its name."""
    told: list[Any] = [row for name, row in report.user_properties if name == "held"]
    if told or report.when != "call" or "/faults/" not in report.nodeid:
        return told
    sentence = report.nodeid.rpartition("::test_")[2].replace("_", " ")
    return [(sentence, 1, "held")]


FAULTS_HEAD = """# Faults

What `make faults` injects, for real: signals, failing system calls, damaged and hostile files, full disks, containers with too little of
everything. It writes this page when all of it has held; `make test` runs the same tests with fewer tries.
"""


@pytest.fixture(autouse=True)
def no_hogwear_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HOGWEAR_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few real photos (the built-in sample's where those are missing), some of them in the folder of another class.

    Those leave something to learn, and mistakes to be counted. In train and val, a sixth and an eighth of a class lie
    in the next one; in test, 3 of eyewear in handbag and 1 of topwear in footwear, so that the classes differ in size.
    """
    folder = tmp_path_factory.mktemp("photos") / "data"
    source = FASHION5 if FASHION5.is_dir() else garments.ensure_sample(folder.parent / "sample")
    around = list(zip(CLASSES, CLASSES[1:] + CLASSES[:1], strict=True))
    misplaced = {
        "train": dict.fromkeys(around, 4),
        "val": dict.fromkeys(around, 1),
        "test": {("eyewear", "handbag"): 3, ("topwear", "footwear"): 1},
    }
    for split, count in COUNTS.items():
        photos = {
            name: sorted(p for p in (source / split / name).iterdir() if p.name not in LEAKED)[
                :count
            ]
            for name in CLASSES
        }
        target = {photo: name for name in CLASSES for photo in photos[name]}
        for (right, wrong), number in misplaced[split].items():
            target |= dict.fromkeys(photos[right][:number], wrong)
        for photo, name in target.items():
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, folder / split / name / f"{photo.parent.name}-{photo.name}")
    return folder


@pytest.fixture(scope="session")
def photo_files(data: Path) -> list[Path]:
    return sorted(data.glob("train/*/*"))


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Script]]:
    """start("train.py", "--epochs", 1) -> a running Script, which does not outlive the tests."""
    folder, started = tmp_path_factory.mktemp("scripts"), []

    def start(name: str, *arguments: object, **options: Any) -> Script:
        started.append(Script(name, *arguments, folder=folder, **options))
        return started[-1]

    yield start
    for script in started:
        script.kill()


@pytest.fixture(scope="session")
def trained(
    data: Path, start: Callable[..., Script], tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    model, cache = folder / "model", folder / "cache"
    script = start("train.py", *SMALL_RUN, "--workers", 1, *at(data, model, cache)).ok()
    return Trained(model, cache, script.stdout, script.stderr)


@pytest.fixture
def call(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Completed]:
    """call(eval, "--model-dir", folder): a script, without the seconds that a process takes to import torch."""

    def call(
        script: Any, *arguments: object, main: Callable[[Any], None] | None = None
    ) -> Completed:
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        monkeypatch.setattr(
            machine, "keep_freed_memory", lambda: None
        )  # this process is forked often, and the larger it is, the longer that takes
        code = flags.exit_code(main or script.main, script.Settings)
        return Completed(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def engine() -> None:
    if not engine_answers():
        pytest.skip(
            "NO DOCKER ENGINE ANSWERS (docker info, docker compose version): nothing here was tested"
        )


@pytest.fixture(scope="session")
def checkout(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the checkout with its images built, and with a volume that the tests share as a user's runs do."""
    folder = copy_checkout(tmp_path_factory.mktemp("checkout"))
    try:
        run("docker", "compose", "build", cwd=folder, timeout=1500)
        yield folder
    finally:
        run(
            "docker", "compose", "--profile", "*", "down", "--volumes", "--rmi", "local", cwd=folder
        )


@pytest.fixture
def container(checkout: Path) -> Iterator[str]:
    name = f"{PROJECT}-one"
    yield name
    subprocess.run(["docker", "rm", "--force", name], check=False, capture_output=True)


@pytest.fixture
def owned_folders(checkout: Path, owner: int) -> Iterator[list[Path]]:
    """Empty data/, model/ and responses/ that belong to `owner`."""
    folders = [checkout / name for name in ("data", "model", "responses")]
    give(folders, os.getuid())
    for folder in folders:
        shutil.rmtree(folder)
        folder.mkdir()
    give(folders, owner)
    yield folders
    give(folders, os.getuid())
