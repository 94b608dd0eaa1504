"""eval's page: complete, self-contained, and opened in a real browser on a phone and a desk, by day and by night."""

import html
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from helpers import CLASSES, FAST, SIZE, Script, Trained, at
from PIL import Image

import eval
import model
from hogwear.data.decoding import decode
from hogwear.evaluation import charts, report
from hogwear.evaluation.report import Mistake

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


def test_the_page_says_how_good_it_is_and_how_sure_that_is(
    page: str, results: dict[str, Any]
) -> None:
    text, (low, high) = text_of(page), results["test_acc_interval"]
    assert f"Right on {results['num_right']} of 40 photos" in text
    assert (
        low < results["test_acc"] < high
        and f"between {100 * low:.1f} % and {100 * high:.1f} %" in text
    )
    assert (
        f"Always answering {results['majority_class']} , the most frequent class, would be right on 27.5 %"
        in text
    )
    assert "40 photos are too few" in text
    assert (
        results["checkpoint"]["sha256"] in text
        and results["data"]["fingerprint"] in text
        and "torch 2." in text
    )


def test_the_worst_mistakes_are_shown_with_their_photos_and_where_the_network_looked(
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


def test_the_surest_mistake_comes_first(trained: Trained, results: dict[str, Any]) -> None:
    loaded = model.load(trained.model, FAST)
    photos = np.stack([decode(Path(mistake["file"]), SIZE) for mistake in results["mistakes"]])
    with torch.inference_mode():
        probabilities = (
            (loaded.net(torch.from_numpy(photos)).float() / loaded.temperature)
            .softmax(dim=1)
            .numpy()
        )
    of_truth = [
        row[CLASSES.index(mistake["true_class"])]
        for row, mistake in zip(probabilities, results["mistakes"], strict=True)
    ]
    assert len(of_truth) > 1 and np.all(np.diff(of_truth) > -0.01), (
        "by what the true class was given"
    )


def test_charts_are_on_the_page_and_beside_it(
    page: str, trained: Trained, results: dict[str, Any]
) -> None:
    assert page.count("<svg") == len(CHARTS)
    for name in CHARTS:
        with Image.open(trained.model / f"{name}.png") as picture:
            assert min(picture.size) > 400
            grey = np.asarray(picture.convert("L"))
            assert grey[0, 0] == 255 and (grey < 200).mean() > 0.005, "on white, and not empty"


def test_the_figures_of_probabilities_agree_with_each_other(results: dict[str, Any]) -> None:
    calibration, sure = results["calibration"], results["sure"]
    bins = calibration["bins"]
    assert sum(b["count"] for b in bins) == 40
    assert sum(b["count"] * b["accuracy"] for b in bins) == pytest.approx(results["num_right"])
    gap = sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / 40
    assert gap == pytest.approx(calibration["ece_after"]) and 0 <= calibration["ece_before"] <= 1
    assert results["coverage"][-1] == {"share": 1.0, "accuracy": pytest.approx(results["test_acc"])}
    assert 0 <= sure["share"] <= 1 and 0.05 <= calibration["temperature"] <= 20


@pytest.mark.parametrize("arch", ["efficientnet_lite0", "tinyvgg"])
def test_evidence_adds_up_to_the_logit(arch: str, photo_files: list[Path]) -> None:
    torch.manual_seed(0)
    net = model.build(arch, 5, 64).requires_grad_(False)
    net.load_pretrained()
    torch.nn.init.normal_(net.head.weight)
    pixels, classes = (
        torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8),
        torch.tensor([0, 3, 4]),
    )
    with torch.inference_mode():
        logits, evidence = net(pixels), net.class_activation_map(pixels, classes)
    expected = logits[torch.arange(3), classes] - net.head.bias[classes]
    assert evidence.dim() == 3 and torch.allclose(evidence.sum((1, 2)), expected, atol=1e-3)


def made(
    folder: Path, names: tuple[str, ...], count: int, wrong: int, sure_from: float = 0.7
) -> str:
    """A page of `count` photos of classes with these names, `wrong` of them mistaken, without eval and a checkpoint."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    labels = np.arange(count) % len(names)
    logits = (
        random.normal(size=(count, len(names)))
        + 12 * np.eye(len(names))[(labels + (np.arange(count) < wrong)) % len(names)]
    )
    image = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mistakes = [
        Mistake(
            Path(f"{i}-{'x' * 90}-{HOSTILE}.jpg"),
            names[labels[i]],
            names[labels[i] - 1],
            0.95,
            True,
            image,
            random.normal(size=(4, 4)),
        )
        for i in range(min(wrong, 12))
    ]
    results = eval.measure(logits, labels, names) | eval.probabilities(logits, labels, 1.2, sure_from) | {
        "split": "test", "skipped": 3, "images_per_second": 10.0, "run": {"epochs": 1}, "packages": {"torch": "0"}, "made": "now",
        "checkpoint": {"sha256": "0" * 64, "epoch": 1, "arch": "tinyvgg", "image_size": 64},
        "data": {"folder": "/photos/" + "long/" * 30, "fingerprint": "0" * 16}, "machine": {"cpu": "A CPU", "cpus": 2, "dtype": "float32"},
    }  # fmt: skip
    row = {
        "epoch": 1,
        "lr": 0.1,
        "train_loss": 1.0,
        "train_acc": 0.5,
        "val_loss": 1.0,
        "val_acc": 0.5,
        "images_per_second": 1.0,
    }
    return report.write(folder, results, logits, labels, (row,), mistakes).read_text()


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    page = made(tmp_path, (HOSTILE, "b"), 20, 5)
    assert "<script" not in page and "\x1b" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_so_sure_a_mistake_that_the_folder_may_be_wrong_is_said_to_be_one(tmp_path: Path) -> None:
    assert made(tmp_path, CLASSES, 20, 5).count("in the wrong folder?") == 5


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


def test_of_200_classes_the_most_confused_are_drawn_and_readable_and_all_confusions_are_in_the_table(
    tmp_path: Path,
) -> None:
    names = tuple(f"class {n:03d}" for n in range(200))
    matrix = np.diag(np.full(200, 20))
    confused = [(7, 190, 9), (190, 7, 3), (50, 51, 8), (0, 199, 1)]
    for true, predicted, count in confused:
        matrix[true, predicted] = count
    assert [tuple(pair) for pair in charts.confusions(matrix)] == [
        (7, 190),
        (50, 51),
        (190, 7),
        (0, 199),
    ]
    assert charts.most_confused(matrix).tolist() == [0, 7, 50, 51, 190, 199], "in their order"
    chart = charts.confusion(matrix, names).axes[0]
    assert [label.get_text() for label in chart.get_yticklabels()] == [
        names[i] for i in (0, 7, 50, 51, 190, 199)
    ]
    assert sorted(int(text.get_text()) for text in chart.texts) == [1, 3, 8, 9] + [20] * 6
    page = made(tmp_path, names, 2000, 300)
    assert (
        text_of(page).count(
            "The chart shows 25 of 200 classes, those that are confused most often; the table has all confusions."
        )
        == 1
    )
    assert (
        len(charts.most_confused(np.ones((200, 200), np.int64)))
        == len(charts.most_confused(matrix * 0))
        == 25
    )
    assert page.count("<tr>") == 1 + 200 + 1 + 1 + 200, "by class, and a confusion for each"
    with Image.open(tmp_path / "confusion.png") as picture:
        assert max(picture.size) < 2500


@pytest.mark.long
def test_labels_of_the_confusion_matrix_do_not_overlap_however_many_classes_there_are(
    tmp_path: Path,
) -> None:
    for count in (25, 200):
        random = np.random.default_rng(0)
        figure = charts.confusion(
            random.integers(0, 30, (count, count)),
            [f"a long name of a class {n}" for n in range(count)],
        )
        figure.savefig(tmp_path / "chart.png")
        boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
        assert (
            all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes))
            and boxes[0].height / figure.dpi * 72 > 8
        ), "points"


@pytest.mark.parametrize(("sure_from", "said"), {
    0.7: "On val, at least 99 % of the predictions with a probability of 0.70 or more were correct. On test, they are 100.0 % of the photos, and 97.5 % of them are right;",
    0.999999: "On val, at least 99 % of the predictions with a probability of 1.00 or more were correct. On test, no answer is that probable;",
    1.01: "On val, no probability was high enough for at least 99 % of the predictions to be correct, so infer marks all of them unsure.",
    0.0: "They are not calibrated, and infer calls no answer unsure: the run has not been validated yet.",
}.items())  # fmt: skip
def test_what_is_said_of_val_is_true_of_val_whatever_test_is_like(
    sure_from: float, said: str, tmp_path: Path
) -> None:
    text = text_of(made(tmp_path, CLASSES, 40, 1, sure_from))
    assert said in text and ("On val, " in text) == (sure_from > 0)


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
    ("size", "dark"), [((360, 740), True), ((1280, 800), False)], ids=["phone-dark", "desk-light"]
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
