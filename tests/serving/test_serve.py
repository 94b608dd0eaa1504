"""The server as a client sees it: answers, refusals, limits; and what it survives."""

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from helpers import CLASSES, Call, Trained, at, refusal, wait_until
from PIL import Image
from servers import BOUNDARY, Server, descendants, form, free_port

import infer
from hogwear.commands import serve as serve_command
from hogwear.serving import bodies
from hogwear.training import checkpoint

Photo = tuple[str, bytes]
TOKEN = "a-secret-of-some-length"


def bomb() -> bytes:
    """A PNG of 400 megapixels in a few hundred kilobytes."""
    Image.new("1", (20_000, 20_000)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


# --- answers


def test_the_answers_are_those_of_infer(
    server: Server, contents: list[Photo], trained: Trained, data: Path, call: Call, tmp_path: Path
) -> None:
    flags = "--responses-dir", tmp_path, "--pictures", 0, "--images", data / "test"
    assert call(infer, *flags, *at(data, trained.model, trained.cache)).code == 0
    expected = {
        Path(row["file"]).name: row
        for row in json.loads((tmp_path / "predictions.json").read_text())
    }
    reply = server.post(contents)
    assert reply.status == 200 and len(reply.json["predictions"]) == len(contents) == 40
    for (name, _), answer in zip(contents, reply.json["predictions"], strict=True):
        row = expected[name]
        assert answer["file"] == name
        assert answer["probabilities"] == pytest.approx(row["probabilities"], abs=1e-3)
        for key in "predicted", "unsure", "unknown", "error":
            assert answer[key] == row[key]


def test_one_photo_may_be_the_whole_body(server: Server, contents: list[Photo]) -> None:
    name, content = contents[0]
    for kind in "image/jpeg", "application/octet-stream":
        reply = server.ask("POST", "/predict", content, Content_Type=kind)
        assert reply.status == 200
        [answer] = reply.json["predictions"]
        assert (
            answer["predicted"]
            == server.post([(name, content)]).json["predictions"][0]["predicted"]
        )


def test_every_photo_has_an_answer_and_a_single_one_a_status(
    server: Server, contents: list[Photo]
) -> None:
    photos = [contents[0], ("broken.jpg", b"no photo"), ("empty.jpg", b""), contents[1]]
    reply = server.post(photos)
    assert reply.status == 200
    answers = reply.json["predictions"]
    assert [answer["file"] for answer in answers] == [name for name, _ in photos]
    assert [answer["error"] for answer in answers] == [
        None, "not one of JPEG, PNG, WEBP, BMP, GIF, AVIF", "empty file", None,
    ]  # fmt: skip
    alone = server.post(photos[1:2])
    assert alone.status == 422 and alone.json["predictions"] == answers[1:2]
    assert alone.json["error"] == answers[1]["error"]


def test_explain_shows_what_the_network_looked_at(server: Server, contents: list[Photo]) -> None:
    reply = server.post(contents[:1], "/explain")
    assert reply.status == 200 and reply.headers["Content-Type"] == "image/png"
    with Image.open(io.BytesIO(reply.body)) as picture:
        assert picture.size == (64, 64) and picture.mode == "RGB"
    assert server.post([("broken.jpg", b"no photo")], "/explain").status == 422
    assert server.post(contents[:2], "/explain").status == 413


def test_the_page_and_what_operators_ask_for(server: Server) -> None:
    page = server.get("/")
    [nonce] = set(re.findall(r'nonce="([^"]+)"', page.body.decode()))
    policy = page.headers["Content-Security-Policy"]
    assert f"script-src 'nonce-{nonce}'" in policy and policy.startswith("default-src 'none'")
    assert nonce not in server.get("/").body.decode(), "used once"
    health = server.get("/health").json
    assert health["classes"] == list(CLASSES) and len(health["checkpoint"]) == 64
    server.post([("broken.jpg", b"no photo")])
    metrics = server.get("/metrics").body.decode()
    assert 'hogwear_requests_total{path="/predict",status="422"}' in metrics
    refused = re.search(r'hogwear_photos_total\{result="refused"\} (\d+)', metrics)
    assert refused and int(refused[1]) >= 1 and "hogwear_photos_waiting 0\n" in metrics
    assert set(server.get("/openapi.json").json["paths"]) == {
        "/predict", "/explain", "/health", "/metrics",
    }  # fmt: skip
    for path in "/", "/health", "/nothing":
        assert server.get(path).headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.long
def test_the_api_keeps_what_its_description_promises(server: Server, tmp_path: Path) -> None:
    """Bytes that are no photo fit the description, and are refused (422): that is not checked."""
    st, url = Path(sys.executable).with_name("st"), f"http://127.0.0.1:{server.port}/openapi.json"
    flags = "--exclude-checks", "positive_data_acceptance", "--max-examples", "20", "--seed", "1"
    done = subprocess.run(
        [st, "run", url, *flags], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "Tested: 4" in done.stdout


# --- refusals


def test_requests_that_cannot_be_used_get_a_status_and_one_line(
    server: Server, contents: list[Photo]
) -> None:
    kind = {"Content_Type": f"multipart/form-data; boundary={BOUNDARY}"}
    replies = {
        400: server.ask("POST", "/predict", form([]), **kind),
        404: server.get("/nothing"),
        405: server.get("/predict"),
        413: server.post([("x.jpg", b"")] * (bodies.MAX_PHOTOS + 1)),
        415: server.ask("POST", "/predict", b"{}", Content_Type="application/json"),
    }
    for status, reply in replies.items():
        assert reply.status == status and "\n" not in reply.json["error"], reply
    assert replies[405].headers["Allow"] == "POST"
    assert server.ask("POST", "/predict", b"garbage", **kind).status == 400


@pytest.mark.long
def test_a_body_may_not_be_too_large_whatever_it_declares(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Type", "image/jpeg")
    connection.putheader("Content-Length", str(bodies.MAX_BYTES + 1))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    chunk = f"{1 << 20:x}\r\n".encode() + b"\0" * (1 << 20) + b"\r\n"
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Type", "image/jpeg")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    with suppress(OSError):  # it may have been refused, and closed, before all was sent
        for _ in range((bodies.MAX_BYTES >> 20) + 2):
            connection.send(chunk)
    with suppress(OSError):
        assert connection.getresponse().status == 413
    connection.close()
    assert server.get("/health").status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:8000"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:9000"}, 403),
    ],
)
def test_only_pages_of_this_server_may_ask(
    server: Server, headers: dict[str, str], status: int
) -> None:
    for path in "/", "/health", "/metrics":
        assert server.get(path, **headers).status == status


def test_with_a_token_only_the_page_and_the_state_are_open(
    serve: Callable[..., Server], contents: list[Photo], tmp_path: Path
) -> None:
    (tmp_path / "secret.txt").write_text(f"{TOKEN}\n")
    server = serve("--token-file", tmp_path / "secret.txt")
    assert server.get("/").status == 200 and server.get("/health").json == {"status": "ok"}
    reply = server.post(contents[:1])
    assert reply.status == 401 and reply.headers["WWW-Authenticate"] == "Bearer"
    for wrong in f"Bearer {TOKEN}x", TOKEN, "Bearer ", f"Bearer {TOKEN[:-1]}":
        assert server.post(contents[:1], Authorization=wrong).status == 401
    right = {"Authorization": f"Bearer {TOKEN}"}
    assert server.post(contents[:1], **right).status == 200
    assert server.get("/health", **right).json["classes"] == list(CLASSES)
    assert TOKEN not in server.script.stdout + server.script.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: others can connect, so clients need a token"),
        (["--token", "short"], "--token: expected at least 16 printable ASCII characters"),
        (["--token-file", "/nowhere"], "--token-file /nowhere: No such file or directory"),
        (["--host", "192.0.2.1", "--token", TOKEN], "--host, --port: cannot listen on 192.0.2.1"),
    ],
)
def test_a_server_that_cannot_be_is_refused_in_one_line(
    flags: list[str], said: str, call: Call, trained: Trained
) -> None:
    answer = call(serve_command, "--model-dir", trained.model, *flags)
    assert answer.code == 2 and said in refusal(answer.stderr)


def test_without_a_checkpoint_or_a_free_port_it_does_not_start(
    server: Server, call: Call, tmp_path: Path
) -> None:
    answer = call(serve_command, "--model-dir", tmp_path, "--port", free_port())
    assert answer.code == 3 and "no checkpoint; run train first" in refusal(answer.stderr)
    answer = call(serve_command, "--model-dir", server.model, "--port", server.port)
    assert answer.code == 2 and "Address already in use" in refusal(answer.stderr)


# --- what it survives


def test_bombs_and_mutated_photos_cost_only_themselves(
    server: Server, contents: list[Photo]
) -> None:
    survive(server, contents, photos=150)


@pytest.mark.long
def test_five_thousand_mutated_photos_never_kill_the_server(
    server: Server, contents: list[Photo]
) -> None:
    survive(server, contents, photos=5000)


def survive(server: Server, contents: list[Photo], photos: int) -> None:
    random = Random(photos)
    good = server.post(contents[:1]).json["predictions"][0]
    reply = server.post([contents[0], ("bomb.png", bomb()), contents[0]])
    assert [bool(answer["error"]) for answer in reply.json["predictions"]] == [False, True, False]

    def mutate(_: int) -> Photo:
        name, content = random.choice(contents)
        changed = bytearray(content)
        for _ in range(random.randint(1, 30)):
            changed[random.randrange(len(changed))] = random.randrange(256)
        return name, bytes(changed[: random.randint(1, len(changed))])

    for _ in range(photos // 50):
        reply = server.post([mutate(n) for n in range(50)])
        assert reply.status == 200 and len(reply.json["predictions"]) == 50
    again = server.post(contents[:1]).json["predictions"][0]
    assert again == good and not server.script.ended


def test_a_killed_worker_or_engine_costs_nothing_but_a_retry(
    serve: Callable[..., Server], contents: list[Photo]
) -> None:
    server = serve()
    engine, *workers = server.processes()
    with ThreadPoolExecutor(4) as pool:
        replies = [pool.submit(server.post, contents[:8]) for _ in range(12)]
        time.sleep(0.05)
        os.kill(workers[0], signal.SIGKILL)
        for reply in replies:
            answers = reply.result().json["predictions"]
            assert [answer["error"] for answer in answers] == [None] * 8
        replies = [pool.submit(server.post, contents[:8]) for _ in range(12)]
        time.sleep(0.05)
        os.kill(engine, signal.SIGKILL)
        for reply in replies:
            answers = reply.result().json["predictions"]
            assert [answer["error"] for answer in answers] == [None] * 8
    assert "hogwear_engine_restarts_total 1\n" in server.get("/metrics").body.decode()
    assert engine not in server.processes() and "ended unexpectedly" in server.script.stdout


@pytest.mark.long
def test_a_new_checkpoint_is_picked_up_and_a_damaged_one_is_not(
    serve: Callable[..., Server], contents: list[Photo]
) -> None:
    server = serve()
    before, file = server.get("/health").json["checkpoint"], server.model / "checkpoint.pt"
    old, previous = file.read_bytes(), server.model / "checkpoint.previous.pt"
    previous.unlink(missing_ok=True)
    file.write_bytes(old[:1000])
    server.script.wait_for(r"Not used, the old checkpoint stays in service: .*damaged")
    assert server.post(contents[:1]).status == 200
    assert server.get("/health").json["checkpoint"] == before
    state = checkpoint.parse(file, old).state
    names = [name.upper() for name in state["class_names"]]
    stop = threading.Event()
    statuses = []

    def ask() -> None:
        while not stop.is_set():
            statuses.append(server.post(contents[:2]).status)

    asking = threading.Thread(target=ask)
    asking.start()
    checkpoint.save(
        server.model,
        {key: value for key, value in state.items() if key not in checkpoint.HEADER}
        | {"class_names": names},
    )
    server.script.wait_for(r"New checkpoint: .*BOTTOMWEAR")
    wait_until(lambda: server.get("/health").json["classes"] == names)
    stop.set()
    asking.join()
    assert set(statuses) == {200} and len(server.processes()) <= 2 * (1 + (os.cpu_count() or 1))
    assert server.post(contents[:1]).json["predictions"][0]["predicted"].isupper()


def test_sigterm_answers_what_is_under_way_and_leaves_no_process(
    serve: Callable[..., Server], contents: list[Photo]
) -> None:
    server = serve()
    processes = server.processes()
    with ThreadPoolExecutor(4) as pool:
        replies = [pool.submit(server.post, contents) for _ in range(4)]
        wait_until(lambda: "hogwear_photos_waiting 0\n" not in server.get("/metrics").body.decode())
        os.kill(server.script.pid, signal.SIGTERM)
        assert {reply.result().status for reply in replies} == {200}
    assert server.script.code() == 0 and server.script.stdout.endswith("Stopped.\n")
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes))


def test_a_killed_server_leaves_no_process(serve: Callable[..., Server]) -> None:
    server = serve()
    processes = server.processes()
    assert len(processes) >= 2
    os.kill(server.script.pid, signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes))


@pytest.mark.long
def test_connections_without_a_request_are_closed(server: Server) -> None:
    silent, slow = (socket.create_connection(("127.0.0.1", server.port)) for _ in range(2))
    slow.sendall(b"GET / HTTP/1.1\r\nHost: ")
    for connection in silent, slow:
        connection.settimeout(30)
        assert connection.recv(1000) == b""
        connection.close()


def test_where_too_many_photos_wait_the_next_are_told_when_to_come_again(
    server: Server, contents: list[Photo]
) -> None:
    many = [contents[n % len(contents)] for n in range(bodies.MAX_PHOTOS)]
    with ThreadPoolExecutor(12) as pool:
        replies = [reply.result() for reply in [pool.submit(server.post, many) for _ in range(12)]]
    busy = [reply for reply in replies if reply.status == 503]
    assert {reply.status for reply in replies} == {200, 503}
    assert busy and all(reply.headers["Retry-After"] == "1" for reply in busy)
    assert server.post(contents[:1]).status == 200


def test_hundreds_of_requests_are_answered_and_memory_stays(
    server: Server, contents: list[Photo]
) -> None:
    soak(server, contents, requests=500)


@pytest.mark.long
def test_twenty_thousand_requests_are_answered_and_memory_stays(
    server: Server, contents: list[Photo]
) -> None:
    soak(server, contents, requests=20_000)


def soak(server: Server, contents: list[Photo], requests: int) -> None:
    """One in a hundred is bad. Each answer has to be that of the same photo alone."""
    expected = [server.post([photo]).json["predictions"][0]["predicted"] for photo in contents]

    def ask(number: int) -> bool:
        if number % 100 == 99:
            return server.post([("broken.jpg", b"no photo")]).status == 422
        index = number % len(contents)
        [answer] = server.post([contents[index]]).json["predictions"]
        return bool(answer["predicted"] == expected[index])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(requests // 2)))
        before = memory(server)
        assert all(pool.map(ask, range(requests // 2, requests)))
    assert memory(server) < 1.05 * before and len(descendants(server.script.pid)) >= 2


def memory(server: Server) -> int:
    """The PSS of all its processes, in KiB."""
    total = 0
    for pid in (server.script.pid, *server.processes()):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)
        total += int(found[1]) if found else 0
    return total
