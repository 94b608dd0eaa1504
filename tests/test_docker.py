"""Docker images and services: shared layers, users, stopping and resuming, rebuilding, the cluster.

Most tests need a Docker engine (marker `engine`). They build the images in a copy of the checkout,
under a project name of their own, and remove them afterwards. The first build takes minutes, later
ones seconds.
"""

import json
import os
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from containers import (
    PROJECT,
    ROOT,
    SERVICES,
    VERSION,
    attempt,
    capabilities,
    image,
    owners_of,
    python_processes,
    run,
    wait_for_output,
)
from servers import free_port

from hogwear import __version__

LONG = pytest.mark.long
OWNERS = pytest.mark.parametrize(
    "owner",
    [pytest.param(1000, marks=LONG), 1234, pytest.param(0, marks=LONG)],
    ids=["uid1000", "uid1234", "root"],
)


def dependency_stage(service: str) -> str:
    return (ROOT / f"Dockerfile.{service}").read_text().split("# --- Runtime")[0]


def test_dependency_stages_are_byte_identical() -> None:
    assert "pip install" in dependency_stage("train")
    assert dependency_stage("train") == dependency_stage("eval") == dependency_stage("infer")


def test_dockerfiles_differ_only_in_their_entrypoints() -> None:
    texts = [(ROOT / f"Dockerfile.{service}").read_text().splitlines() for service in SERVICES]
    different = [lines for lines in zip(*texts, strict=True) if len(set(lines)) > 1]
    assert different == list(zip(*(text[-2:] for text in texts), strict=True))


def test_nothing_is_copied_to_the_mount_point() -> None:
    for service in SERVICES:
        copies = re.findall(
            r"^(?:COPY|ADD) .*", (ROOT / f"Dockerfile.{service}").read_text(), re.MULTILINE
        )
        assert copies and not [line for line in copies if "/opt/mount" in line]


def test_services_behind_a_profile_run_an_image_that_docker_compose_build_updates() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    behind = {name: service for name, service in services.items() if "profiles" in service}
    assert behind.keys() == {"doctor", "export", "serve", "rendezvous", "node"}
    for service in behind.values():
        built = Path(service["build"]["dockerfile"]).suffix.removeprefix(".")
        assert "profiles" not in services[built]
        assert services[built]["build"] == service["build"]
        assert (
            service["image"] == f"${{HOGWEAR_IMAGE:-hogwear}}-{built}" == services[built]["image"]
        )
        assert service["pull_policy"] == "never", "nobody else publishes it"


@pytest.mark.engine
def test_images_share_all_their_layers(checkout: Path) -> None:
    layers = [
        json.loads(
            run("docker", "image", "inspect", image(s), "--format", "{{json .RootFS.Layers}}")
        )
        for s in SERVICES
    ]
    assert layers[0] == layers[1] == layers[2]


@pytest.mark.engine
def test_labels_say_what_an_image_is(checkout: Path) -> None:
    inspect = ("docker", "image", "inspect", "--format", "{{json .Config.Labels}}")
    for service in SERVICES:
        labels = json.loads(run(*inspect, image(service)))
        names = {name.removeprefix("org.opencontainers.image."): labels[name] for name in labels}
        assert names["version"] == VERSION and names["licenses"] == "Apache-2.0"
        assert {"title", "revision", "source"} <= names.keys()


@pytest.mark.engine
def test_a_release_is_the_three_images_of_compose_with_the_version_as_their_tag() -> None:
    printed = attempt("docker", "buildx", "bake", "--print").stdout
    targets = json.loads(printed)["target"]
    assert targets.keys() == set(SERVICES)
    for service, target in targets.items():
        assert target["dockerfile"] == f"Dockerfile.{service}"
        assert target["tags"] == [f"{image(service)}:{VERSION}"]
        assert target["args"]["HOGWEAR_VERSION"] == VERSION


def test_make_build_labels_images_with_the_version() -> None:
    command = run("make", "--no-print-directory", "--dry-run", "build")
    version = subprocess.run(
        command.replace("docker compose build", "env"),
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout
    assert f"HOGWEAR_VERSION={__version__}\n" in version and "HOGWEAR_REVISION=" in version


@pytest.mark.engine
def test_only_root_owns_and_can_write_the_code_in_the_image(checkout: Path) -> None:
    writable = ["(", "!", "-user", "root", "-o", "!", "-type", "l", "-perm", "/go+w", ")"]
    find = ["--entrypoint", "find", image("train"), "/app", "/opt/venv", *writable]
    assert run("docker", "run", "--rm", *find) == ""


@pytest.mark.engine
@LONG
def test_the_sbom_lists_what_is_installed_in_the_image(checkout: Path, tmp_path: Path) -> None:
    file = tmp_path / "sbom.json"
    run("make", "--assume-old=.venv/tools", "--assume-old=build", "sbom", f"SBOM={file}")
    components = json.loads(file.read_text())["components"]
    listed = {
        f"{component['name'].lower()}=={component['version'].partition('+')[0]}"
        for component in components
    }
    files = (ROOT / "requirements.txt", ROOT / "requirements-weights.txt")
    pinned = "".join(file.read_text() for file in files)
    pins = set(re.findall(r"^[\w-]+==[\w.]+", pinned, re.MULTILINE))
    assert len(pins) == 13 and pins <= listed
    names = {pin.partition("==")[0] for pin in listed}
    assert {"jinja2", "filelock"} <= names, "dependencies of torch, too"


@pytest.mark.engine
@OWNERS
def test_a_script_runs_as_the_owner_of_its_folder_without_capabilities(
    checkout: Path, owned_folders: list[Path], owner: int, container: str
) -> None:
    detached = ("docker", "compose", "run", "--detach", "--name", container)
    run(*detached, "train", "--epochs", "1000", cwd=checkout)
    wait_for_output(container, "closed form")
    processes = python_processes(container)
    assert len(processes) >= 2, "the script and a worker"
    for status in processes:
        assert set(status["Uid"].split()) == {str(owner)}
        assert set(status["Gid"].split()) == {str(owner)}
        assert status["Groups"].split() == []
        assert capabilities(status) == [0] * 5
        assert status["NoNewPrivs"] == "1"

    run("docker", "stop", container)
    for service in "eval", "infer", "doctor", "export":
        run("docker", "compose", "run", "--rm", service, cwd=checkout)
    _, model, responses = owned_folders
    written = {file.name for folder in (model, responses) for file in folder.rglob("*")}
    names = {
        "checkpoint.pt",
        "eval_results.json",
        "report.html",
        "predictions.json",
        "contact_sheet.png",
        "doctor.html",
        "doctor.json",
        "model.onnx",
    }
    assert names <= written
    assert owners_of(model) == owners_of(responses) == {(owner, owner)}


@pytest.mark.engine
@pytest.mark.parametrize("owner", [1000])
@pytest.mark.parametrize(
    "stop", [["stop"], pytest.param(["kill", "--signal", "INT"], marks=LONG)], ids=" ".join
)
def test_a_stopped_run_saves_and_the_next_resumes(
    checkout: Path, owned_folders: list[Path], container: str, stop: list[str]
) -> None:
    detached = ("docker", "compose", "run", "--detach", "--name", container)
    run(*detached, "train", "--epochs", "1000", cwd=checkout)
    wait_for_output(container, "closed form")
    run("docker", *stop, container)
    code = run("docker", "wait", container).strip()
    assert code == ("130" if "INT" in stop else "143"), "137: the grace period was too short"
    saved = re.search(r"Stopped after (\d+) images", run("docker", "logs", container))
    assert saved

    run("docker", "rm", container)
    run(*detached, "train", cwd=checkout)
    wait_for_output(container, rf"Resuming .* after {saved[1]} images")


@pytest.mark.engine
def test_started_as_another_user_the_script_stays_that_user(checkout: Path) -> None:
    probe = "import os; print(os.getuid(), os.environ['HOGWEAR_CACHE_DIR'])"
    (checkout / "probe.py").write_text(probe)
    run("docker", "compose", "down", "--volumes", cwd=checkout)
    mount = ("--volume", f"{checkout / 'probe.py'}:/app/train.py:ro")
    command = ("docker", "compose", "run", "--rm", *mount)
    assert run(*command, "--user", "4321", "train", cwd=checkout).endswith("4321 /tmp/4321\n")
    own = f"{os.getuid()} /opt/mount/.cache/{os.getuid()}\n"
    assert run(*command, "train", cwd=checkout).endswith(own)
    other = "4321 /opt/mount/.cache/4321\n"
    assert run(*command, "--user", "4321", "train", cwd=checkout).endswith(other)


@pytest.mark.engine
def test_a_rebuilt_image_runs_the_new_code_on_the_old_volume(checkout: Path) -> None:
    script, code = checkout / "train.py", (checkout / "train.py").read_text()
    try:
        for version in ("old code", "new code"):
            script.write_text(f"print({version!r})\n")
            run("docker", "rmi", image("train"))
            run("docker", "compose", "build", "train", cwd=checkout)
            output = run("docker", "compose", "run", "--rm", "train", cwd=checkout)
            assert output.endswith(f"{version}\n")
    finally:
        script.write_text(code)
        run("docker", "compose", "build", "train", cwd=checkout)  # other tests use it


@pytest.mark.engine
@pytest.mark.parametrize("owner", [1234])
def test_the_server_answers_this_machine_only_and_can_reach_nothing(
    checkout: Path, owned_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("HOGWEAR_PORT", str(port))
    run("docker", "compose", "run", "--rm", "train", "--epochs", "0", cwd=checkout)
    name = f"{PROJECT}-serve-1"
    try:
        run("docker", "compose", "up", "--detach", "--wait", "serve", cwd=checkout)  # healthy
        health = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read())
        assert health["status"] == "ok" and len(health["classes"]) == 5
        published = json.loads(
            run("docker", "inspect", name, "--format", "{{json .NetworkSettings.Ports}}")
        )
        assert [each["HostIp"] for each in published["8000/tcp"]] == ["127.0.0.1"]
        processes = python_processes(name)
        assert len(processes) >= 3, "application, engine and a worker"
        for status in processes:
            assert set(status["Uid"].split()) == {"1234"} and capabilities(status) == [0] * 5
        connect = "import socket; socket.create_connection(('192.0.2.1', 53), 2)"
        out = attempt("docker", "exec", name, "python", "-c", connect)
        assert out.returncode and "Error" in out.stderr
        for path in "/app/x", "/opt/mount/model/x":
            assert attempt("docker", "exec", name, "touch", path).returncode
        run("docker", "compose", "stop", "serve", cwd=checkout)
        assert run("docker", "inspect", name, "--format", "{{.State.ExitCode}}") == "0\n"
    finally:
        run("docker", "compose", "--profile", "serve", "down", cwd=checkout)
    assert owners_of(owned_folders[1]) == {(1234, 1234)}


@pytest.mark.engine
@LONG
@pytest.mark.parametrize("owner", [1234])
def test_two_nodes_train_one_model_while_one_is_killed_and_comes_back(
    checkout: Path, owned_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOGWEAR_EPOCHS", "40")
    one, other = (f"{PROJECT}-node-{number}" for number in (1, 2))
    try:
        up = ("docker", "compose", "--profile", "cluster", "up", "--detach")
        run(*up, "--scale", "node=2", cwd=checkout)
        ps = ("docker", "compose", "--profile", "*", "ps", "--all", "--format", "{{.Name}}")
        started = run(*ps, cwd=checkout)
        assert set(started.split()) == {one, other, f"{PROJECT}-rendezvous-1"}
        wait_for_output(one, r"Cluster: 2 machines")
        first = one if "rank 0" in run("docker", "logs", one) else other
        wait_for_output(first, r"epoch \d")
        run("docker", "kill", one)
        wait_for_output(other, r"Resuming the interrupted run in model/checkpoint.pt after [1-9]")
        run("docker", "start", one)
        codes = run("docker", "wait", one, other, timeout=120).split()
        logs = run("docker", "logs", other)
        assert codes == ["0", "0"], logs
        assert logs.count("Cluster: 2 machines") >= 2, "again, with the one that came back"
    finally:
        run("docker", "compose", "--profile", "cluster", "down", cwd=checkout)
    run("docker", "compose", "run", "--rm", "eval", cwd=checkout)
    assert owners_of(owned_folders[1]) == {(1234, 1234)}
