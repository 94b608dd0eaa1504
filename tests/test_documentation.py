"""The documentation is correct: flags, exit codes, files, messages, figures, links, commands."""

import ast
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
from dataclasses import dataclass, fields
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from helpers import ROOT, Call, Script, Start, at, saved, wait_until

import eval
import infer
import train
from hogwear.commands import doctor, export, rendezvous, serve

README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "bench" / "RESULTS.md").read_text()
MOVED_ASIDE = {"model/checkpoint-*.pt"}  # written by train --fresh and the like
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "bench" / "RESULTS.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
SCRIPTS: dict[str, ModuleType] = {
    "train": train,
    "eval": eval,
    "infer": infer,
    "doctor": doctor,
    "export": export,
    "serve": serve,
}
ALL = [name for name in SCRIPTS if name != "serve"]  # that have the flags of "all"


def table(heading: str, text: str = README) -> list[list[str]]:
    """The cells of the first table below a heading, or in a section that is folded away."""
    _, section = re.split(rf"^(?:#+ {heading}|<summary>{heading}</summary>)\n", text, flags=re.M)
    rows = re.split(r"^(?:#+ |</details>)", section, flags=re.M)[0].splitlines()
    _, _, *rows = [row for row in rows if row.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def code(text: str) -> list[str]:
    """Code in a text: spans in backticks, and lines of indented blocks without their comments."""
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    blocks = [line.partition("  #")[0] for line in text.splitlines() if line.startswith("    ")]
    return re.findall(r"`([^`\n]+)`", prose) + blocks


# --- flags


def test_the_readme_has_every_flag_with_its_default(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    option = re.compile(r"^  (--[\w-]+)(?:.*\(default: (.*)\)$)?", re.MULTILINE)
    expected = []
    for name, script in SCRIPTS.items():
        text = re.sub(r"\n {3,}", " ", call(script, "--help").stdout)  # one option per line
        expected += [(name, flag, default) for flag, default in option.findall(text)]
    documented = []
    for command, flag, default, _ in table("Flags"):
        row = flag.strip("`"), default.replace("`", "")
        documented += [(name, *row) for name in (ALL if command == "all" else command.split(", "))]
    assert sorted(documented) == sorted(expected)


# --- Compose

COMPOSE_FILE = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE_FILE)["services"]
COMMANDS = {  # that the services run
    "train": ("train.py", train),
    "node": ("train.py", train),
    "eval": ("eval.py", eval),
    "infer": ("infer.py", infer),
    "doctor": ("hogwear.commands.doctor", doctor),
    "export": ("hogwear.commands.export", export),
    "rendezvous": ("hogwear.commands.rendezvous", rendezvous),
    "serve": ("hogwear.commands.serve", serve),
}
MOUNTED = {"data_dir", "model_dir", "cache_dir", "responses_dir"}
NOT_PASSED_ON = {  # {service: {setting: why not}}
    "train": {"sync_every": "there are no other machines to average with"},
    "rendezvous": {
        "address": "the service listens on its own name",
        "port": "the nodes look for it on the default port",
    },
    "serve": {
        "port": "HOGWEAR_PORT is the port of the host",
        "token": "only this machine can connect",
        "token_file": "only this machine can connect",
        "host": "all addresses of the container",
        "no_token": "only this machine can connect",
    },
    "node": {
        "time_budget": "train refuses it in a cluster",
        "fresh": "train refuses it in a cluster",
    },
}


def entrypoint(service: dict[str, Any]) -> list[str]:
    """Of the service, or else of its image."""
    dockerfile = (ROOT / service["build"]["dockerfile"]).read_text()
    return service.get("entrypoint") or json.loads(dockerfile.rpartition("\nENTRYPOINT ")[2])


@pytest.mark.parametrize("service", COMPOSE)
def test_compose_passes_on_the_variable_of_every_flag(service: str) -> None:
    command, module = COMMANDS[service]
    assert entrypoint(COMPOSE[service])[:3] == ["/bin/sh", "/app/docker/entrypoint", command]
    flags = {field.name for field in fields(module.Settings)}
    exceptions = NOT_PASSED_ON.get(service, {})
    assert exceptions.keys() <= flags, "no such flag"
    lines = COMPOSE[service].get("environment", [])
    passed_on = {line for line in lines if re.fullmatch("HOGWEAR_[A-Z_]+", line)}
    expected = flags - exceptions.keys() - MOUNTED
    assert passed_on == {f"HOGWEAR_{flag.upper()}" for flag in expected}


# --- exit codes, and the files that commands write


@dataclass(frozen=True)
class Runs:
    """Runs of train that were stopped after their second save."""

    terminated: Script
    interrupted: Script  # rank 0 of two machines
    left_alone: Script  # rank 1
    folder: Path  # contains model-NAME and cache-NAME of each run

    def at(self, name: str, data: Path) -> tuple[object, ...]:
        return at(data, self.folder / f"model-{name}", self.folder / f"cache-{name}")


@pytest.fixture(scope="module")
def runs(data: Path, start: Start, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All at once, because most of their time goes into importing torch."""
    folder = tmp_path_factory.mktemp("runs")
    small = ("--arch", "tinyvgg", "--image-size", 32, "--batch-size", 8, "--workers", 1)
    endless = ("--epochs", 10_000)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machine = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "1",
    }

    def run(name: str, **environment: str) -> Script:
        env = {key: value for key, value in os.environ.items() if not key.startswith("HOGWEAR_")}
        folders = at(data, folder / f"model-{name}", folder / f"cache-{name}")
        return start("train.py", *small, *endless, *folders, env=env | environment)

    started = Runs(
        run("terminated"),
        run("interrupted", **machine, RANK="0"),
        run("left_alone", **machine, RANK="1"),
        folder,
    )
    for script, name, number in (
        (started.terminated, "terminated", signal.SIGTERM),
        (started.interrupted, "interrupted", signal.SIGINT),
    ):
        # The first one is written before the first step.
        file = folder / f"model-{name}" / "checkpoint.previous.pt"
        wait_until(lambda file=file, script=script: file.exists() or script.ended)  # type: ignore[misc]
        assert not script.ended, script.stderr
        os.kill(script.pid, number)
    for script in (started.terminated, started.interrupted, started.left_alone):
        script.code()
    return started


def test_every_exit_code_in_the_readme_occurs(
    runs: Runs, data: Path, call: Call, start: Start, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    unread = start("eval.py", *runs.at("terminated", data), stdout=writing)
    os.close(writing)
    responses = ("--responses-dir", tmp_path / "responses")
    produced = {
        0: call(infer, *runs.at("terminated", data), *responses).code,
        1: runs.left_alone.code(),
        2: call(train, "--epochs", -1).code,
        3: call(eval, *at(data, tmp_path / "model", tmp_path / "cache")).code,
        130: runs.interrupted.code(),
        141: unread.code(),
        143: runs.terminated.code(),
    }
    documented = [int(code) for code, _ in table("Exit codes")]
    assert produced == {code: code for code in documented}
    assert "lost contact with another machine" in runs.left_alone.stderr
    for script, name in (runs.terminated, "terminated"), (runs.interrupted, "interrupted"):
        images = saved(runs.folder / f"model-{name}")["images_seen"]
        assert f"Stopped after {images} images" in script.stdout, "it saves first"


def test_the_files_that_commands_write_are_those_in_the_readme(
    runs: Runs, data: Path, call: Call, tmp_path: Path
) -> None:
    model, responses = runs.folder / "model-terminated", tmp_path / "responses"
    for script in (eval, doctor, export, infer):
        flags: tuple[object, ...] = ()
        if script is infer:
            flags = "--responses-dir", responses, "--images", data / "test", "--sort", "--next", 5
        completed = call(script, *runs.at("terminated", data), *flags)
        assert completed.code == 0, completed
    written = {f"model/{file.name}" for file in model.iterdir() if not file.name.startswith(".")}
    written |= {f"responses/{file.relative_to(responses)}" for file in responses.rglob("*.*")}
    documented = {cell.strip("`") for cell, _ in table("Files")} - MOVED_ASIDE
    unused = {pattern for pattern in documented if not any(fnmatch(f, pattern) for f in written)}
    unknown = {file for file in written if not any(fnmatch(file, p) for p in documented)}
    assert unused == unknown == set()


# --- figures, messages

PEERS = {  # the name of a row in the README -> in bench/RESULTS.md
    "**Hogwear**": "Hogwear",
    "frozen features and scikit-learn's LogisticRegression": "frozen_features",
    "the same with Hogwear's decoding and forward pass": "fast_frozen_features",
    "timm, 1 epoch": "timm, 1 epoch",
    "fastai, 1 epoch": "fastai, 1 epoch",
    "plain PyTorch loop, 1 epoch": "loop, 1 epoch",
    "plain PyTorch loop, 2 epochs": "loop, 2 epochs",
}


def test_the_figures_in_the_readme_are_those_of_the_bench() -> None:
    measured = {}
    for name, _, seconds, _, accuracy in table("peers", RESULTS):
        measured[name] = f"{float(seconds.split()[0]):.0f} s", f"{float(accuracy.split()[0]):.3f}"
    shown = {name: (time, accuracy) for name, time, accuracy in table("Hogwear")}
    expected = {name: measured[peer] for name, peer in PEERS.items() if peer in measured}
    assert {name: tuple(cell.strip("*") for cell in row) for name, row in shown.items()} == expected


def messages() -> list[str]:
    """All strings in the product's code; values that are filled in are shown as `…`."""
    found = []
    for file in (*ROOT.glob("*.py"), *(ROOT / "hogwear").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                )
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_error_message_in_the_readme_exists() -> None:
    documented = [cell.strip("`") for cell, _ in table("Error messages") if cell.startswith("`")]
    assert len(documented) >= 8
    texts = messages()
    for message in documented:
        pattern = ".*".join(re.escape(part) for part in message.strip("…").split("…"))
        assert any(re.search(pattern, text) for text in texts), message


# --- files, links, commands

FILES = {cell.strip("`") for cell, _ in table("Files")}
MADE = {
    *(".cache", ".venv", ".venv/bin/python", "sbom.json"),  # by make
    *("responses/sorted", "responses/sorted/CLASS"),  # by infer --sort
    *("responses/sorted/unsure", "responses/sorted/unknown"),
    *("sorted/CLASS", "sorted/unsure", "sorted/unknown", "shoe_3fa9c1d2.jpg"),
    "responses/next.png",  # by infer --next
}
YOURS = {  # files that a reader may have
    "*.csv", "*.heic", ".env", "boots/17.jpg", "boots/18.jpg", "ca.pem", "data/boots/*.jpg",
    "data/boots/2024/*.jpg", "data/corrections.csv", "data/images", "data/sandals/*.jpg",
    "bag.jpg", "secret.txt", "shoe.jpg", "data/test/...", "data/train/boots/*.jpg", "data/val/boots/*.jpg", "images", "model/season",
    "styles.csv",
}  # fmt: skip
NO_PATHS = {"70/15/15"}
PATH = re.compile(r"(?<![\w./:$*-])((?:[\w.*-]+/)+[\w.*-]*|[\w*-]*\.[a-z]\w*)(?![\w/])")


def test_every_file_in_the_readme_exists_or_is_written_by_a_command() -> None:
    named = {
        path.rstrip("/")
        for text in code(README)
        for path in PATH.findall(re.sub(r"-m \S+", "", text))
    } - NO_PATHS
    assert len(named) > 30, "found"
    missing = {path for path in named - FILES - MADE - YOURS if not (ROOT / path).exists()}
    assert missing == set()
    assert (MADE | YOURS) - named == set(), "no longer in the README: delete it from the lists"


def anchors(document: Path) -> set[str]:
    """Targets of links within a document, as GitHub derives them from headings."""
    headings = re.findall(r"^#+ (.*)", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_files_and_headings_that_exist() -> None:
    links = [
        (document, link)
        for document in DOCUMENTS
        for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text())
        if ":" not in link
    ]
    assert len(links) > 20, "found"
    for document, link in links:
        path, _, heading = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists() and (not heading or heading in anchors(target)), (
            f"{document.relative_to(ROOT)}: {link}"
        )


def test_every_test_in_the_threat_model_exists() -> None:
    tests = {file.relative_to(ROOT / "tests") for file in (ROOT / "tests").rglob("test_*.py")}
    names = "\n".join((ROOT / "tests" / file).read_text() for file in tests)
    model = table("Threat model", (ROOT / "docs" / "threat-model.md").read_text())
    assert len(model) > 15
    for *_, cell in model:
        for name in re.findall(r"`(.+?)`", cell):
            if name.endswith(".py"):
                assert any(str(file).endswith(name) for file in tests), name
            else:
                assert f"def {name.removesuffix('…')}" in names, name


def commands(pattern: str) -> set[str]:
    """What a pattern's group matches in the code of all documents."""
    return {
        found
        for document in DOCUMENTS
        for text in code(document.read_text())
        for found in re.findall(pattern, text)
    }


def test_every_make_target_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = commands(r"\bmake ([\w-]+)")
    assert named and named - targets == set()


def test_make_clean_keeps_the_files_of_the_user(tmp_path: Path) -> None:
    theirs = [
        f"{folder}/__pycache__/photo.jpg" for folder in ("data", "data/train", "model", "responses")
    ] + [".my_cache/file", "notes/file"]
    ours = [
        "hogwear/__pycache__/file.pyc",
        ".cache/pixels/file",
        ".mypy_cache/file",
        ".venv/bin/python",
        "mutants/file",
    ]
    for name in theirs + ours:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    subprocess.run(
        ["make", "--silent", "--file", ROOT / "Makefile", "clean", "ENGINE=false"],
        cwd=tmp_path,
        check=True,
    )
    assert {
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()
    } == set(theirs)


def test_every_module_in_the_documents_can_be_run() -> None:
    named = commands(r"python -m ([\w.]+)")
    assert named
    for name in named:
        found = importlib.util.find_spec(name)
        if found and found.submodule_search_locations:  # a package: its __main__.py is run
            found = importlib.util.find_spec(f"{name}.__main__")
        assert (
            found and found.origin and '__name__ == "__main__"' in Path(found.origin).read_text()
        ), name
