"""A headless Chromium with one page, controlled through its DevTools pipe: no package, no port."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


class Browser:
    """`with Browser(profile_folder) as browser:`; `events` collects what happens on the page."""

    def __init__(self, folder: Path) -> None:
        to_browser, from_browser = os.pipe(), os.pipe()
        self.write = os.fdopen(to_browser[1], "wb", buffering=0)
        self.read = os.fdopen(from_browser[0], "rb", buffering=0)
        self.numbers = itertools.count(1)  # of calls
        self.rest = b""  # what was read beyond the last message
        self.events: list[dict[str, Any]] = []
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--remote-debugging-pipe",
        ]

        def connect() -> None:  # in the child: Chromium reads file descriptor 3 and writes 4
            for descriptor, free in (to_browser[0], 100), (from_browser[1], 101):
                os.dup2(descriptor, free)
            for free, expected in (100, 3), (101, 4):
                os.dup2(free, expected)

        self.process = subprocess.Popen(
            [str(CHROMIUM), *flags, f"--user-data-dir={folder}", "about:blank"],
            preexec_fn=connect,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        self.session = None
        targets = self.call("Target.getTargets")["targetInfos"]
        [page] = [target for target in targets if target["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the DevTools protocol: its result."""
        number = next(self.numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.write.write(json.dumps(message).encode() + b"\0")
        while (response := self.next()).get("id") != number:
            self.events.append(response)
        assert "error" not in response, response
        return response["result"]

    def next(self) -> Any:
        """Wait for the next message."""
        while b"\0" not in self.rest:
            part = self.read.read(1 << 20)
            assert part, "the browser has ended"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path | str, width: int, height: int, dark: bool) -> None:
        """Open a file or URL on a screen of `width` x `height` pixels; wait until it is loaded."""
        self.events.clear()
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        url = page if isinstance(page, str) else page.absolute().as_uri()
        self.call("Page.navigate", url=url)
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self.next())

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return done["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + 60
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, f"not within 60 s: {expression}"
            time.sleep(0.02)

    def drop(self, files: Iterable[Path]) -> None:
        """Drop files from the desktop onto the middle of the page's top."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=100, y=100, data=data)

    def press(self, *keys: str) -> None:
        """Press keys, such as Tab and Enter."""
        codes = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " ")}
        for key in keys:
            code, text = codes[key]
            event = {"key": key, "windowsVirtualKeyCode": code, "text": text}
            self.call("Input.dispatchKeyEvent", type="keyDown", **event)
            self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def screenshot(self, file: Path, whole: bool) -> None:
        """Save a picture of the whole page, or of what the screen shows."""
        captured = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(captured["data"]))

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        self.write.close()
        self.read.close()


if __name__ == "__main__":  # browser.py page.html picture.png: the top of the page
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as opened:
        opened.open(Path(sys.argv[1]), 960, 1180, dark=False)
        opened.screenshot(Path(sys.argv[2]), whole=False)
