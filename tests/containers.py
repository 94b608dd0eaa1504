"""What the tests of the containers share: the services of a copied checkout, started and looked into."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SERVICES = ("train", "eval", "infer")
PROJECT = f"hogwear-test-{os.getpid()}"
OCI_FAILED = 126  # `docker exec` did not get as far as the command


def attempt(
    *command: str, cwd: Path = ROOT, timeout: float = 300, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """The command, however it ends, with these variables of the shell."""
    env = os.environ | {"COMPOSE_PROJECT_NAME": PROJECT} | variables
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
    """What a shell in the container prints. Once more where the engine could not start it: runc does fail at that in a busy container."""
    for _ in range(5):
        if (
            done := attempt("docker", "exec", container, "sh", "-c", script)
        ).returncode != OCI_FAILED:
            break
        time.sleep(0.5)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(*command: str, cwd: Path = ROOT, timeout: float = 300) -> str:
    """The command's output, standard error included; fails the test with it when the command fails."""
    done = subprocess.run(command, check=False, cwd=cwd, timeout=timeout, stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"COMPOSE_PROJECT_NAME": PROJECT})  # fmt: skip
    assert done.returncode == 0, (
        f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}"
    )
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


def give(folders: list[Path], owner: int) -> None:
    """chown; through the engine where these tests are not root, which takes seconds."""
    if os.getuid() == 0:
        subprocess.run(["chown", "-R", f"{owner}:{owner}", *folders], check=True)
        return
    mounts = [argument for f in folders for argument in ("--volume", f"{f}:/given/{f.name}")]
    run(
        "docker",
        "run",
        "--rm",
        *mounts,
        "--entrypoint",
        "chown",
        image("train"),
        "-R",
        f"{owner}:{owner}",
        "/given",
    )


def wait_for_output(container: str, pattern: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not re.search(pattern, output := run("docker", "logs", container)):
        running = run("docker", "inspect", "--format", "{{.State.Running}}", container) == "true\n"
        assert running and time.monotonic() < deadline, (
            f"no {pattern!r} within {seconds:.0f} s in:\n{output}"
        )
        time.sleep(0.2)


def python_processes(container: str) -> list[dict[str, str]]:
    """/proc/PID/status of the script and its workers, as dictionaries."""
    statuses = look_into(container, "for f in /proc/[0-9]*; do cat $f/status; echo; done")
    parsed = [
        dict(line.split(":\t", 1) for line in s.splitlines() if ":\t" in line)
        for s in statuses.split("\n\n")
    ]
    return [status for status in parsed if status.get("Name", "").startswith(("python", "pt_"))]
