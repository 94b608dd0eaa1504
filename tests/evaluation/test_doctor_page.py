"""The doctor's page: what it shows, how large it gets, and corrections.csv made in a real browser."""

import csv
import html
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from helpers import Call, at
from PIL import Image

from hogwear.commands import doctor
from hogwear.data import dataset
from hogwear.data.checks import list_members
from hogwear.data.decoding import LIMITS
from hogwear.data.photos import Photos
from hogwear.evaluation import doctor_page
from hogwear.evaluation.doctor_sections import KINDS, MAX_PHOTOS

HOSTILE = "=\udcff<script>alert(1)<b>\"',\n\u202e.jpg"
BAD_EVENTS = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"}


@pytest.fixture
def examine(planted: Path, tmp_path: Path, call: Call) -> Callable[[], Path]:
    """examine() runs the doctor on the photos: the page."""

    def examine() -> Path:
        done = call(doctor, *at(planted, tmp_path / "model", tmp_path / "cache"))
        assert done.code == 0 and done.stderr == ""
        page = tmp_path / "model" / "doctor.html"
        end = (
            f"Report: {page}, to open in a browser; {tmp_path}/model/doctor.json has everything.\n"
        )
        assert done.stdout.endswith(end)
        return page

    return examine


def nth(folder: Path, n: int) -> Path:
    return sorted(folder.iterdir())[n]


def text_of(page: str) -> str:
    return " ".join(
        html.unescape(re.sub(r"<(style|script).*?</\1>|<[^>]+>", " ", page, flags=re.S)).split()
    )


def write(report: dict[str, Any], photos: Photos, folder: Path) -> str:
    """The page of a report with these keys, about these photos."""
    empty: dict[str, Any] = {kind.key: [] for kind in KINDS}
    counts = {split.name: split.count_per_class(photos.class_names) for split in photos.splits}
    report = empty | {
        "folder": str(photos.folder), "corrections": None, "counts": counts, "unreadable": [],
        "under_represented": [], "missing_classes": {},
    } | report  # fmt: skip
    return doctor_page.write_page(folder, report, photos, LIMITS).read_text()


@pytest.fixture
def photos(clean: Path, tmp_path: Path) -> Photos:
    return dataset.find_photos(clean, tmp_path / "cache")


@pytest.mark.usefixtures("trusting")
def test_of_clean_photos_the_page_says_so_and_counts_them(examine: Callable[[], Path]) -> None:
    page = examine().read_text()
    assert "No problems found in 72 photos" in text_of(page)
    assert "topwear 8 8 8" in text_of(page)
    assert "<img" not in page and "<button" not in page and "<script" not in page


@pytest.mark.usefixtures("trusting")
def test_photos_are_shown_by_kind_of_problem(planted: Path, examine: Callable[[], Path]) -> None:
    shutil.copy(nth(planted / "train/topwear", 0), planted / "test/topwear/same.jpg")
    shutil.copy(nth(planted / "val/handbag", 2), planted / "val/bottomwear/flipped.jpg")
    (planted / "train/topwear/broken.jpg").write_bytes(b"GIF89a")
    for name in ("one", "two"):
        Image.new("RGB", (200, 150), "white").save(planted / f"train/topwear/{name}.png")
    page = examine().read_text()
    titles = re.findall(r'<h2 id="\w+">(.*?) <span class="soft">(\d+)', page)
    assert titles == [
        ("Held-out photos that are also in train", "1"),
        ("One photo, two classes", "1"),
        ("Duplicates", "3"),
        ("Nearly empty", "2"),
        ("Unreadable", "1"),
    ]
    assert page.count('src="data:image/jpeg;base64,') == 2 + 2 + 2 + 2
    text = text_of(page)
    assert "identical to the photo in train" in text and "Shown further up: 2." in text
    assert "broken.jpg" in text


def test_contradicted_labels_are_shown_with_both_classes_and_what_to_expect(
    photos: Photos, tmp_path: Path
) -> None:
    entry = list_members(photos)[0].to_entry(predicted="<b>bags", probability=0.987)
    expected = {"accuracy": 0.9, "photos": 72, "chance": 0.333}
    confusions = [{"class": "handbag", "predicted": "topwear", "photos": 3}] * 11
    found = {"contradicted": [entry], "expected": expected, "confusions": confusions}
    page = write(found, photos, tmp_path)
    text = text_of(page)
    assert "bottomwear in train looks like <b>bags , 98.7 %" in text
    assert 'data-suggestion="&lt;b&gt;bags"' in page
    assert "90.0 % , by cross-validation on 72 photos." in text and "accuracy of 33.3 %" in text
    assert text.count("handbag topwear 3") == 10 and "1 more are in doctor.json" in text


def test_the_page_of_very_many_photos_stays_small(photos: Photos, tmp_path: Path) -> None:
    """Noise does not compress, and names may be long; 12 photos stand for 400."""
    folder = tmp_path / "data" / ("x" * 250)
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for n in range(12):
        noise = random.integers(0, 256, (160, 160, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{n}.png", compress_level=1)
    entries = [
        {"file": f"{folder}/{n % 12}.png", "split": "train", "class": "handbag"} for n in range(400)
    ]
    found = {"blurred": entries, "unreadable": [{**entries[0], "reason": "x" * 200}] * 400}
    train = replace(photos.train, root=tmp_path / "data")
    page = write(found, replace(photos, train=train), tmp_path)
    assert page.count("<img") == MAX_PHOTOS and "100 more are in doctor.json" in page
    largest = max(map(len, re.findall(r'src="(.*?)"', page)))
    assert 10_000 < largest < 1.4 * doctor_page.MAX_THUMBNAIL
    assert len(page.encode()) < 10_000_000


def test_of_very_many_classes_the_largest_and_the_smallest_are_shown() -> None:
    counts = {"train": {f"class {n}": n for n in range(1000)}}
    shown = doctor_page.choose_classes(counts)
    assert len(shown) == 100
    assert shown[0] == ("class 999", [999]) and shown[-1] == ("class 0", [0])


# --- in a real browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def require_clean(browser: Browser) -> None:
    """No message in the console, and no request to anything but the page itself."""
    assert not [event for event in browser.events if event["method"] in BAD_EVENTS]
    urls = [
        event["params"]["request"]["url"].partition(":")[0]
        for event in browser.events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert set(urls) <= {"file", "data", "blob"} and urls.count("file") == 1


def click(browser: Browser, name: str, button: str) -> None:
    """Click a button of the photo whose name, as shown, starts so."""
    found = browser.evaluate(
        f"""(() => {{
            const start = {json.dumps(name)};
            const photo = [...document.querySelectorAll(".photo")]
                .find((each) => each.querySelector("[title]").textContent.startsWith(start));
            photo.querySelector("button[value={button}]").click();
            return true;
        }})()"""
    )
    assert found


def download(browser: Browser, folder: Path) -> Path:
    folder.mkdir()
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    browser.evaluate("document.querySelector('button[value=download]').click()")
    file, end = folder / "corrections.csv", time.monotonic() + 20
    while not file.exists() and time.monotonic() < end:
        browser.evaluate("1")  # lets the browser go on
        time.sleep(0.02)
    return file


def test_photos_are_marked_in_a_browser_and_the_file_corrects_them(
    planted: Path, examine: Callable[[], Path], tmp_path: Path, browser: Browser
) -> None:
    shutil.copy(nth(planted / "train/topwear", 0), planted / "train/topwear" / HOSTILE)
    flipped = planted / "train/handbag/=flipped.jpg"
    shutil.copy(nth(planted / "train/bottomwear", 1), flipped)
    kept, changed = (nth(planted / "val/topwear", n) for n in (0, 1))
    shutil.copy(changed, planted / "test/topwear/same.jpg")
    (planted / "corrections.csv").write_text(
        f'why,file,class\n"a, ""b""",val/topwear/{kept.name},handbag\n'
        f",val/topwear/{changed.name},handbag\n"
    )
    page = examine()
    browser.open(page, 1280, 800, dark=False)
    require_clean(browser)
    state = "document.querySelector('[role=status]').textContent"
    assert browser.evaluate(state) == "No photo is marked."
    click(browser, "=\\udcff<script>", "out")
    click(browser, "=flipped", "other")
    click(browser, changed.name, "out")
    browser.open(page, 1280, 800, dark=False)
    assert browser.evaluate(state) == "Marked: 1 with another class, 2 to leave out.", "remembered"

    file = download(browser, tmp_path / "downloads")
    require_clean(browser)
    assert list(csv.reader(file.open(newline="", errors="surrogateescape")))[:2] == [
        ["why", "file", "class"],
        ['a, "b"', f"val/topwear/{kept.name}", "handbag"],
    ], "the old rows stay, except of the photo that has another mark now"
    shutil.copy(file, planted / "corrections.csv")
    photos = dataset.find_photos(planted, tmp_path / "cache")
    assert photos.corrections and photos.corrections.to_json() == {
        "relabelled": 2, "left_out": 2, "unchanged": 0, "unmatched": 0,
    }  # fmt: skip
    found = {str(m.file.relative_to(planted)): m.class_name for m in list_members(photos)}
    assert found["train/handbag/=flipped.jpg"] == "bottomwear"
    assert found[f"val/topwear/{kept.name}"] == "handbag"
    assert not {f"train/topwear/{HOSTILE}", f"val/topwear/{changed.name}"} & set(found)


@pytest.mark.long
def test_every_control_is_reached_with_the_keyboard_and_works(
    planted: Path, examine: Callable[[], Path], browser: Browser
) -> None:
    shutil.copy(nth(planted / "train/topwear", 0), planted / "test/topwear/same.jpg")
    browser.open(examine(), 1280, 800, dark=False)
    browser.evaluate("localStorage.clear()")

    def press(key: str, code: int) -> None:
        text = {"Enter": "\r", "Tab": ""}.get(key, key)
        for kind in ("keyDown", "keyUp"):
            pressed = {"key": key, "code": key, "windowsVirtualKeyCode": code}
            browser.call("Input.dispatchKeyEvent", type=kind, **pressed, text=text)

    def press_tab() -> str:
        press("Tab", 9)
        name: str = browser.evaluate(
            "(e => e.matches('a, button, select') ? e.ariaLabel || e.textContent : '')"
            "(document.activeElement)"
        )
        return name

    reached: list[str] = []
    while (name := press_tab()) and name not in reached:
        outline = browser.evaluate("getComputedStyle(document.activeElement).outlineWidth")
        assert outline == "3px", name
        reached.append(name)
    controls = "document.querySelectorAll('a, button:enabled').length"
    assert len(reached) == browser.evaluate(controls) == 6
    while press_tab() != "Other class: test/topwear/same.jpg":
        pass
    press("Enter", 13)
    assert browser.evaluate("document.activeElement.ariaLabel") == "Class of test/topwear/same.jpg"
    press("h", 72)  # the first class that begins so
    marked = browser.evaluate("document.querySelector('[role=status]').textContent")
    assert marked == "Marked: 1 with another class, 0 to leave out."
    while press_tab() != "Download corrections.csv":
        pass


@pytest.mark.long
@pytest.mark.parametrize(
    ("size", "dark"),
    [((360, 740), True), ((1280, 800), False)],
    ids=["phone, dark", "desktop, light"],
)
def test_the_page_fits_the_screen_and_its_texts_have_contrast(
    size: tuple[int, int], dark: bool, photos: Photos, tmp_path: Path, browser: Browser
) -> None:
    members = list_members(photos)
    long = "class with a long name " * 8
    contradicted = [m.to_entry(predicted=long, probability=0.99) for m in members[:20]]
    groups = [[m.to_entry() for m in members[n : n + 9]] for n in (0, 10)]
    unreadable = [{**members[0].to_entry(), "file": "x" * 300, "reason": "no " * 90}]
    found = {"contradicted": contradicted, "duplicates": groups, "unreadable": unreadable}
    write({**found, "under_represented": ["handbag"]}, photos, tmp_path)
    browser.open(tmp_path / "doctor.html", *size, dark)
    require_clean(browser)
    click(browser, members[0].file.name, "out")
    assert browser.evaluate("document.documentElement.scrollWidth") <= size[0]
    wider = (
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.wide')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert browser.evaluate(wider) == []
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)))
    assert brightness < 150 if dark else brightness == 3 * 255
    assert lowest_contrast(browser) >= 4.5


def lowest_contrast(browser: Browser) -> float:
    """The lowest contrast of a text with what is behind it, as WCAG defines it."""
    pairs = browser.evaluate(
        """[...document.querySelectorAll('body *')]
            .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
            .filter((e) => e.offsetParent && !e.disabled && !e.matches('script, option'))
            .map((e) => {
                let behind = e;
                const color = (x) => getComputedStyle(x).backgroundColor;
                while (color(behind) === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
                return [getComputedStyle(e).color, color(behind)];
            })"""
    )

    def luminance(colour: str) -> float:
        rgb = np.array(re.findall(r"[\d.]+", colour)[:3], float) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    contrasts = [sorted(map(luminance, pair)) for pair in pairs]
    assert len(contrasts) > 50
    return min((light + 0.05) / (dark + 0.05) for dark, light in contrasts)


def test_names_of_bytes_survive_base64() -> None:
    assert os.fsencode(HOSTILE).startswith(b"=\xff")
    assert doctor_page.encode("a\udcff") == "Yf8="
    assert doctor_page.encode_path("=a") == doctor_page.encode("./=a")
