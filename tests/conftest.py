"""Fixtures: real photos, trained models, processes, a Docker engine; and the table of faults."""

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from containers import PROJECT, SERVICES, change_owner, copy_checkout, engine_answers, image, run
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
from servers import Server, free_port

from hogwear.data import decoding
from hogwear.data.sample import generate
from hogwear.system import command, machine
from hogwear.system.arrays import UInt8Array
from hogwear.system.workers import FORK

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized
from hogwear.training import label_check


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full",
        action="store_true",
        help="run long tests, inject faults many times, and write docs/faults.md",
    )


def pytest_report_header() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{os.cpu_count()} CPUs with {capability}; networks compute in {FAST}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that are marked `long`, unless --full is given."""
    if not config.getoption("--full"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """times(quick, full): how often to inject a fault, without and with --full."""
    return lambda quick, full: full if request.config.getoption("--full") else quick


@pytest.fixture
def held(request: pytest.FixtureRequest) -> Callable[[str, int, str], None]:
    """held("SIGKILL of train", 100, "the next run resumed") adds a row to the table of faults."""
    properties = request.node.user_properties
    return lambda fault, tried, what: properties.append(("held", (fault, tried, what)))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table of faults, and write it to docs/faults.md if all of them were tried and held."""
    is_worker = hasattr(config, "workerinput")  # of xdist: it has only a part of the tests
    if not config.getoption("--full") or is_worker:
        return
    rows = [
        f"| {fault} | {tried:,} | {what} |"
        for report in terminalreporter.getreports("passed")
        for fault, tried, what in rows_of(report)
    ]
    table = "\n".join(["| fault | times tried | result |", "| --- | --- | --- |", *rows])
    terminalreporter.write_line(f"\n{table}\n")
    everything = config.args == ["tests/faults"] and not config.getoption("keyword")
    failed = terminalreporter.getreports("failed") + terminalreporter.getreports("error")
    if everything and not failed:
        system = f"{os.cpu_count()} CPUs, Linux {platform.release()}"
        versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
        when = f"{time.strftime('%Y-%m-%d')}, {system}, {versions}."
        (ROOT / "docs" / "faults.md").write_text(f"{FAULTS_HEAD}\n{table}\n\n{when}\n")


def rows_of(report: pytest.TestReport) -> list[tuple[str, int, str]]:
    """Rows of a passed test: those that it added with `held`, or its name."""
    rows: list[Any] = [row for name, row in report.user_properties if name == "held"]
    if rows or report.when != "call" or "/faults/" not in report.nodeid:
        return rows
    sentence = report.nodeid.rpartition("::test_")[2].replace("_", " ")
    return [(sentence, 1, "held")]


FAULTS_HEAD = """# Faults

`make faults` injects these faults for real: signals, failing system calls, damaged and hostile
files, full disks, containers with too little memory or too few processes. It writes this page if
everything held. `make test` runs the same tests with fewer repetitions.
"""


@pytest.fixture(autouse=True)
def no_hogwear_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HOGWEAR_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few photos of fashion5, or of the built-in sample if that is missing; some are mislabelled.

    Mislabelled photos leave something to learn and mistakes to count. In train and val, a sixth and
    an eighth of each class lie in the next class; in test, 3 of eyewear lie in handbag and 1 of
    topwear in footwear, so that classes differ in size.
    """
    folder = tmp_path_factory.mktemp("photos") / "data"
    source = FASHION5 if FASHION5.is_dir() else generate.ensure_sample(folder.parent / "sample")
    next_class = list(zip(CLASSES, CLASSES[1:] + CLASSES[:1], strict=True))
    mislabelled = {
        "train": dict.fromkeys(next_class, 4),
        "val": dict.fromkeys(next_class, 1),
        "test": {("eyewear", "handbag"): 3, ("topwear", "footwear"): 1},
    }
    for split, count in COUNTS.items():
        photos = {}
        for name in CLASSES:
            files = sorted((source / split / name).iterdir())
            photos[name] = [file for file in files if file.name not in LEAKED][:count]
        target = {photo: name for name in CLASSES for photo in photos[name]}
        for (right, wrong), number in mislabelled[split].items():
            target |= dict.fromkeys(photos[right][:number], wrong)
        for photo, name in target.items():
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, folder / split / name / f"{photo.parent.name}-{photo.name}")
    return folder


@pytest.fixture(scope="session")
def photo_files(data: Path) -> list[Path]:
    return sorted(data.glob("train/*/*"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """For decoded photos; it does not exist yet."""
    return tmp_path / "cache"


@pytest.fixture
def copies(photo_files: list[Path], tmp_path: Path) -> list[Path]:
    """Nine photos in a folder of their own, to be changed."""
    (tmp_path / "data").mkdir()
    copies = [tmp_path / "data" / f"{i}.jpg" for i in range(9)]
    for copy, original in zip(copies, photo_files, strict=False):
        copy.write_bytes(original.read_bytes())
    return copies


@pytest.fixture
def decoded_rows(monkeypatch: pytest.MonkeyPatch) -> "Synchronized[int]":
    """How many photos have been decoded into the cache, by any process."""
    count, decode_verified = FORK.Value("i"), decoding.decode_verified

    def count_and_decode(*arguments: Any, **more: Any) -> UInt8Array:
        with count.get_lock():
            count.value += 1
        return decode_verified(*arguments, **more)

    monkeypatch.setattr(decoding, "decode_verified", count_and_decode)
    return count


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos of three classes for each split, without duplicates or other problems."""
    folder = tmp_path_factory.mktemp("clean")
    source = FASHION5 if FASHION5.is_dir() else generate.ensure_sample(folder / "sample")
    for name in ("bottomwear", "handbag", "topwear"):
        photos = sorted((source / "train" / name).iterdir())
        photos = photos[:: len(photos) // 24]
        parts = {"train": photos[:8], "val": photos[8:16], "test": photos[16:24]}
        for split, part in parts.items():
            (folder / "data" / split / name).mkdir(parents=True)
            for photo in part:
                shutil.copy(photo, folder / "data" / split / name / photo.name)
    return folder / "data"


@pytest.fixture
def planted(clean: Path, tmp_path: Path) -> Path:
    """A copy of the clean photos, to plant problems in."""
    return Path(shutil.copytree(clean, tmp_path / "data"))


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """No label is contradicted: with as few photos as here, some are by chance."""
    monkeypatch.setattr(label_check, "CONTRADICTED", 1e12)


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Script]]:
    """start("train.py", "--epochs", 1) -> a running Script, which is killed after the tests."""
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
def tens(tmp_path: Path, photo_files: list[Path]) -> Path:
    """{footwear,handbag}/i.jpg, ten different photos of each."""
    for name in ("footwear", "handbag"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i, photo in enumerate(
            [p for p in photo_files if p.parent.name == name and p.name.startswith(name)][:10]
        ):
            shutil.copy(photo, tmp_path / "data" / name / f"{i}.jpg")
    return tmp_path / "data"


@pytest.fixture
def call(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Completed]:
    """call(eval, "--model-dir", folder): run a command in this process, which has imported torch."""

    def call(
        script: Any, *arguments: object, main: Callable[[Any], None] | None = None
    ) -> Completed:
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        # This process is forked often, which takes longer the larger it is.
        monkeypatch.setattr(machine, "keep_freed_memory", lambda: None)
        capfd.readouterr()  # drops what a call left that raised
        code = command.exit_code(main or script.main, script.Settings)
        return Completed(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def engine() -> None:
    if not engine_answers():
        pytest.skip("DOCKER IS NOT RUNNING (docker info, docker compose version)")


@pytest.fixture(scope="session")
def checkout(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the checkout with its images built, and with a volume that the tests share."""
    folder = copy_checkout(tmp_path_factory.mktemp("checkout"))
    try:
        run("docker", "compose", "build", cwd=folder, timeout=1500)
        yield folder
    finally:
        compose = ("docker", "compose", "--profile", "*")
        run(*compose, "down", "--volumes", cwd=folder)
        run("docker", "image", "rm", *map(image, SERVICES))


@pytest.fixture
def container(checkout: Path) -> Iterator[str]:
    name = f"{PROJECT}-one"
    yield name
    subprocess.run(["docker", "rm", "--force", name], check=False, capture_output=True)


@pytest.fixture
def owned_folders(checkout: Path, owner: int) -> Iterator[list[Path]]:
    """Empty data/, model/ and responses/ that belong to `owner`."""
    folders = [checkout / name for name in ("data", "model", "responses")]
    change_owner(folders, os.getuid())
    for folder in folders:
        shutil.rmtree(folder)
        folder.mkdir()
    change_owner(folders, owner)
    yield folders
    change_owner(folders, os.getuid())


@pytest.fixture(scope="module")
def serve(
    trained: Trained, start: Callable[..., Script], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Server]]:
    """serve("--token", ...): a server that has started, with a model folder of its own."""
    started: list[Server] = []

    def serve(*flags: object) -> Server:
        model = Path(shutil.copytree(trained.model, tmp_path_factory.mktemp("served") / "model"))
        port = free_port()
        where = "--model-dir", model, "--cache-dir", trained.cache, "--port", port
        env = {key: value for key, value in os.environ.items() if not key.startswith("HOGWEAR_")}
        script = start(
            "hogwear/commands/serve.py", *where, *flags, env=env | {"PYTHONPATH": str(ROOT)}
        )
        script.wait_for("Ctrl-C stops")
        server = Server(script, port, model)
        started.append(server)
        return server

    yield serve
    for server in started:
        server.script.kill()


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server]) -> Server:
    """With the default settings."""
    return serve()


@pytest.fixture(scope="module")
def contents(data: Path) -> list[tuple[str, bytes]]:
    """Test photos: (name, content)."""
    return [(photo.name, photo.read_bytes()) for photo in sorted(data.glob("test/*/*"))]
