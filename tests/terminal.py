"""Run the three commands in an empty folder and draw the terminal.

python tests/terminal.py FOLDER terminal.svg
"""

import os
import pty
import subprocess
import sys
import termios
from contextlib import suppress
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMANDS = ("train --image-size 32 --epochs 0", "eval", "infer")
COLUMNS = 100

SVG = "http://www.w3.org/2000/svg"
CELL, LINE, MARGIN, TITLE_BAR = 8.4, 20, 20, 40  # pixels
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
BUTTONS = (6, "#ff5f57"), (26, "#febc2e"), (46, "#28c840")
WINDOW, BRIGHT = 'fill="#161b22" stroke="#444c56"', 'fill="#fff" font-weight="bold"'


def output(command: list[str], folder: Path) -> str:
    """Run a command in a folder: what it writes to a terminal. CalledProcessError if it fails."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, COLUMNS))
    with subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        written = b""
        with suppress(OSError):  # EIO: the process has closed the other end
            while part := os.read(ours, 1 << 16):
                written += part
    os.close(ours)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, written)
    return written.decode()


def screen(written: str) -> list[str]:
    """The lines left on the screen: progress bars overwrite themselves, and long lines are wrapped."""
    lines = []
    for line in written.removesuffix("\n").split("\n"):
        cells = ""
        for part in line.split("\r"):  # each part overwrites the line from the left
            cells = part + cells[len(part) :]
        cells = cells.rstrip()
        lines += [cells[i : i + COLUMNS] for i in range(0, len(cells) or 1, COLUMNS)]
    return lines


def draw(lines: list[str]) -> str:
    """An SVG picture of a terminal. Lines that start with "$ " are commands."""
    width, height = round(COLUMNS * CELL) + 2 * MARGIN, TITLE_BAR + len(lines) * LINE + MARGIN
    elements = [
        f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="10" {WINDOW}/>',
        *(f'<circle cx="{MARGIN + x}" cy="20" r="6" fill="{colour}"/>' for x, colour in BUTTONS),
        f'<g font-family="{FONT}" font-size="14" fill="#d0d7de">',
    ]
    for y, line in enumerate(lines):
        text = escape(line).replace(" ", "\xa0")  # SVG collapses plain spaces
        if line.startswith("$ "):
            text = f'<tspan fill="#7ee787">$</tspan><tspan {BRIGHT}>{text[1:]}</tspan>'
        where = f'x="{MARGIN}" y="{TITLE_BAR + 15 + y * LINE}"'
        exact = f'textLength="{len(line) * CELL:.1f}"'  # the same width in any font
        elements += [f"<text {where} {exact}>{text}</text>"] if line else []
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return "\n".join([f'<svg xmlns="{SVG}" {size}>', *elements, "</g>", "</svg>\n"])


if __name__ == "__main__":
    shown: list[str] = []
    for command in COMMANDS:
        name, *flags = command.split()
        written = output([sys.executable, str(ROOT / f"{name}.py"), *flags], Path(sys.argv[1]))
        shown += [f"$ docker compose run --rm {command}", *screen(written), ""]
    Path(sys.argv[2]).write_text(draw(shown[:-1]))
