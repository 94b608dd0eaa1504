"""The report: complete, self-contained, and opened in a real browser, on phone and desktop, light and dark."""

import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from helpers import CLASSES, Script, Trained, at
from PIL import Image

from hogwear.evaluation.evaluation import Evaluation
from hogwear.evaluation.mistakes import Mistake
from hogwear.evaluation.pictures import overlay
from hogwear.evaluation.report import write_report

CHARTS = ("confusion", "coverage", "learning_curves", "reliability")
HOSTILE = "<script>alert(1)</script>&$x_1$\x1b[31m"


@pytest.fixture(scope="module")
def results(data: Path, trained: Trained, start: Callable[..., Script]) -> dict[str, Any]:
    start("eval.py", *at(data, trained.model, trained.cache)).ok()
    found: dict[str, Any] = json.loads((trained.model / "eval_results.json").read_text())
    return found


@pytest.fixture(scope="module")
def page(results: dict[str, Any], trained: Trained) -> str:
    return (trained.model / "report.html").read_text()


def text_of(page: str) -> str:
    return " ".join(
        html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S)).split()
    )


def test_the_report_has_the_accuracy_with_its_interval_and_baseline(
    page: str, results: dict[str, Any]
) -> None:
    text, (low, high) = text_of(page), results["test_acc_interval"]
    accuracy = 100 * results["test_acc"]
    assert f"Test accuracy {accuracy:.1f} % ({results['num_right']} of 40 photos)" in text
    assert low < results["test_acc"] < high
    assert f"95 % confidence interval: {100 * low:.1f} % to {100 * high:.1f} %" in text
    baseline = f"the most frequent class, {results['majority_class']} , has an accuracy of 27.5 %"
    assert baseline in text
    assert "40 photos give a wide confidence interval" in text
    assert (
        results["checkpoint"]["sha256"] in text
        and results["data"]["fingerprint"] in text
        and "torch 2." in text
    )


def test_the_worst_mistakes_are_shown_with_photos_and_class_activation_maps(
    page: str, results: dict[str, Any]
) -> None:
    assert len(results["mistakes"]) == min(12, 40 - results["num_right"]) > 0
    assert page.count("data:image/jpeg") == 2 * len(results["mistakes"])
    for mistake in results["mistakes"]:
        assert (
            Path(mistake["file"]).name in page
            and Path(mistake["file"]).parent.name == mistake["true_class"] != mistake["predicted"]
        )
        assert mistake["maybe_mislabelled"] == (mistake["probability"] >= 0.9)


def test_charts_are_on_the_page_and_beside_it(
    page: str, trained: Trained, results: dict[str, Any]
) -> None:
    assert page.count("<svg") == len(CHARTS)
    for name in CHARTS:
        with Image.open(trained.model / f"{name}.png") as picture:
            assert min(picture.size) > 400
            grey = np.asarray(picture.convert("L"))
            assert grey[0, 0] == 255 and (grey < 200).mean() > 0.005, "on white, and not empty"


def made(
    folder: Path, names: tuple[str, ...], count: int, wrong: int, threshold: float = 0.7
) -> str:
    """A page of `count` photos, the first `wrong` predicted incorrectly; without eval and a checkpoint."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    labels = np.arange(count) % len(names)
    predicted = (labels + (np.arange(count) < wrong)) % len(names)
    logits = random.normal(size=(count, len(names))) + 12 * np.eye(len(names))[predicted]
    image = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mistakes = [
        Mistake(
            file=Path(f"{i}-{'x' * 90}-{HOSTILE}.jpg"),
            true_class=names[labels[i]],
            predicted=names[predicted[i]],
            probability=0.95 if i % 2 else 0.5,
            image=image,
            activation_map=random.normal(size=(4, 4)),
        )
        for i in range(min(wrong, 12))
    ]
    metrics = "train_loss", "train_acc", "val_loss", "val_acc"
    row = {"epoch": 1.0, "stage": "hogwild", **dict.fromkeys(metrics, 0.5)}
    evaluation = Evaluation(names, logits, labels, 1.2, threshold, (row,))
    results = {
        **evaluation.measure_accuracy(),
        **evaluation.measure_calibration(),
        "unknown": {"rate": 0.05, "share": 0.07, "auroc": 0.97, "off": None},
        "split": "test",
        "skipped": 3,
        "images_per_second": 10.0,
        "run": {"epochs": 1},
        "packages": {"torch": "0"},
        "made": "now",
        "checkpoint": {"sha256": "0" * 64, "epoch": 1, "arch": "tinyvgg", "image_size": 64},
        "data": {"folder": "/photos/" + "long/" * 30, "fingerprint": "0" * 16},
        "machine": {"cpu": "A CPU", "cpus": 2, "dtype": "float32"},
    }
    return write_report(folder, results, evaluation, mistakes).read_text()


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    page = made(tmp_path, (HOSTILE, "b"), 20, 5)
    assert "<script" not in page and "\x1b" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_confident_mistake_may_be_mislabelled(tmp_path: Path) -> None:
    assert made(tmp_path, CLASSES, 20, 5).count("Possibly mislabelled") == 2


def test_one_photo_is_not_called_photos(tmp_path: Path) -> None:
    assert "(1 of 1 photo)" in text_of(made(tmp_path, CLASSES, 1, 0))


def test_without_a_mistake_there_is_no_gallery(tmp_path: Path) -> None:
    assert "No mistakes" in made(tmp_path, CLASSES, 2000, 0)


@pytest.mark.long
def test_all_confusions_are_in_a_table_the_most_frequent_first(tmp_path: Path) -> None:
    page = made(tmp_path, CLASSES, 40, 12)
    [table] = re.findall(r"<details>.*?</details>", page, re.S)
    rows = [
        re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)[1:]
    ]
    assert rows == [
        [CLASSES[i], CLASSES[(i + 1) % 5], str(n), f"{100 * n / 8:.1f}\N{NO-BREAK SPACE}%"]
        for i, n in enumerate((3, 3, 2, 2, 2))
    ]
    assert "The chart shows" not in page and "<details>" not in made(tmp_path, CLASSES, 40, 0)


@pytest.mark.parametrize(("threshold", "said"), {
    0.7: "predictions with a confidence of 0.70 or more have an accuracy of at least 99 %; infer marks the others as unsure. On test, 100.0 % of the photos reach it, with an accuracy of 97.5 %.",
    0.999999: "predictions with a confidence of 1.00 or more have an accuracy of at least 99 %; infer marks the others as unsure. On test, no photo reaches it.",
    1.01: "On the validation photos, no threshold gives an accuracy of 99 %, so infer marks every prediction as unsure.",
}.items())  # fmt: skip
def test_what_the_report_says_about_val_is_true_of_val_whatever_test_is_like(
    threshold: float, said: str, tmp_path: Path
) -> None:
    text = text_of(made(tmp_path, CLASSES, 40, 1, threshold))
    assert said in text


def test_of_many_classes_the_report_draws_the_most_confused_and_lists_all_confusions(
    tmp_path: Path,
) -> None:
    page = made(tmp_path, tuple(f"class {n:03d}" for n in range(200)), 2000, 300)
    shown = "The chart shows 25 of 200 classes, the ones confused most often; the table lists all confusions."
    assert text_of(page).count(shown) == 1
    assert page.count("<tr>") == 1 + 200 + 1 + 1 + 200, "by class, and one for each confusion"
    with Image.open(tmp_path / "confusion.png") as picture:
        assert max(picture.size) < 2500


def test_the_overlay_is_orange_where_the_activation_is_highest_and_grey_where_it_is_low() -> None:
    image = np.full((64, 64, 3), 100, np.uint8)
    activation = np.array([[0.0, 0.0], [0.0, 1.0]])
    blended = overlay(image, activation).astype(int)
    assert np.abs(blended[5, 5] - 100).max() <= 1 and np.ptp(blended[60, 60]) > 100


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(page: str, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    many = tuple(f"class number {n} with a long name{HOSTILE}" for n in range(40))
    made(long := tmp_path_factory.mktemp("long"), many, 400, 30)
    made(
        wide := tmp_path_factory.mktemp("wide"), tuple(f"class {n}" for n in range(200)), 1000, 300
    )
    made(one := tmp_path_factory.mktemp("one"), CLASSES, 1, 1)
    return {
        "of eval": trained.model / "report.html",
        "of 40 classes with long names": long / "report.html",
        "of 200 classes": wide / "report.html",
        "of one photo": one / "report.html",
    }


@pytest.mark.parametrize(
    ("size", "dark"),
    [((360, 740), True), ((1280, 800), False)],
    ids=["phone, dark", "desktop, light"],
)
@pytest.mark.parametrize(
    "which", ["of eval", "of 40 classes with long names", "of 200 classes", "of one photo"]
)
def test_the_page_opens_without_an_error_a_request_or_an_overflow(
    which: str, size: tuple[int, int], dark: bool, browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages[which], *size, dark)
    methods = [event["method"] for event in browser.events]
    requests = {
        event["params"]["request"]["url"].partition(":")[0]
        for event in browser.events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert requests <= {"file", "data"} and "file" in requests
    assert not {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"} & set(
        methods
    )
    assert browser.evaluate("document.documentElement.scrollWidth") <= size[0]
    wider = "[...document.querySelectorAll('body *')].filter(e => !e.closest('.wide') && !e.closest('svg') && e.getBoundingClientRect().right > innerWidth + 1).length"
    assert browser.evaluate(wider) == 0
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (
        sum(map(int, re.findall(r"\d+", background))) < 150
        if dark
        else background == "rgb(255, 255, 255)"
    )
