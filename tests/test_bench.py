"""The benchmarks, on a few photos: peers, their photos, failures, and the tables of results."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import COUNTS, ROOT, SIZE
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench import __main__ as bench
from bench import pareto, peers, phases, photos, runs
from bench.common import Attempts, read_history, read_hogwild_speed
from bench.pareto import DEFAULTS, OURS, STAGE_1, Result
from bench.peers import __main__ as peers_command
from bench.peers import frozen
from hogwear.data.sample import generate
from hogwear.training.history import CLOSED_FORM, HOGWILD, History, HistoryRow


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "chosen", [])


def test_every_measured_peer_exists() -> None:
    measured = {name for name, _ in runs.PEERS} | {name for name, _, _ in pareto.PEERS}
    assert measured <= peers.PEERS.keys()
    assert {name for name, _, _ in pareto.PEERS} | {OURS} == pareto.LABELS.keys()
    for name, module in peers.PEERS.items():
        assert callable(getattr(importlib.import_module(f"bench.peers.{module}"), name))


@pytest.mark.long
@pytest.mark.parametrize("peer", ["frozen_features", "fast_frozen_features"])
def test_frozen_features_learn_the_classes_of_a_few_photos(
    peer: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for photo in data.glob("*/*/*"):  # some are in the folder of another class: put them back
        folder = tmp_path / photo.parent.parent.name / photo.name.partition("-")[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / photo.name).symlink_to(photo)
    flags = "--photos", tmp_path, "--epochs", 1, "--size", SIZE, "--workers", 1
    monkeypatch.setattr(sys, "argv", ["peers", peer, *map(str, flags)])
    peers_command.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (
        figures["peer"] == peer
        and figures["train_seconds"] > 0
        and figures["images_per_second"] > 0
    )
    assert figures["test_acc"] > 0.8, "on a random projection of the features: 0.625"


@pytest.mark.parametrize("C", [frozen.C_GRID[0], frozen.C_GRID[-1]])
def test_regularisation_is_chosen_on_val(C: float) -> None:
    rng = np.random.default_rng(0)
    train = rng.normal(size=(60, 20)).astype(np.float32), rng.integers(3, size=60)
    others = rng.normal(size=(200, 20)).astype(np.float32)
    target = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000)).fit(*train)
    chosen = frozen.fit_logistic_regression(train, (others, target.predict(others)))
    assert chosen[-1].C == C


# --- photos


def count(folder: Path) -> dict[str, int]:
    return {split.name: sum(1 for _ in split.glob("*/*")) for split in sorted(folder.iterdir())}


def test_class_folders_are_split_once_for_all_parts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "ROOT", tmp_path)
    (tmp_path / "bench").mkdir()
    source, work = tmp_path / "mine", tmp_path / "work"
    for photo in data.glob("train/*/*"):
        folder = source / photo.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / photo.name).write_bytes(photo.read_bytes())
    work.mkdir()
    assert str(source) in photos.choose(source, work)
    [chosen] = photos.data_sets()
    counts = count(chosen)
    assert counts.keys() == {"train", "val", "test"}
    assert sum(counts.values()) == 5 * COUNTS["train"] and min(counts.values()) > 0
    assert photos.finer_classes(work) == [], "that is another data set"
    assert photos.results_folder().name == "local", "figures of other photos are not ours"


def test_photos_that_are_split_are_used_as_they_are(data: Path, tmp_path: Path) -> None:
    photos.choose(data, tmp_path)
    assert photos.data_sets() == [data.resolve()]


def test_without_photos_of_its_own_it_measures_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "FASHION5", tmp_path / "missing")
    monkeypatch.setattr(photos, "ROOT", tmp_path)
    assert "sample" in photos.choose(None, tmp_path)
    assert generate.is_complete(photos.data_sets()[0])


def test_peers_are_tested_on_val_where_there_is_no_test(data: Path, tmp_path: Path) -> None:
    source, work = tmp_path / "source", tmp_path / "work"
    for split, name in (("train", "train"), ("val", "validation")):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).symlink_to(data / split)
    work.mkdir()
    folder = photos.for_peers(source, work)
    assert count(folder) == {split: 5 * COUNTS[split] for split in ("train", "val")} | {
        "test": 5 * COUNTS["val"]
    }
    assert photos.for_peers(data, work) == data


# --- failures, results


def test_a_peer_that_fails_names_itself_and_is_not_tried_again() -> None:
    attempts = Attempts()
    tried = []

    def fail() -> None:
        tried.append("once")
        subprocess.run(["false"], check=True)

    assert attempts.run("timm", fail) is None and attempts.run("timm", fail) is None
    assert attempts.run("loop", lambda: 1.5) == 1.5
    assert tried == ["once"]
    assert "timm (exit code 1)" in attempts.report() and "loop" not in attempts.report()


def test_a_part_that_fails_does_not_lose_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Path
) -> None:
    def broken() -> str:
        """Never works."""
        raise ValueError

    def fine() -> str:
        """Always works."""
        return "| figures |"

    monkeypatch.setattr(bench, "PARTS", {"broken": broken, "fine": fine})
    monkeypatch.setattr(photos, "ROOT", tmp_path)
    (tmp_path / "bench").mkdir()
    monkeypatch.setattr(sys, "argv", ["bench", "--photos", str(data)])
    with pytest.raises(SystemExit, match="broken"):
        bench.main()
    written = (tmp_path / "bench" / "local" / "RESULTS.md").read_text()
    assert "## fine\n\nAlways works.\n\n| figures |" in written and "## broken" not in written
    assert str(data.resolve()) in written


def test_the_pareto_table_and_picture_have_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measure(folder: Path, seed: int, results: pareto.Results, attempts: Attempts) -> None:
        for key, seconds, accuracy in (
            ((OURS, STAGE_1), 8, 0.9),
            ((OURS, DEFAULTS), 12, 0.92),
            (("loop", "1 epoch"), 90, 0.2),
        ):
            results.setdefault(key, []).append(Result(seconds + seed, accuracy, 0.25, 100))
        attempts.run("timm", lambda: 1 // 0)

    monkeypatch.setattr(pareto, "measure", measure)
    monkeypatch.setattr(pareto, "results_folder", lambda: tmp_path)
    monkeypatch.setattr(pareto, "data_sets", lambda: [Path("hats"), Path("socks")])
    monkeypatch.setattr(pareto, "finer_classes", lambda work: [])
    text = pareto.pareto()
    assert f"| hats | {OURS} | {DEFAULTS} | 3 | 13.0 (12.0 to 14.0) | 0.9200 (0." in text
    assert "| socks | loop | 1 epoch | 3 |" in text
    assert "hats 0.0286 (100 photos)" in text, "the square root of 0.91 * 0.09 / 100"
    assert "Failed: timm (ZeroDivisionError" in text
    assert (tmp_path / pareto.PICTURE).read_bytes().startswith(b"\x89PNG")


def test_phases_are_timed_without_those_within_them() -> None:
    clock = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    timers = phases.Timers({}, lambda: next(clock))
    with timers.phase("outer"), timers.phase("inner"):
        pass
    timers.stop()
    assert timers.seconds == {phases.REST: 1 + 5, "outer": 2 + 4, "inner": 3}


@pytest.mark.parametrize("target", phases.PHASES)
def test_every_phase_is_a_function_of_train(target: str) -> None:
    module, _, path = target.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name, None)
    assert callable(found), "renamed? Adapt PHASES in bench/phases.py"


@pytest.mark.long
def test_the_phases_of_a_run_are_timed(data: Path, tmp_path: Path) -> None:
    flags = [f"--data-dir={data}", f"--model-dir={tmp_path / 'model'}", "--image-size=64"]
    flags += [f"--cache-dir={tmp_path / 'cache'}", "--epochs=1", "--workers=1"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.phases", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = json.loads(done.stdout.splitlines()[-1])
    assert seconds.keys() == {phases.START, phases.REST, *phases.PHASES.values()}


def test_the_results_say_where_the_photos_come_from() -> None:
    assert (ROOT / "bench" / "RESULTS.md").read_text().startswith(bench.INTRODUCTION)


def test_the_speed_of_hogwild_leaves_out_the_first_classifier(tmp_path: Path) -> None:
    first = HistoryRow(0.0, CLOSED_FORM, images_per_second=280.0)
    slow, fast = (
        HistoryRow(epoch, HOGWILD, 100, 0.05, 0.5, 0.9, images_per_second=speed)
        for epoch, speed in ((0.5, 50.0), (1.0, 100.0))
    )
    History([first, slow, fast]).write_csv(tmp_path / "metrics.csv")
    assert [row["stage"] for row in read_history(tmp_path)] == ["closed form", "hogwild", "hogwild"]
    assert read_hogwild_speed(tmp_path) == pytest.approx(200 / 3)
