"""The restrictions of the three services, seen from inside, and what happens at their limits.

Services run as users run them: docker-compose.yml with all its restrictions, and environment
variables. An override file makes faults that no variable can make (a full disk, a small /dev/shm).
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from containers import (
    PROJECT,
    SERVICES,
    attempt,
    capabilities,
    image,
    look_into,
    owners_of,
    run,
    wait_for_output,
)
from helpers import saved
from PIL import Image

from hogwear.data.sample import generate

pytestmark = pytest.mark.engine
LONG = pytest.mark.long
QUICK = ("--image-size", "64", "--epochs", "1")
Service = Callable[..., "subprocess.CompletedProcess[str]"]

# Runs instead of the script: behind the entrypoint, as the same user, with the same rights.
PROBE = """
import errno, json, os, pathlib

def write(folder):
    try:
        with open(os.path.join(folder, "probe"), "w") as file:
            os.unlink(file.name)
        return "written"
    except OSError as error:
        return errno.errorcode[error.errno]

def status(pid):
    return dict(line.split(":\\t", 1) for line in lines(f"/proc/{pid}/status") if ":\\t" in line)

lines = lambda file: pathlib.Path(file).read_text().splitlines()
folders = ["/", "/app", "/etc", "/opt/venv", "/opt/mount/data", "/opt/mount/model", "/opt/mount/responses", "/tmp"]
print(json.dumps({
    "script": status("self"),
    "init": status(1),
    "write": {folder: write(folder) for folder in folders},
    "mounts": {line.split()[1]: line.split()[3].split(",") for line in lines("/proc/mounts")},
    "interfaces": os.listdir("/sys/class/net"),
    "responses": os.path.exists("/opt/mount/responses") and os.listdir("/opt/mount/responses"),
}))
"""


@pytest.fixture
def service(checkout: Path, container: str) -> Iterator[Service]:
    """service("train", "--epochs", 1, HOGWEAR_PIDS=3): `docker compose run`.

    `override` is the content of an override file.
    """
    file = checkout / "docker-compose.override.yml"

    def service(
        *arguments: object, override: dict[str, Any] | None = None, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        file.write_text(json.dumps({"services": {}, **(override or {})}))
        compose = ("docker", "compose", "--progress", "quiet")
        command = (*compose, "run", "--rm", "-T", "--name", container, *map(str, arguments))
        return attempt(*command, cwd=checkout, timeout=120, **variables)

    yield service
    file.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def finished(checkout: Path) -> Path:
    """The checkpoint of a finished run."""
    run("docker", "compose", "run", "--rm", "train", *QUICK, cwd=checkout)
    return (checkout / "model" / "checkpoint.pt").rename(checkout / "finished.pt")


@pytest.fixture
def model(checkout: Path, finished: Path) -> Path:
    """model/ with only that checkpoint."""
    folder = checkout / "model"
    for file in folder.iterdir():
        file.unlink()
    shutil.copy(finished, folder / "checkpoint.pt")
    return folder


@pytest.mark.parametrize("owner", [1000, pytest.param(0, marks=LONG)], ids=["uid1000", "root"])
@pytest.mark.parametrize("script", SERVICES)
def test_a_service_can_only_write_its_own_folders(
    checkout: Path, service: Service, owned_folders: list[Path], owner: int, script: str
) -> None:
    (checkout / "probe.py").write_text(PROBE)
    done = service("--volume", f"{checkout / 'probe.py'}:/app/{script}.py:ro", script)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)

    assert set(seen["script"]["Uid"].split()) == {str(owner)}
    assert capabilities(seen["script"]) == [0] * 5
    kill_setgid_setuid_setpcap = sum(1 << number for number in (5, 6, 7, 8))
    assert int(seen["init"]["CapBnd"], 16) == kill_setgid_setuid_setpcap
    assert seen["script"]["NoNewPrivs"] == seen["init"]["NoNewPrivs"] == "1"
    assert seen["script"]["Seccomp"] == "2", "the engine filters system calls"
    assert seen["interfaces"] == ["lo"]

    own = "/opt/mount/responses" if script == "infer" else "/opt/mount/model"
    written = {folder for folder, outcome in seen["write"].items() if outcome == "written"}
    assert written == {"/tmp", own}
    outcomes = {seen["write"][folder] for folder in ("/", "/app", "/etc", "/opt/venv")}
    assert outcomes <= {"EROFS", "EACCES"}
    read_only = {"/", "/opt/mount/data"} | ({"/opt/mount/model"} if script == "infer" else set())
    mounted_read_only = {folder for folder in read_only if "ro" in seen["mounts"][folder]}
    assert mounted_read_only == read_only, "by the mount, not only by the owner"
    assert {"noexec", "nosuid", "nodev", "size=1048576k"} <= set(seen["mounts"]["/tmp"])
    assert ("/opt/mount/responses" in seen["mounts"]) == (script == "infer")


def test_train_and_eval_cannot_see_responses(checkout: Path, service: Service) -> None:
    (checkout / "probe.py").write_text(PROBE)
    (checkout / "responses" / "secret.png").touch()
    seen = {
        s: json.loads(service("--volume", f"{checkout / 'probe.py'}:/app/{s}.py:ro", s).stdout)
        for s in SERVICES
    }
    assert seen["infer"]["responses"] == ["secret.png"]
    assert not seen["train"]["responses"] and not seen["eval"]["responses"]


def test_out_of_processes_train_ends_with_the_reason(service: Service, model: Path) -> None:
    done = service("train", "--workers", 4, HOGWEAR_PIDS="4")
    assert "HOGWEAR_PIDS" in reason(done, "train")
    assert is_intact(model)


@pytest.mark.parametrize(
    "memory, batch_size",
    [("700m", 300), pytest.param("400m", 32, marks=LONG)],
    ids=["for workers", "to start"],
)
def test_out_of_memory_train_ends_with_the_reason(
    service: Service, model: Path, memory: str, batch_size: int
) -> None:
    flags = ("--epochs", 1, "--image-size", 160, "--workers", 2, "--batch-size", batch_size)
    done = service("train", *flags, HOGWEAR_MEMORY=memory)
    assert "memory" in reason(done, "train")
    assert is_intact(model)
    if memory == "700m":
        assert "fewer --workers or a smaller --batch-size" in done.stderr
        assert "Resuming" in succeeded(service("train")).stdout


@pytest.mark.parametrize("cpus", [pytest.param("1", marks=LONG), "1.5"])
def test_there_are_as_many_busy_threads_as_the_quota_has_cpus(
    checkout: Path, container: str, cpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if int(run("docker", "info", "--format", "{{.NCPU}}")) < 2:
        pytest.skip("the engine has only one CPU")
    monkeypatch.setenv("HOGWEAR_CPUS", cpus)
    detached = ("docker", "compose", "run", "--detach", "--name", container)
    flags = ("--fresh", "--image-size", "64", "--epochs", "1000")
    run(*detached, "train", *flags, cwd=checkout)
    wait_for_output(container, r"(?s)1 worker on 1 CPU.*closed form")
    before = cpu_time(container)
    time.sleep(3)
    spent = {thread: time - before.get(thread, 0) for thread, time in cpu_time(container).items()}
    assert len([t for t in spent.values() if t > 0.2 * sum(spent.values())]) == 1, spent


@pytest.mark.parametrize("workers", [pytest.param(1, marks=LONG), 2])
def test_the_default_shared_memory_is_enough_for_a_few_workers(
    service: Service, model: Path, workers: int
) -> None:
    succeeded(
        service("train", *QUICK, "--workers", workers, override=changed("train", shm_size="64m"))
    )


def test_too_little_shared_memory_is_refused_with_the_fix(service: Service, model: Path) -> None:
    done = service("train", "--workers", 8, override=changed("train", shm_size="64m"))
    assert "/dev/shm" in reason(done, "train") and "--shm-size" in reason(done, "train")
    assert is_intact(model)


@pytest.fixture
def small_disk(checkout: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A volume of `param` MB. A container mounts it all the time, or its files would be lost."""
    name, holder = f"{PROJECT}-small", f"{PROJECT}-holder"
    options = ("type=tmpfs", "device=tmpfs", f"o=size={request.param}m")
    run("docker", "volume", "create", *(f"--opt={option}" for option in options), name)
    try:
        mounts = ("--volume", f"{name}:/small", "--volume", f"{checkout}:/checkout")
        sleep = ("--entrypoint", "sleep", image("train"), "inf")
        run("docker", "run", "--detach", "--init", "--name", holder, *mounts, *sleep)
        yield name
    finally:
        run("docker", "rm", "--force", holder)
        run("docker", "volume", "rm", name)


@pytest.mark.parametrize("small_disk", [20], indirect=True)
def test_on_a_full_disk_the_previous_checkpoint_survives(
    service: Service, small_disk: str, model: Path
) -> None:
    copy = ("docker", "exec", f"{PROJECT}-holder", "cp", "-r")
    run(*copy, "/checkout/model/checkpoint.pt", "/small")
    done = service("train", *QUICK, override=on(small_disk, "/opt/mount/model"))
    line = reason(done, "train")
    assert "No space left on device" in line and "model" in line
    run(*copy, "/small/.", "/checkout/model")
    assert is_intact(model)
    partial = [file.name for file in model.iterdir() if file.name.startswith(".checkpoint")]
    assert partial == [], "it would keep the disk full"


@pytest.mark.parametrize("small_disk", [pytest.param(1, marks=LONG), 12], indirect=True)
def test_no_room_for_the_cache_ends_train_with_the_reason(
    service: Service, small_disk: str, model: Path
) -> None:
    done = service("train", "--image-size", 160, override=on(small_disk, "/opt/mount"))
    line = reason(done, "train")
    assert "No space left on device" in line and ".cache" in line
    assert is_intact(model)


@pytest.mark.parametrize("small_disk", [36], indirect=True)
def test_no_room_for_features_ends_train_with_the_reason(
    service: Service, small_disk: str, model: Path
) -> None:
    """The sample and its pixels take 33 MB, features at least another 8."""
    (model / "checkpoint.pt").unlink()
    flags = ("--image-size", 160, "--epochs", 0)
    line = reason(service("train", *flags, override=on(small_disk, "/opt/mount")), "train")
    assert "No space left on device" in line and re.search(r"\.cache.*/(trunk|features)-", line)
    assert not (model / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    "script, folder",
    [("train", "model"), pytest.param("eval", "model", marks=LONG), ("infer", "responses")],
)
def test_a_read_only_folder_is_named_in_one_line(
    service: Service, model: Path, script: str, folder: str
) -> None:
    done = service(script, override=changed(script, volumes=[f"./{folder}:/opt/mount/{folder}:ro"]))
    assert done.stderr.count("\n") == 1, done.stderr
    assert folder in reason(done, script)
    assert is_intact(model)


@pytest.mark.parametrize("owner", [1000, pytest.param(0, marks=LONG)], ids=["uid1000", "root"])
def test_photos_are_sorted_into_the_folder_of_responses(
    service: Service, finished: Path, owned_folders: list[Path], owner: int, photos: Path
) -> None:
    """From a mount that cannot be written, and twice."""
    _, model, responses = owned_folders
    shutil.copy(finished, model / "checkpoint.pt")
    inputs = {file: file.read_bytes() for file in photos.rglob("*.jpg")}
    mount = ("--volume", f"{photos}:/photos:ro")
    flags = ("--images", "/photos", "--pictures", 1)
    for copied, there in ((len(inputs), ""), (0, f", {len(inputs)} there already")):
        done = succeeded(service(*mount, "infer", *flags, HOGWEAR_SORT="1"))
        assert f"Sorted: {copied} photos copied to responses/sorted{there}." in done.stdout
    rows = json.loads((responses / "predictions.json").read_text())
    copies = {
        photos / Path(row["file"]).relative_to("/photos"): responses / row["sorted_to"]
        for row in rows
    }
    assert {file: copy.read_bytes() for file, copy in copies.items()} == inputs
    assert owners_of(responses) == {(owner, owner)}
    assert {file: file.read_bytes() for file in photos.rglob("*.jpg")} == inputs


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """The test photos of the built-in sample."""
    return generate.ensure_sample(tmp_path / "sample") / "test"


@pytest.mark.parametrize("small_disk", [1], indirect=True)
def test_no_room_for_sorted_photos_ends_infer_with_the_reason(
    checkout: Path, service: Service, small_disk: str, model: Path
) -> None:
    for i in range(40):  # 1.2 MB
        noise = np.random.default_rng(i).integers(0, 256, (100, 100, 3), np.uint8)
        (checkout / "data" / "new").mkdir(exist_ok=True)
        Image.fromarray(noise).save(checkout / "data" / "new" / f"{i}.png")
    try:
        override = on(small_disk, "/opt/mount/responses", "infer")
        line = reason(
            service("infer", "--images", "data/new", "--sort", override=override), "infer"
        )
        assert "No space left on device" in line and "responses/sorted/" in line
        listing = ("docker", "exec", f"{PROJECT}-holder", "find", "/small", "-type", "f", "-size")
        assert run(*listing, "-20k") == "", "no half copies"
        assert len(run(*listing, "+20k").splitlines()) >= 20
    finally:
        shutil.rmtree(checkout / "data" / "new")


def changed(script: str, **settings: object) -> dict[str, Any]:
    return {"services": {script: settings}}


def on(volume: str, folder: str, script: str = "train") -> dict[str, Any]:
    return changed(script, volumes=[f"{volume}:{folder}"]) | {
        "volumes": {volume: {"name": volume, "external": True}}
    }


def reason(done: "subprocess.CompletedProcess[str]", script: str) -> str:
    """The last line of a service that ended with an error."""
    assert done.returncode == 2, f"exit code {done.returncode}:\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"{script}.py: "), done.stderr
    return line


def succeeded(done: "subprocess.CompletedProcess[str]") -> "subprocess.CompletedProcess[str]":
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def is_intact(model: Path) -> bool:
    """Whether the checkpoint can be loaded and remembers the first run."""
    return len(saved(model)["history"]) >= 1


def cpu_time(container: str) -> dict[str, int]:
    """CPU time of each thread in the container, in clock ticks."""
    stats = look_into(container, "cat /proc/[0-9]*/task/*/stat 2> /dev/null || true")
    fields = [(line.split()[0], line.rpartition(")")[2].split()) for line in stats.splitlines()]
    return {thread: int(f[11]) + int(f[12]) for thread, f in fields}  # utime and stime
