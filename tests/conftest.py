"""What the tests share: a few real photos, the scripts as real processes, and readers of what those leave behind."""

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from containers import PROJECT, copy_checkout, engine_answers, give, run
from containers import ROOT as ROOT  # for the tests, too

sys.path.insert(0, str(ROOT))

import model
from hogwear.data.pixels import Array, Ints, Pixels
from hogwear.data.sample import garments
from hogwear.system import flags, machine
from hogwear.system.workers import FORK
from hogwear.training import checkpoint
from hogwear.training.trainer import LossWatch

torch.set_num_threads(1)  # as the scripts do: a process with threads must not fork

with tempfile.TemporaryDirectory() as folder:
    FAST = model.fast_dtype(Path(folder))
FASHION5 = Path(os.environ.get("FASHION5", ROOT.parent / "shared" / "data" / "fashion5"))
COUNTS = {"train": 24, "val": 8, "test": 8}  # photos of each class
LEAKED = {"10244.jpg"}  # in test, and with another name in train
CLASSES = ("bottomwear", "eyewear", "footwear", "handbag", "topwear")
SIZE = 64


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
    source = FASHION5 if FASHION5.is_dir() else garments.ensure(folder.parent / "sample")
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


class Script:
    """train.py, eval.py or infer.py as a real process, in a session of its own, its output in files."""

    def __init__(self, name: str, *arguments: object, folder: Path, **options: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.out")))
        self.out, self.err = folder / f"{number}.out", folder / f"{number}.err"
        env = {key: value for key, value in os.environ.items() if not key.startswith("HOGWEAR_")}
        command = [sys.executable, str(ROOT / name), *map(str, arguments)]
        with self.out.open("w") as out, self.err.open("w") as err:
            files: dict[str, Any] = {
                "env": env,
                "stdin": subprocess.DEVNULL,
                "stdout": out,
                "stderr": err,
            }
            self.process = subprocess.Popen(
                command, cwd=folder, start_new_session=True, **files | options
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        return self.out.read_text()

    @property
    def stderr(self) -> str:
        return self.err.read_text()

    def code(self, seconds: float = 60) -> int:
        """Wait for its exit code."""
        try:
            return self.process.wait(seconds)
        finally:
            self.kill()

    def ok(self, seconds: float = 60) -> "Script":
        """Wait until it has ended, and well."""
        assert self.code(seconds) == 0, self.stdout + self.stderr
        return self

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()

    def wait_for(self, line: str) -> None:
        """Until a line with this pattern is on stdout."""
        wait_until(
            lambda: re.search(line, self.stdout, re.MULTILINE) or self.process.poll() is not None
        )
        assert re.search(line, self.stdout, re.MULTILINE), (
            f"no {line!r} in:\n{self.stdout}{self.stderr}"
        )

    def wait_for_warning(self, text: str, times: int) -> None:
        """Until it is on stderr so many times."""
        wait_until(
            lambda: (
                self.stderr.count(f"Warning: {text}") >= times or self.process.poll() is not None
            )
        )
        assert self.stderr.count(f"Warning: {text}") == times, self.stdout + self.stderr


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


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


@dataclass(frozen=True)
class Trained:
    """What a finished run of train.py left."""

    model: Path
    cache: Path
    stdout: str
    stderr: str


SMALL_RUN = ("--image-size", SIZE, "--epochs", 6, "--batch-size", 8)


@pytest.fixture(scope="session")
def trained(
    data: Path, start: Callable[..., Script], tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    model, cache = folder / "model", folder / "cache"
    script = start("train.py", *SMALL_RUN, "--workers", 1, *at(data, model, cache)).ok()
    return Trained(model, cache, script.stdout, script.stderr)


def at(data: Path, model: Path, cache: Path) -> tuple[object, ...]:
    return "--data-dir", data, "--model-dir", model, "--cache-dir", cache


Start = Callable[..., Script]
Times = Callable[[int, int], int]
Held = Callable[[str, int, str], None]


@dataclass(frozen=True)
class Answer:
    code: int
    stdout: str
    stderr: str


Call = Callable[..., Answer]


@pytest.fixture
def call(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Answer]:
    """call(eval, "--model-dir", folder): a script, without the seconds that a process takes to import torch."""

    def call(script: Any, *arguments: object, main: Callable[[Any], None] | None = None) -> Answer:
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        monkeypatch.setattr(
            machine, "keep_freed_memory", lambda: None
        )  # this process is forked often, and the larger it is, the longer that takes
        code = flags.exit_code(main or script.main, script.Settings)
        return Answer(code, *capfd.readouterr())

    return call


def pixels_of(images: Array, labels: Ints) -> Pixels:
    """As if they had come out of a cache."""
    count = len(images)
    return Pixels(
        Path(),
        images,
        np.arange(count),
        labels,
        np.zeros((count, 16), np.uint8),
        {},
        np.zeros((count, 256), np.uint8),
    )


@contextmanager
def stopped_after(batches: int) -> Iterator[None]:
    """A train.main within is interrupted after so many batches, as by Ctrl-C."""
    losses: list[float] = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(LossWatch, "add", lambda self, loss: losses.append(loss))
        patch.setattr(machine.Stop, "asked", property(lambda self: len(losses) >= batches))
        yield


def without_test(data: Path, folder: Path) -> Path:
    """The same photos without a test split."""
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copytree(data / split, folder / split, copy_function=os.link)
    return folder


def refusal(stderr: str) -> str:
    """The one line that a script may say when it refuses."""
    assert stderr.count("\n") == 1 and stderr.endswith("\n"), stderr
    return stderr


def saved(model_dir: Path) -> dict[str, Any]:
    return checkpoint.load(model_dir).state


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in weights.values()])


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if name != "images_per_second"}
        for row in history
    ]


def same_run(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two checkpoints hold the same weights, best weights and history, to the last bit."""
    return (
        torch.equal(flat(one["weights"]), flat(other["weights"]))
        and torch.equal(flat(one["best"]["weights"]), flat(other["best"]["weights"]))
        and without_times(one["history"]) == without_times(other["history"])
    )


def descendants(pid: int) -> set[int]:
    """Processes that this one has started, and theirs."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(parent, []).append(int(stat.parent.name))
    found, queue = set(), [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found.update(children)
        queue += children
    return found


def is_running(pid: int) -> bool:
    """Not gone, and not a zombie that its parent has yet to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Elsewhere:
    """function(*arguments) in a forked process of its own; `answer()` waits for what it returns.

    For what would leave its mark on this process: one that has computed gradients can fork no workers that do.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.pipe, theirs = FORK.Pipe()
        self.process = FORK.Process(target=lambda: theirs.send(function(*arguments)))
        self.process.start()
        theirs.close()

    def answer(self) -> Any:
        try:
            return self.pipe.recv()
        finally:
            self.process.join()


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
