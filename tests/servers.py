"""A server process, and a small HTTP client."""

import http.client
import json
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import Script

BOUNDARY = "hogwear-test"


@dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """A server process, and where it listens."""

    script: Script
    port: int
    model: Path

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        """A request in a connection of its own. Underscores in names of headers are dashes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, None, **headers)

    def post(
        self, photos: list[tuple[str, bytes]], path: str = "/predict", **headers: str
    ) -> Reply:
        """The photos, (name, content), as a form."""
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        return self.ask("POST", path, form(photos), Content_Type=kind, **headers)

    def processes(self) -> list[int]:
        """The engine and its workers."""
        return descendants(self.script.pid)

    def stop(self) -> int:
        os.kill(self.script.pid, signal.SIGTERM)
        return self.script.code()


def form(photos: list[tuple[str, bytes]]) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="photos"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, content in photos
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [p for child in map(int, children) for p in (child, *descendants(child))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
