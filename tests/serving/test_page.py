"""The page of the server, in a real browser: drop a photo, read the answer; whatever the server does."""

import contextlib
import csv
import email.parser
import email.policy
import io
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from helpers import CLASSES, FASHION5, ROOT, SIZE, wait_until
from PIL import Image
from servers import Server

from hogwear.evaluation.palette import PAGE as COLOURS
from hogwear.evaluation.pictures import overlay
from hogwear.evaluation.prediction import Photo, Prediction, to_rows
from hogwear.system.text import escape, to_csv

PAGE = ROOT / "hogwear" / "serving" / "page.html"
POLICY = (
    "default-src 'none'; script-src 'nonce-N'; style-src 'nonce-N'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HOSTILE = "=<img src=x onerror=alert(1)>\u202e,\"'.jpg"
PHONE, DESKTOP = (390, 844), (1280, 800)


def predict(name: str) -> Prediction:
    """What the stub answers for a photo: the class, and what is wrong with it, are in its name."""
    if "broken" in name:
        return Prediction(Photo(Path(name), None, None, error="not a photo"), {})
    best = next((i for i, label in enumerate(CLASSES) if label in name), 0)
    share = 0.58 if "unsure" in name else 0.97
    rest = (1 - share) / 10
    others = dict(
        zip([*CLASSES[:best], *CLASSES[best + 1 :]], [n * rest for n in (4, 3, 2, 1)], strict=True)
    )
    probabilities = {label: others.get(label, share) for label in CLASSES}
    return Prediction(
        Photo(Path(name), None, None), probabilities, "unsure" in name, "unknown" in name
    )


class Stub(ThreadingHTTPServer):
    """A server that keeps the page's contract, and fails as it is told to.

    The real one cannot be made to be busy or to go away at a given moment.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.received: list[list[str]] = []  # the names of each request's photos
        self.reset()

    def reset(self) -> None:
        self.token = ""
        self.failures: list[int] = []  # statuses of the next requests to predict; 0: cut off
        self.gate = threading.Event()  # predict waits for it
        self.gate.set()
        self.received.clear()
        self.asked: list[float] = []  # when predict was called
        self.too_many = 1000


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        if self.path == "/":
            page = PAGE.read_text().replace("{{ nonce }}", "N")
            self.reply(
                200, page.encode(), "text/html; charset=utf-8", ("Content-Security-Policy", POLICY)
            )
        elif not self.is_authorised():
            self.reply_json(200, {"status": "ok"})
        else:
            limits = {"photos": 8, "bytes": 1 << 26}
            self.reply_json(200, {"checkpoint": "5f" * 32, "classes": CLASSES, "limits": limits})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.is_authorised():
            return self.reply_json(401, {"error": "send the token"})
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
        parts: list[tuple[str, bytes]] = []
        for part in message.iter_parts():
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            parts.append((part.get_filename() or "", content))
        if self.path == "/explain":
            with Image.open(io.BytesIO(parts[0][1])) as photo:
                image = np.asarray(photo.convert("RGB").resize((160, 160)))
            picture = io.BytesIO()
            activation = np.outer([0, 1, 2, 1, 0], [0, 1, 2, 2, 1]).astype(float)
            Image.fromarray(overlay(image, activation)).save(picture, "PNG")
            return self.reply(200, picture.getvalue(), "image/png")
        self.server.asked.append(time.monotonic())
        if self.server.failures:
            if status := self.server.failures.pop(0):
                self.reply_json(status, {"error": f"status {status}"}, ("Retry-After", "1"))
            self.close_connection = True
            return None
        if len(parts) > self.server.too_many:
            return self.reply_json(413, {"error": "too many photos"})
        self.server.received.append([name for name, _ in parts])
        self.server.gate.wait()
        self.reply_json(200, {"predictions": [predict(name).to_json() for name, _ in parts]})

    def is_authorised(self) -> bool:
        token = self.server.token
        return not token or self.headers["Authorization"] == f"Bearer {token}"

    def reply_json(self, status: int, content: Any, *headers: tuple[str, str]) -> None:
        self.reply(status, json.dumps(content).encode(), "application/json", *headers)

    def reply(self, status: int, body: bytes, kind: str, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in [("Content-Type", kind), ("Content-Length", str(len(body))), *headers]:
            self.send_header(name, value)
        with contextlib.suppress(ConnectionError):  # the page has stopped waiting
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with Stub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def shared_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def browser(shared_browser: Browser, stub: Stub) -> Iterator[Browser]:
    """A browser that knows no token; afterwards, no other host was asked."""
    stub.reset()
    shared_browser.evaluate("try { sessionStorage.clear() } catch {}")
    yield shared_browser
    stub.gate.set()
    urls = {
        event["params"]["request"]["url"]
        for event in shared_browser.events
        if event["method"] == "Network.requestWillBeSent"
    }
    [host] = {url.split("/")[2] for url in urls if not url.startswith(("blob:", "data:"))}
    assert host in shared_browser.evaluate("location.href")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dozen photos: two of each class, one of them unsure, one unknown, one broken, one hostile."""
    folder = tmp_path_factory.mktemp("photos")
    found = {}
    for label in CLASSES:
        for n, file in enumerate(sorted((FASHION5 / "val" / label).iterdir())[:2]):
            name = f"{label}-{n}.jpg"
            name = {
                "handbag-1.jpg": "handbag-unsure.jpg",
                "eyewear-1.jpg": "eyewear-unknown.jpg",
            }.get(name, name)
            found[name] = folder / name
            shutil.copyfile(file, found[name])
    found["broken"] = folder / "broken.heic"
    found["broken"].write_bytes(b"\0\0\0\x18ftypheic")
    found["hostile"] = folder / HOSTILE
    shutil.copyfile(found["topwear-0.jpg"], found["hostile"])
    return found


def problems(browser: Browser) -> list[Any]:
    """Messages on the console, exceptions, violations of the policy."""
    kinds = "Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"
    return [event for event in browser.events if event["method"] in kinds]


def text_of(browser: Browser, selector: str) -> str:
    found: str = browser.evaluate(
        f"document.querySelector({json.dumps(selector)})?.textContent ?? ''"
    )
    return " ".join(found.split())


def wait_for_answers(browser: Browser, count: int) -> None:
    browser.wait_for(
        f"photos.length === {count} && photos.every((photo) => photo.answer) && !drawn && !running"
    )


def test_the_page_shows_the_answers_of_the_server_and_its_class_activation_maps(
    browser: Browser, serve: Callable[..., Server], photos: dict[str, Path]
) -> None:
    token = "a token of some length"
    server = serve("--token", token)
    browser.open(f"http://127.0.0.1:{server.port}/", *DESKTOP, dark=False)
    browser.wait_for("document.activeElement.id === 'secret'")
    browser.call("Input.insertText", text=token)
    browser.press("Enter")
    browser.wait_for("document.querySelector('#model').innerText.includes('5 classes: bottomwear')")

    file = photos["footwear-0.jpg"]
    browser.drop([file])
    wait_for_answers(browser, 1)
    reply = server.post([(file.name, file.read_bytes())], Authorization=f"Bearer {token}")
    [expected] = reply.json["predictions"]
    share = f"{100 * expected['probability']:.1f}\N{NO-BREAK SPACE}%"
    assert text_of(browser, ".card .answer") == " ".join(f"{expected['predicted']} {share}".split())
    browser.evaluate("document.querySelector('.card button').click()")
    browser.wait_for(f"document.querySelector('.card img').naturalWidth === {SIZE}")
    assert not problems(browser)

    browser.drop(photos.values())
    wait_for_answers(browser, 1 + len(photos))
    assert browser.evaluate(
        "photos.filter((photo) => photo.answer.error).map((photo) => photo.name)"
    ) == ["broken.heic"]
    browser.open(f"http://127.0.0.1:{server.port}/", *DESKTOP, dark=False)
    browser.wait_for("document.querySelector('#model').innerText.includes('5 classes: bottomwear')")


@pytest.mark.long
@pytest.mark.parametrize(
    ("size", "dark"), [(PHONE, True), (DESKTOP, False)], ids=["phone, dark", "desktop, light"]
)
def test_who_drops_photos_reads_their_classes(
    size: tuple[int, int], dark: bool, browser: Browser, stub: Stub, photos: dict[str, Path]
) -> None:
    browser.open(stub.url, *size, dark)
    browser.wait_for("document.querySelector('#model').innerText.includes('topwear')")
    browser.drop([photos["footwear-0.jpg"]])
    wait_for_answers(browser, 1)
    assert text_of(browser, ".card .answer") == "footwear 97.0 %"
    assert text_of(browser, "#spoken") == "footwear-0.jpg: footwear, 97.0 %."
    browser.wait_for("document.querySelector('.card img').naturalWidth > 0")

    browser.drop([file for name, file in photos.items() if name != "footwear-0.jpg"])
    wait_for_answers(browser, 12)
    assert "Unknown" in text_of(browser, ".card.unknown") and "Unsure" in text_of(
        browser, ".card.unsure"
    )
    assert "Not readable not a photo broken.heic" in text_of(browser, ".card.unreadable")
    assert "2 unsure" not in text_of(
        browser, "#spoken"
    ) and "1 unsure, 1 unknown, 1 not readable" in text_of(browser, "#spoken")
    assert browser.evaluate("document.documentElement.scrollWidth") <= size[0]
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 150) == dark
    assert not problems(browser)


def test_names_are_text_and_the_table_is_the_one_that_infer_writes(
    browser: Browser, stub: Stub, photos: dict[str, Path], tmp_path: Path
) -> None:
    browser.open(stub.url, *DESKTOP, dark=False)
    browser.drop(photos.values())
    wait_for_answers(browser, 12)
    assert browser.evaluate("document.querySelectorAll('.card .name *, .card h3 *').length") == 0
    assert r"=<img src=x onerror=alert(1)>\u202e" in browser.evaluate("document.body.innerText")
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.evaluate("document.querySelector('#csv').click()")
    table = tmp_path / "predictions.csv"
    wait_until(lambda: table.exists() and table.stat().st_size > 0)
    expected = to_csv(to_rows([predict(file.name) for file in photos.values()]))
    assert [*map(as_values, read(table.read_bytes().decode()))] == [*map(as_values, read(expected))]
    assert not problems(browser)


def read(table: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(table, newline="")))


def as_values(row: list[str]) -> list[str | float]:
    """The cells of a row; 0.050 and 0.05 are the same number."""
    return [float(cell) if re.fullmatch(r"\d+\.?\d*(e-\d+)?", cell) else cell for cell in row]


def test_texts_are_escaped_as_everywhere_else(browser: Browser, stub: Stub) -> None:
    browser.open(stub.url, *DESKTOP, dark=False)
    texts = [
        "\x00\x1b[31m\x7f\x85\t\r\n",
        "\u200b\u200c\u200d\u202e\u2028\ufeff\xad",
        "é 日本 👩\u200d🚀 \xa0\u3000",
    ]
    texts += ["\U000e0001\U0010ffff", "\ue000\u0378"]
    assert browser.evaluate(f"{json.dumps(texts)}.map(escape)") == [*map(escape, texts)]


def test_the_colours_are_those_of_the_report() -> None:
    page = PAGE.read_text()
    for name, (light, dark) in COLOURS.items():
        assert re.findall(rf"--{name}: (#\w+);", page) == [light, dark]


@pytest.mark.long
def test_a_busy_server_is_asked_again_after_the_time_that_it_names(
    browser: Browser, stub: Stub, photos: dict[str, Path]
) -> None:
    stub.failures = [503] * 100
    browser.open(stub.url, *DESKTOP, dark=False)
    browser.drop([photos["topwear-0.jpg"]])
    busy = "The server is busy. Trying again in 1 second."
    browser.wait_for(f"document.querySelector('#count').innerText === '{busy}'")
    wait_until(lambda: len(stub.asked) >= 2)
    stub.failures.clear()
    wait_for_answers(browser, 1)
    assert stub.received == [["topwear-0.jpg"]]
    first, second, *_ = stub.asked
    assert second - first >= 1


@pytest.mark.long
def test_when_the_server_has_gone_the_page_says_so_and_goes_on_when_asked(
    browser: Browser, stub: Stub, photos: dict[str, Path]
) -> None:
    stub.failures = [0, 0]
    browser.open(stub.url, *DESKTOP, dark=False)
    browser.drop(photos.values())
    browser.wait_for("!document.querySelector('#notice').hidden && !running")
    assert (
        text_of(browser, "#notice") == "The server cannot be reached. 12 photos waiting. Try again"
    )
    stub.failures.clear()
    browser.evaluate("document.querySelector('#again').click()")
    wait_for_answers(browser, 12)
    assert browser.evaluate("document.querySelector('#notice').hidden")


@pytest.mark.long
def test_stop_stops_and_continue_continues(
    browser: Browser, stub: Stub, photos: dict[str, Path]
) -> None:
    stub.gate.clear()
    browser.open(stub.url, *DESKTOP, dark=False)
    browser.drop(photos.values())
    browser.wait_for("running === 2 && !drawn")
    browser.evaluate("document.querySelector('#cancel').click()")
    browser.wait_for("running === 0")
    assert text_of(browser, "#notice") == "Stopped. 12 photos waiting. Continue"
    stub.gate.set()
    browser.evaluate("document.querySelector('#again').click()")
    wait_for_answers(browser, 12)


@pytest.mark.long
def test_photos_are_sent_a_few_at_a_time_and_one_by_one_if_that_is_too_much(
    browser: Browser, stub: Stub, photos: dict[str, Path]
) -> None:
    browser.open(stub.url, *DESKTOP, dark=False)
    browser.drop([photos["topwear-0.jpg"]])
    wait_for_answers(browser, 1)
    browser.evaluate(
        "add(Array.from({length: 200}, (_, i) => ({file: new File([photos[0].file], `topwear-${i}.jpg`)})))"
    )
    wait_for_answers(browser, 201)
    assert max(map(len, stub.received)) == 8
    assert sorted(name for names in stub.received[1:] for name in names) == sorted(
        f"topwear-{i}.jpg" for i in range(200)
    )
    stub.received.clear()
    stub.too_many = 1
    browser.drop(photos.values())
    wait_for_answers(browser, 213)
    assert [*map(len, stub.received)] == [1] * 12


@pytest.mark.long
def test_a_token_is_asked_for_and_kept_and_leaves_the_address(
    browser: Browser, stub: Stub, photos: dict[str, Path]
) -> None:
    stub.token = "s3cret"
    browser.open(stub.url, *DESKTOP, dark=False)
    browser.drop([photos["topwear-0.jpg"]])
    for typed in "wrong", stub.token:
        browser.wait_for(
            "!document.querySelector('#token').hidden && document.activeElement.id === 'secret'"
        )
        browser.call("Input.insertText", text=typed)
        browser.press("Enter")
        browser.wait_for(
            "document.querySelector('#token').hidden || document.querySelector('#token').innerText.includes('not the right one')"
        )
    wait_for_answers(browser, 1)
    browser.open(stub.url, *DESKTOP, dark=False)
    browser.wait_for("document.querySelector('#model').innerText.includes('topwear')")
    browser.evaluate("askForToken('an earlier one, whose answer is late')")
    assert browser.evaluate("document.querySelector('#token').hidden")
    browser.evaluate("sessionStorage.clear()")
    browser.open("about:blank", *DESKTOP, dark=False)
    browser.open(f"{stub.url}#token={stub.token}", *DESKTOP, dark=False)
    browser.wait_for("document.querySelector('#model').innerText.includes('topwear')")
    assert browser.evaluate("location.href") == stub.url


@pytest.mark.long
def test_a_folder_is_read_through_without_hidden_files_and_what_is_no_photo_stays_here(
    browser: Browser, stub: Stub, photos: dict[str, Path], tmp_path: Path
) -> None:
    (inner := tmp_path / "shop" / "shoes").mkdir(parents=True)
    shutil.copyfile(photos["footwear-0.jpg"], inner / "footwear.jpg")
    shutil.copyfile(photos["footwear-0.jpg"], inner / ".hidden.jpg")
    (inner / "film.mp4").write_bytes(b"a film")
    browser.open(stub.url, *DESKTOP, dark=False)
    browser.drop([tmp_path / "shop"])
    wait_for_answers(browser, 2)
    assert browser.evaluate("photos.map((photo) => photo.name)") == [
        "shop/shoes/film.mp4",
        "shop/shoes/footwear.jpg",
    ]
    assert browser.evaluate("photos[0].answer.error") == "not a photo (video/mp4)"
    assert stub.received == [["footwear.jpg"]]


@pytest.mark.long
def test_the_class_activation_map_comes_and_goes_on_demand(
    browser: Browser, stub: Stub, photos: dict[str, Path]
) -> None:
    browser.open(stub.url, *DESKTOP, dark=False)
    browser.drop([photos["topwear-0.jpg"]])
    wait_for_answers(browser, 1)
    browser.evaluate("document.querySelector('.card button').focus()")
    browser.press("Enter")
    browser.wait_for("document.querySelector('.card img').naturalWidth === 160")
    assert text_of(browser, ".legend") == "Orange regions are evidence for topwear."
    browser.press("Enter")
    browser.wait_for("document.querySelector('.card img').src === photos[0].url")
    assert not problems(browser)


@pytest.mark.long
def test_photos_can_be_filtered_ordered_and_removed(
    browser: Browser, stub: Stub, photos: dict[str, Path]
) -> None:
    browser.open(stub.url, *DESKTOP, dark=False)
    browser.drop(photos.values())
    wait_for_answers(browser, 12)
    counts = browser.evaluate(
        "[...document.querySelectorAll('#filters button')].map((b) => b.innerText.replace('✓ ', ''))"
    )
    assert counts == [
        "all 12", "bottomwear 3", "footwear 2", "handbag 2", "topwear 2", "eyewear 1", "unsure 1", "unknown 1", "not readable 1",
    ]  # fmt: skip
    browser.evaluate("[...document.querySelectorAll('#filters button')][6].click()")
    browser.wait_for("document.querySelectorAll('.card:not([hidden])').length === 1")
    assert "handbag" in text_of(browser, ".card:not([hidden])")
    browser.evaluate(
        "document.querySelector('#order').value = 'doubt'; document.querySelector('#order').dispatchEvent(new Event('change'))"
    )
    names = browser.evaluate(
        "[...document.querySelectorAll('.card .name')].map((name) => name.innerText || name.textContent)"
    )
    assert names[:2] == ["eyewear-unknown.jpg", "handbag-unsure.jpg"] and names[-1] == "broken.heic"
    browser.evaluate("document.querySelector('#clear').click()")
    browser.wait_for("document.querySelector('#results').hidden")
    assert browser.evaluate("document.activeElement.id") == "choose"


@pytest.mark.long
def test_the_keyboard_reaches_everything_in_order_with_a_visible_focus(
    browser: Browser, stub: Stub, photos: dict[str, Path]
) -> None:
    browser.open(stub.url, *DESKTOP, dark=False)
    browser.drop([photos["topwear-0.jpg"]])
    wait_for_answers(browser, 1)
    reached = []
    for _ in range(9):
        browser.press("Tab")
        assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        reached.append(
            browser.evaluate("document.activeElement.innerText.split('\\n')[0].replace('✓ ', '')")
        )
    assert reached == [
        "Choose photos", "Choose a folder", "all 1", "topwear 1", "as added", "Download CSV", "Remove all", "Other classes", "Class activation map",
    ]  # fmt: skip
    browser.evaluate("document.querySelector('summary').focus()")
    browser.press("Enter")
    browser.wait_for("document.querySelectorAll('.card details li').length === 4")
