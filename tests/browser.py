"""A headless Chromium that opens one page, driven over its DevTools pipe: no package, no port."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


class Browser:
    """`with Browser(folder) as browser:` - what happens on its page is collected in `events`."""

    def __init__(self, folder: Path) -> None:
        there, ours = os.pipe(), os.pipe()  # to the browser, from it
        self.write, self.read = (
            os.fdopen(there[1], "wb", buffering=0),
            os.fdopen(ours[0], "rb", buffering=0),
        )
        self.numbers, self.rest = itertools.count(1), b""
        self.events: list[dict[str, Any]] = []
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--remote-debugging-pipe",
        ]

        def connect() -> None:  # in the child: the browser reads file descriptor 3 and writes 4
            os.dup2(there[0], 100), os.dup2(ours[1], 101)
            os.dup2(100, 3), os.dup2(101, 4)

        command = [str(CHROMIUM), *flags, f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(
            command,
            preexec_fn=connect,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there[0])
        os.close(ours[1])
        self.session = None
        [page] = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self.session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters} | (
            {"sessionId": self.session} if self.session else {}
        )
        self.write.write(json.dumps(message).encode() + b"\0")
        while (answer := self.next()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def next(self) -> Any:
        while b"\0" not in self.rest:
            part = self.read.read(1 << 20)
            assert part, "the browser has gone"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, file: Path, width: int, height: int, dark: bool) -> None:
        """Show a file on a screen of so many pixels, and wait until all of it is there."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self.call("Page.navigate", url=file.absolute().as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self.next())

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)[
            "result"
        ].get("value")

    def screenshot(self, file: Path, whole: bool) -> None:
        """The page, all of it or what the screen shows."""
        file.write_bytes(
            base64.b64decode(
                self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
            )
        )

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        self.write.close()
        self.read.close()


if __name__ == "__main__":  # browser.py page.html picture.png: what a desk shows of it first
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as opened:
        opened.open(Path(sys.argv[1]), 960, 1180, dark=False)
        opened.screenshot(Path(sys.argv[2]), whole=False)
