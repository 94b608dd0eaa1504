"""The picture of the terminal in the README."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers import ROOT
from terminal import COLUMNS, SVG, draw, output, screen

PICTURE = ROOT / "docs" / "images" / "terminal.svg"
PROGRESS = """
import sys
from tqdm import tqdm
for _ in tqdm(range(3), desc="decoding", leave=False):
    pass
with tqdm(total=3, desc="training") as bar:
    for n in range(3):
        bar.update()
        bar.refresh()
        bar.write(f"epoch {n}", file=sys.stdout)
print("Done.")
"""


def lines(picture: str) -> list[str]:
    """The lines of text in a picture. Raises ParseError if it is not XML."""
    texts = ElementTree.fromstring(picture).iter(f"{{{SVG}}}text")
    return ["".join(text.itertext()).replace("\xa0", " ") for text in texts]


def test_only_the_last_state_of_a_progress_bar_remains(tmp_path: Path) -> None:
    *epochs, bar, done = screen(output([sys.executable, "-c", PROGRESS], tmp_path))
    assert epochs == ["epoch 0", "epoch 1", "epoch 2"] and done == "Done."
    assert re.fullmatch(r"training: 100%\|█+\| 3/3 \[.*\]", bar) and len(bar) <= COLUMNS


def test_long_lines_are_wrapped_and_empty_lines_remain() -> None:
    assert screen("a" * (COLUMNS + 1) + "\r\n\r\nb\r\n") == ["a" * COLUMNS, "a", "", "b"]


def test_a_command_that_fails_is_not_drawn(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="exit status 3"):
        output([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


def test_special_characters_and_spaces_are_drawn() -> None:
    shown = ["$ run 'x' && y", '<b> & "two  spaces"', "", "  after an empty line"]
    picture = draw(shown)
    assert lines(picture) == [line for line in shown if line]
    assert "two\xa0\xa0spaces" in picture, "plain spaces would be drawn as one"


def test_the_readme_shows_the_three_commands_in_a_self_contained_picture() -> None:
    picture = PICTURE.read_text()
    text = lines(picture)
    commands = [line.split()[:6] for line in text if line.startswith("$ ")]
    assert commands == [
        f"$ docker compose run --rm {name}".split() for name in ("train", "eval", "infer")
    ]
    assert "](docs/images/terminal.svg)" in (ROOT / "README.md").read_text()
    assert any(line.startswith("test accuracy ") for line in text), "the output of eval"
    assert not re.search(r"https?:|url\(|@import|<script|<image", picture.replace(SVG, ""))
    assert not [line for line in text if re.search(r"(?<![\w.)])/\w", line)], "paths of a machine"
    assert len(picture) < 20_000
