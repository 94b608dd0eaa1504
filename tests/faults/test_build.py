"""A build behind a company's proxy succeeds, and no secret of the build is left in the image.

The proxy of this test asks for a password and decrypts all traffic, with a private CA. It acts as
every package index itself, with packages of a few bytes, so that the real Dockerfile builds in
seconds.
"""

import base64
import hashlib
import io
import ssl
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme
from containers import PROJECT, attempt, copy_checkout, run

pytestmark = [pytest.mark.engine, pytest.mark.long]
INDEXES = ("pypi.org", "download.pytorch.org")  # pip's default, torch's CPU builds
PASSWORD = "correct-horse-battery-staple"
VERSION = f"1.{time.time_ns()}"  # a new one, so that nothing comes from the build cache


def wheel(name: str) -> bytes:
    """An empty package."""
    info = f"{name}-{VERSION}.dist-info"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {VERSION}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return buffer.getvalue()


class Proxy(ThreadingHTTPServer):
    """http://user:PASSWORD@127.0.0.1:port, which acts as the INDEXES."""

    def __init__(self, ca: trustme.CA) -> None:
        super().__init__(("127.0.0.1", 0), Tunnel)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert(*INDEXES).configure_cert(self.tls)
        self.wheels = {name: wheel(name) for name in ("torchlike", "other", "weights")}
        self.served: set[tuple[str, str]] = set()  # (index, file)
        self.url = f"http://user:{PASSWORD}@127.0.0.1:{self.server_port}"


class Tunnel(BaseHTTPRequestHandler):
    server: Proxy

    def do_CONNECT(self) -> None:
        expected = "Basic " + base64.b64encode(f"user:{PASSWORD}".encode()).decode()
        if self.headers["Proxy-Authorization"] != expected:
            self.send_error(407)
            return
        self.send_response(200)
        self.end_headers()
        self.index = self.path.partition(":")[0]
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)
        self.handle_one_request()

    def do_GET(self) -> None:
        name = self.path.rstrip("/").rpartition("/")[2]
        file = f"{name}-{VERSION}-py3-none-any.whl"
        if name in self.server.wheels:
            kind, content = "text/html", f'<a href="{file}">{file}</a>'.encode()
        else:
            package = name.partition("-")[0]
            kind = "application/octet-stream"
            content = self.server.wheels.get(package, b"")
            self.server.served.add((self.index, package))
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def proxy(engine: None, ca: trustme.CA) -> Iterator[Proxy]:
    server = Proxy(ca)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def built(proxy: Proxy, ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image that was built behind the proxy: its name."""
    folder = copy_checkout(tmp_path_factory.mktemp("behind-a-proxy"))
    (folder / "requirements.txt").write_text(f"torchlike=={VERSION}\nother=={VERSION}\n")
    digest = hashlib.sha256(proxy.wheels["weights"]).hexdigest()
    (folder / "requirements-weights.txt").write_text(f"weights=={VERSION} --hash=sha256:{digest}\n")
    # The proxy is on this machine.
    (folder / "docker-compose.override.yml").write_text(
        "services: {train: {build: {network: host}}}\n"
    )
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    name = f"{PROJECT}-behind"
    build = ("docker", "compose", "build", "--build-arg", f"HTTPS_PROXY={proxy.url}", "train")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TORCH_INDEX_URL", raising=False)
        done = attempt(*build, cwd=folder, HOGWEAR_BUILD_CA="ca.pem", HOGWEAR_IMAGE=name)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield f"{name}-train"
    finally:
        attempt("docker", "image", "rm", f"{name}-train")


def test_the_image_builds_behind_a_proxy_with_a_private_ca(built: str, proxy: Proxy) -> None:
    freeze = ("--entrypoint", "pip", built, "freeze")
    installed = run("docker", "run", "--rm", "--network", "none", *freeze)
    assert {f"{name}=={VERSION}" for name in proxy.wheels} <= set(installed.split())
    downloads = {(index, name) for index, name in proxy.served if name in proxy.wheels}
    assert downloads == {
        ("pypi.org", "weights"),
        ("pypi.org", "other"),
        ("download.pytorch.org", "torchlike"),
    }


def test_neither_the_proxys_password_nor_the_certificate_stays_in_the_image(
    built: str, proxy: Proxy, ca: trustme.CA, tmp_path: Path
) -> None:
    secrets = (
        PASSWORD.encode(),
        proxy.url.rpartition("@")[2].encode(),
        ca.cert_pem.bytes().splitlines()[5],
    )
    archive = tmp_path / "image.tar"
    run("docker", "save", "--output", str(archive), built)
    content = archive.read_bytes()
    assert b"compileall" in content, "layers, configuration and history are not compressed"
    assert [secret for secret in secrets if secret in content] == []
