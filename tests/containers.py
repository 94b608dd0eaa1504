"""Helpers of the container tests, which run the services of a copied checkout."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SERVICES = ("train", "eval", "infer")
PROJECT = f"hogwear-test-{os.getpid()}"
VERSION = "1.2.3"  # for the labels of the images
# Projects and images of our own, and not the user's
OURS = {"COMPOSE_PROJECT_NAME": PROJECT, "HOGWEAR_IMAGE": PROJECT, "HOGWEAR_VERSION": VERSION}
OCI_FAILED = 126  # `docker exec` could not start the command


def attempt(
    *command: str, cwd: Path = ROOT, timeout: float = 300, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command with these environment variables, whatever its exit code."""
    env = os.environ | OURS | variables
    return subprocess.run(
        command,
        check=False,
        cwd=cwd,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=env,
    )


def look_into(container: str, script: str) -> str:
    """Run a shell script in a container: its output.

    In a busy container, runc sometimes fails to start it; then it is tried again.
    """
    for _ in range(5):
        done = attempt("docker", "exec", container, "sh", "-c", script)
        if done.returncode != OCI_FAILED:
            break
        time.sleep(0.5)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(*command: str, cwd: Path = ROOT, timeout: float = 300) -> str:
    """Run a command that must succeed: its output, stderr included."""
    done = subprocess.run(
        command,
        check=False,
        cwd=cwd,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | OURS,
    )
    failure = f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}"
    assert done.returncode == 0, failure
    return done.stdout


def engine_answers() -> bool:
    commands = (["docker", "compose", "version"], ["docker", "info"])
    return bool(shutil.which("docker")) and not any(
        subprocess.run(c, check=False, capture_output=True).returncode for c in commands
    )


def copy_checkout(folder: Path) -> Path:
    for name in ("docker-compose.yml", ".dockerignore", *(f"Dockerfile.{s}" for s in SERVICES)):
        shutil.copy(ROOT / name, folder)
    for file in (*ROOT.glob("*.py"), *ROOT.glob("requirements*.txt")):
        shutil.copy(file, folder)
    for name in ("hogwear", "docker"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("data", "model", "responses"):
        (folder / name).mkdir()
    return folder


def image(service: str) -> str:
    return f"{PROJECT}-{service}"


def change_owner(folders: list[Path], owner: int) -> None:
    """chown, in a container if the tests do not run as root (which takes seconds)."""
    if os.getuid() == 0:
        subprocess.run(["chown", "-R", f"{owner}:{owner}", *folders], check=True)
        return
    mounts = [argument for f in folders for argument in ("--volume", f"{f}:/folders/{f.name}")]
    chown = ("--entrypoint", "chown", image("train"), "-R", f"{owner}:{owner}", "/folders")
    run("docker", "run", "--rm", *mounts, *chown)


def wait_for_output(container: str, pattern: str, seconds: float = 120) -> None:
    """Wait until the logs of a running container match."""
    deadline = time.monotonic() + seconds
    while not re.search(pattern, output := run("docker", "logs", container)):
        running = run("docker", "inspect", "--format", "{{.State.Running}}", container) == "true\n"
        assert running and time.monotonic() < deadline, (
            f"no {pattern!r} within {seconds:.0f} s in:\n{output}"
        )
        time.sleep(0.2)


def python_processes(container: str) -> list[dict[str, str]]:
    """/proc/PID/status of the script and its workers, as dicts."""
    statuses = look_into(container, "for f in /proc/[0-9]*; do cat $f/status; echo; done")
    parsed = [
        dict(line.split(":\t", 1) for line in s.splitlines() if ":\t" in line)
        for s in statuses.split("\n\n")
    ]
    return [status for status in parsed if status.get("Name", "").startswith(("python", "pt_"))]


def capabilities(status: dict[str, str]) -> list[int]:
    """All five sets of capabilities in /proc/PID/status."""
    return [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]


def owners_of(folder: Path) -> set[tuple[int, int]]:
    """(user, group) of everything in a folder."""
    return {(file.stat().st_uid, file.stat().st_gid) for file in folder.rglob("*")}
