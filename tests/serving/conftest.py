"""Real servers with a trained model."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import ROOT, Start, Trained
from serving.servers import Server, free_port


@pytest.fixture(scope="module")
def serve(
    trained: Trained, start: Start, tmp_path_factory: pytest.TempPathFactory
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
