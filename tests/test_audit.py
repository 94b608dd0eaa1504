"""make audit: vulnerabilities end it with an error, and it warns if it could not check."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from containers import ROOT

Audit = Callable[[str, str], "subprocess.CompletedProcess[str]"]
RANGE = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]}
VULNERABILITY = {
    "id": "PYSEC-2026-1",
    "affected": [{"package": {"name": "leaky", "ecosystem": "PyPI"}, "ranges": [RANGE]}],
}


class Service(BaseHTTPRequestHandler):
    """A server like api.osv.dev that knows one vulnerability."""

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        response = {"vulns": [VULNERABILITY]} if query["package"]["name"] == "leaky" else {}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(response).encode())


@pytest.fixture
def service() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    def audit(requirement: str, service: str) -> "subprocess.CompletedProcess[str]":
        file = tmp_path / "requirements.txt"
        file.write_text(requirement)
        flags = ["--requirement", str(file), "--no-deps", "--disable-pip"]
        flags += ["--vulnerability-service", "osv", "--osv-url", service]
        command = [sys.executable, str(ROOT / ".ci" / "audit"), *flags]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    return audit


def test_a_vulnerability_is_named_and_the_audit_fails(audit: Audit, service: str) -> None:
    done = audit("leaky==1.0", service)
    assert done.returncode == 1
    assert done.stderr == "leaky 1.0: PYSEC-2026-1, fixed in 1.1\n"


def test_packages_without_vulnerabilities_pass(audit: Audit, service: str) -> None:
    done = audit("tight==1.0", service)
    assert done.returncode == 0
    assert "1 packages audited" in done.stdout and "!!!" not in done.stdout


def test_offline_the_audit_passes_with_a_warning(audit: Audit) -> None:
    done = audit("leaky==1.0", "http://127.0.0.1:9")
    assert done.returncode == 0
    assert done.stdout.startswith("!!! NOT AUDITED")
