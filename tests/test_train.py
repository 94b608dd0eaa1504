"""train.py as users run it: real processes that are interrupted and started again."""

import csv
import ctypes
import os
import pty
import re
import resource
import shutil
import signal
import termios
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch._dynamo  # SGD imports it when first used: better once here than in every worker of `call`
from helpers import (
    CLASSES,
    FASHION5,
    FAST,
    SIZE,
    SMALL_RUN,
    Call,
    Script,
    Start,
    Trained,
    at,
    refusal,
    same_run,
    saved,
    wait_until,
    without_test,
)

import eval
import model
import train
from hogwear.commands import starting_point
from hogwear.data.sample import generate
from hogwear.system import flags
from hogwear.training.model_folder import ModelFolder

TINYVGG = (
    *("--arch", "tinyvgg", "--image-size", SIZE, "--workers", 1),
    *("--epochs", 4, "--batch-size", 8, "--lr", 0.02),
)  # learns something in 60 steps


def copy_of(folder: Path, name: Path) -> Path:
    return Path(shutil.copytree(folder, name / "model"))


# --- a whole run


@pytest.fixture(scope="module")
def twin(
    data: Path, trained: Trained, start: Start, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The model folder of the same run, a second time."""
    folder = tmp_path_factory.mktemp("twin")
    start("train.py", *SMALL_RUN, "--workers", 1, *at(data, folder, trained.cache)).ok()
    return folder


def test_one_worker_and_one_seed_give_identical_weights_twice(trained: Trained, twin: Path) -> None:
    assert same_run(saved(trained.model), saved(twin))


@pytest.mark.long
def test_another_seed_gives_another_run(
    trained: Trained, data: Path, call: Call, tmp_path: Path
) -> None:
    once = *SMALL_RUN, "--epochs", 1, "--workers", 1
    for seed in (0, 1):
        assert (
            call(train, *once, "--seed", seed, *at(data, tmp_path / str(seed), trained.cache)).code
            == 0
        )
    first, second = (saved(tmp_path / str(seed))["history"] for seed in (0, 1))
    assert first[1]["train_loss"] != second[1]["train_loss"]


def test_a_run_learns_and_prints_one_line_per_validation(trained: Trained) -> None:
    history = saved(trained.model)["history"]
    assert [row["stage"] for row in history] == ["closed form", "hogwild", "hogwild"]
    assert history[-1]["val_acc"] > 0.5 and history[0]["train_loss"] is None
    assert history[2]["train_loss"] < 0.8 * history[1]["train_loss"]
    lines = re.findall(
        r"^(closed form|epoch [\d.]+): .*val loss ([\d.]+), val accuracy ([\d.]+)",
        trained.stdout,
        re.MULTILINE,
    )
    names = ["closed form", "epoch 8.62", "epoch 10"]
    assert lines == [
        (name, f"{row['val_loss']:.4f}", f"{row['val_acc']:.4f}")
        for name, row in zip(names, history, strict=True)
    ]
    assert trained.stderr == ""


def test_the_accuracy_to_expect_is_printed_and_saved(trained: Trained) -> None:
    forecast = saved(trained.model)["forecast"]
    expected = f"expected accuracy {forecast['accuracy']:.3f} (cross-validation)"
    assert expected in trained.stdout and forecast["photos"] == 120
    assert model.load(trained.model, FAST).expected_acc == forecast["accuracy"]


def test_the_plan_is_printed(trained: Trained) -> None:
    for part in (
        "120 training, 40 validation photos in 5 classes.",
        ", ".join(CLASSES),
        "10 epochs",
        "1 worker on ",
        f"{SIZE} px",
    ):
        assert part in trained.stdout


def test_the_checkpoint_has_everything_that_eval_and_infer_need(trained: Trained) -> None:
    state = saved(trained.model)
    choices = state["hyperparameters"]
    assert (choices["arch"], state["class_names"], choices["image_size"]) == (
        "efficientnet_lite0",
        list(CLASSES),
        SIZE,
    )
    assert state["finished"] and state["images_seen"] == 1200 and state["snapshot"] is None
    assert choices["batch_size"] == 16 and choices["epochs"] == 10


def test_photos_are_not_mirrored_where_the_user_says_so(
    data: Path, call: Call, tmp_path: Path
) -> None:
    """The checkpoint remembers it, so a later run needs no flag."""
    once = *TINYVGG, "--epochs", 1
    losses = []
    for name, *more in (("mirrored",), ("not", "--no-mirror"), ("not",)):
        done = call(train, *once, *more, *at(data, tmp_path / name, tmp_path / "cache"))
        assert done.code == 0 and ("not mirrored" in done.stdout) == (name == "not"), done.stdout
        losses.append(saved(tmp_path / name)["history"][1]["train_loss"])
    assert losses[0] != losses[1]


def test_the_weights_with_the_lowest_validation_loss_are_kept(trained: Trained) -> None:
    state = saved(trained.model)
    best, rows = state["best"], {row["val_loss"]: row for row in state["history"]}
    assert best["val_loss"] == min(rows) and best["epoch"] == rows[min(rows)]["epoch"]
    loaded = model.load(trained.model, FAST)
    assert loaded.epoch == best["epoch"] and loaded.val_acc == best["val_acc"]
    for name, weight in loaded.net.state_dict().items():
        assert torch.equal(weight, best["weights"][name].to(weight.dtype)), name


def test_metrics_csv_has_one_row_per_validation(trained: Trained) -> None:
    with (trained.model / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    history = saved(trained.model)["history"]
    for row, saved_row in zip(rows, history, strict=True):
        assert row == {name: "" if v is None else str(v) for name, v in saved_row.items()}
    assert sum(row["images"] for row in history) == 1200


def test_the_model_folder_holds_two_checkpoints_the_split_and_the_metrics_only(
    twin: Path,
) -> None:
    assert {file.name for file in twin.iterdir()} == {
        "checkpoint.pt",
        "checkpoint.previous.pt",
        "split.json",
        "metrics.csv",
        ".lock",
    }


# --- interrupted and resumed


@dataclass(frozen=True)
class Interrupted:
    code: int
    stdout: str
    before: Path  # the model folder after the interruption
    after: Path  # the model folder at the end
    rest: str  # the output of the process that resumed


@pytest.fixture(scope="module")
def interrupted(
    data: Path, trained: Trained, start: Start, tmp_path_factory: pytest.TempPathFactory
) -> Interrupted:
    """The run of `trained` again, interrupted with Ctrl-C and then resumed."""
    folder = tmp_path_factory.mktemp("interrupted")
    arguments = *SMALL_RUN, "--workers", 1, *at(data, folder / "model", trained.cache)
    script = start("train.py", *arguments)
    script.wait_for("^closed form:")
    time.sleep(0.15)  # into the first steps
    os.killpg(script.pid, signal.SIGINT)  # to the workers too, as a terminal does
    code = script.code()
    shutil.copytree(folder / "model", folder / "before")
    rest = start("train.py", *arguments).ok()
    return Interrupted(code, script.stdout, folder / "before", folder / "model", rest.stdout)


def test_ctrl_c_saves_and_exits_before_the_end_of_the_run(interrupted: Interrupted) -> None:
    assert interrupted.code == 130
    assert not saved(interrupted.before)["finished"]


def test_resume_continues_from_the_saved_image_count(interrupted: Interrupted) -> None:
    count = saved(interrupted.before)["images_seen"]
    assert 0 <= count < 1200
    assert f"Stopped after {count} images" in interrupted.stdout
    assert f"{interrupted.after}/checkpoint.pt after {count} images" in interrupted.rest
    assert "closed form:" not in interrupted.rest and "\nepoch 10: " in interrupted.rest


def test_interrupted_and_resumed_equals_uninterrupted(
    interrupted: Interrupted, trained: Trained
) -> None:
    assert same_run(saved(interrupted.after), saved(trained.model))


@dataclass(frozen=True)
class Stopped:
    code: int
    bar: str  # what the terminal showed until the run was stopped
    stdout: str
    model: Path


@pytest.fixture(scope="module")
def stopped(
    data: Path, trained: Trained, start: Start, tmp_path_factory: pytest.TempPathFactory
) -> Stopped:
    """A run on a terminal, stopped when its bar has moved: in its first epoch of 120 steps."""
    folder, bar = tmp_path_factory.mktemp("stopped"), bytearray()
    terminal, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    arguments = "--image-size", SIZE, "--epochs", 1, "--batch-size", 1, "--workers", 1
    script = start("train.py", *arguments, *at(data, folder, trained.cache), stderr=theirs)
    os.close(theirs)
    os.set_blocking(terminal, False)

    def moves() -> bool:
        with suppress(BlockingIOError):
            bar.extend(os.read(terminal, 1 << 16))
        return bool(re.search(rb" [1-9]\d+/120 ", bar))

    wait_until(moves)
    os.kill(script.pid, signal.SIGTERM)
    code = script.code()
    os.close(terminal)
    return Stopped(code, bar.decode(errors="replace"), script.stdout, folder)


def test_a_bar_on_a_terminal_shows_images_loss_speed_and_the_time_left(stopped: Stopped) -> None:
    last = re.split(r"[\r\n]", stopped.bar.rstrip())[-1]
    assert re.search(
        r"training: +\d+%.* \d+/120 images \[\d\d:\d\d<\d\d:\d\d, \d+ images/s, train loss \d+\.\d+\]",
        last,
    )


def test_sigterm_does_not_wait_for_the_end_of_an_epoch(stopped: Stopped) -> None:
    assert stopped.code == 143 and "\nepoch" not in stopped.stdout
    state = saved(stopped.model)
    assert 0 < state["images_seen"] == state["snapshot"]["metrics"]["images"] < 120
    assert not state["finished"] and len(state["history"]) == 1
    assert f"Stopped after {state['images_seen']} images" in stopped.stdout


@pytest.mark.parametrize(
    "flag",
    [
        ("--lr", "0.5"),
        ("--epochs", "7"),
        ("--image-size", "96"),
        ("--seed", "1"),
        ("--batch-size", "4"),
    ],
)
def test_an_interrupted_run_refuses_other_settings(
    flag: tuple[str, str],
    interrupted: Interrupted,
    data: Path,
    trained: Trained,
    call: Call,
    tmp_path: Path,
) -> None:
    folder = copy_of(interrupted.before, tmp_path)
    before = (folder / "checkpoint.pt").read_bytes()
    answer = call(train, *flag, *at(data, folder, trained.cache))
    assert answer.code == 2 and f"{flag[0]} is {flag[1]}, the interrupted run has " in refusal(
        answer.stderr
    )
    assert "--fresh" in answer.stderr and (folder / "checkpoint.pt").read_bytes() == before


def test_an_interrupted_run_finishes_when_most_photos_were_deleted(
    interrupted: Interrupted, data: Path, trained: Trained, call: Call, tmp_path: Path
) -> None:
    """It may have seen more images than the whole run has now. It must not stop again and again."""
    folder, few = copy_of(interrupted.before, tmp_path), without_test(data, tmp_path / "data")
    shutil.rmtree(few / "train")
    for name in CLASSES:
        (few / "train" / name).mkdir(parents=True)
        for photo in sorted((data / "train" / name).iterdir())[:3]:
            shutil.copy(photo, few / "train" / name)
    answer = call(train, "--workers", 1, *at(few, folder, tmp_path / "cache"))
    assert answer.code == 0 and saved(folder)["finished"], answer


def test_a_run_that_is_killed_after_its_first_stage_leaves_a_model(
    data: Path, trained: Trained, start: Start, call: Call, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    script = start(
        "train.py", "--image-size", SIZE, "--workers", 1, *at(data, folder, trained.cache)
    )
    script.wait_for("^closed form:")
    script.kill()
    loaded = model.load(folder, FAST)
    assert loaded.epoch == 0 and loaded.val_acc == saved(folder)["history"][0]["val_acc"] > 0.5
    answer = call(eval, *at(data, folder, trained.cache))
    assert answer.code == 0 and "test accuracy" in answer.stdout


def test_no_epochs_are_the_first_stage_only_and_the_next_run_goes_on_from_it(
    data: Path, trained: Trained, call: Call, tmp_path: Path
) -> None:
    small = "--image-size", SIZE, "--workers", 1, *at(data, tmp_path / "model", trained.cache)
    answer = call(train, "--epochs", 0, *small)
    assert answer.code == 0 and "\nepoch" not in answer.stdout, answer
    first = saved(tmp_path / "model")
    assert first["finished"] and [row["stage"] for row in first["history"]] == ["closed form"]
    assert first["history"][0]["val_loss"] == saved(trained.model)["history"][0]["val_loss"]
    answer = call(train, "--epochs", 2, *small)
    assert answer.code == 0 and "training it further" in answer.stdout
    second = saved(tmp_path / "model")
    assert second["history"][:1] == first["history"] and second["images_seen"] == 240
    assert [row["stage"] for row in second["history"]] == ["closed form", "hogwild"]


# --- a finished run


Result = tuple[Path, Script]  # model/, and the process that wrote it


@pytest.fixture(scope="module")
def second_runs(
    data: Path, trained: Trained, start: Start, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Result, Result]:
    """The processes of `continued` and `fresh`, which run at the same time."""
    folder = tmp_path_factory.mktemp("second")
    models = [copy_of(trained.model, folder / name) for name in ("continued", "fresh")]
    photos = without_test(data, folder / "data")
    for name in CLASSES:
        (photos / "test" / name).mkdir(parents=True)
        (photos / "test" / name / "broken.jpg").write_bytes(b"not a photo")
    further = start("train.py", "--epochs", 1, "--workers", 2, *at(data, models[0], trained.cache))
    fresh = start("train.py", "--fresh", *TINYVGG, *at(photos, models[1], folder / "cache"))
    return (models[0], further.ok()), (models[1], fresh.ok())


@pytest.fixture(scope="module")
def continued(second_runs: tuple[Result, Result]) -> Result:
    """The finished run, trained further."""
    return second_runs[0]


@pytest.fixture(scope="module")
def fresh(second_runs: tuple[Result, Result]) -> Result:
    """TinyVGG instead of the finished run, on photos whose test split cannot be read."""
    return second_runs[1]


def test_a_finished_run_trains_more_and_its_history_grows(
    continued: Result, trained: Trained
) -> None:
    folder, script = continued
    before, after = saved(trained.model), saved(folder)
    assert "a finished run with validation loss" in script.stdout
    assert "\nepoch 11: " in script.stdout and "closed form:" not in script.stdout
    assert after["history"][:3] == before["history"]
    assert [row["epoch"] for row in after["history"][2:]] == [10, 11]
    assert after["finished"] and after["first_epoch"] == 10
    with (folder / "metrics.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4


def test_the_best_weights_are_evaluated_at_the_image_size_they_were_validated_at(
    data: Path, trained: Trained, call: Call, tmp_path: Path
) -> None:
    folder, photos = copy_of(trained.model, tmp_path), without_test(data, tmp_path / "data")
    answer = call(
        train,
        "--image-size",
        32,
        "--epochs",
        1,
        "--lr",
        "1e-7",
        "--workers",
        1,
        *at(photos, folder, trained.cache),
    )
    assert answer.code in (0, 2), answer
    best = saved(folder)["best"]
    assert call(eval, *at(photos, folder, trained.cache)).code == 0
    assert model.load(folder, FAST).image_size == (32 if best["epoch"] == 11 else SIZE)


# --- --fresh, and training from scratch


def test_fresh_starts_a_new_run_and_keeps_the_old_checkpoint_beside_it(
    fresh: Result, trained: Trained
) -> None:
    folder, script = fresh
    [kept] = folder.glob("checkpoint-*.pt")
    assert (
        kept.read_bytes() == (trained.model / "checkpoint.pt").read_bytes()
        and str(kept) in script.stdout
    )
    stages = [row["stage"] for row in saved(folder)["history"]]
    assert stages == ["initial", "hogwild"], "nothing is solved for random weights"


def test_a_new_run_that_is_refused_leaves_the_checkpoint_in_place(
    trained: Trained, data: Path, call: Call, tmp_path: Path
) -> None:
    folder, photos = copy_of(trained.model, tmp_path), without_test(data, tmp_path / "data")
    shutil.rmtree(photos / "val")
    for name in CLASSES:
        (photos / "val" / name).mkdir(parents=True)
        (photos / "val" / name / "broken.jpg").touch()
    answer = call(train, "--fresh", *at(photos, folder, trained.cache))
    assert answer.code == 2 and "no readable photo in this class" in refusal(answer.stderr)
    assert (folder / "checkpoint.pt").read_bytes() == (trained.model / "checkpoint.pt").read_bytes()


def test_tinyvgg_trains_all_its_parameters_from_scratch(fresh: Result) -> None:
    state = saved(fresh[0])
    torch.manual_seed(0)
    initial = dict(model.build("tinyvgg", 5, SIZE).named_parameters())
    assert state["hyperparameters"]["arch"] == "tinyvgg"
    weights = state["best"]["weights"]
    assert [name for name in initial if torch.equal(weights[name], initial[name])] == []


@pytest.fixture
def well_sorted(tmp_path: Path) -> Path:
    """Per class 40 real photos for training and 16 for validation, all labelled correctly."""
    source = FASHION5 if FASHION5.is_dir() else generate.ensure_sample(tmp_path / "sample")
    for split, count in {"train": 40, "val": 16}.items():
        for name in CLASSES:
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for photo in sorted((source / split / name).iterdir())[:count]:
                shutil.copy(photo, tmp_path / "data" / split / name)
    return tmp_path / "data"


def test_two_workers_learn_from_scratch_what_real_photos_show(
    well_sorted: Path, start: Start, tmp_path: Path
) -> None:
    script = start(
        "train.py",
        "--arch",
        "tinyvgg",
        "--image-size",
        64,
        "--epochs",
        20,
        "--workers",
        2,
        *at(well_sorted, tmp_path / "model", tmp_path / "cache"),
    )
    script.ok()
    assert saved(tmp_path / "model")["best"]["val_acc"] > 0.8, (
        f"five classes, so chance is 0.2\n{script.stdout}"
    )


def test_initial_weights_depend_on_the_seed_only(
    fresh: Result, trained: Trained, data: Path, call: Call, tmp_path: Path
) -> None:
    assert call(train, *TINYVGG, *at(data, tmp_path, trained.cache)).code == 0
    assert same_run(saved(tmp_path), saved(fresh[0]))


def test_the_test_split_is_never_read(fresh: Result) -> None:
    folder, script = fresh
    assert sorted(
        cache.name.split("-")[0] for cache in (folder.parents[1] / "cache" / "pixels").iterdir()
    ) == [
        "train",
        "val",
    ]
    assert "broken" not in script.stdout + script.stderr and script.stderr == ""


def test_another_image_size_is_refused_for_a_network_that_cannot_change_it(
    fresh: Result, data: Path, call: Call, tmp_path: Path
) -> None:
    folder = copy_of(fresh[0], tmp_path)
    answer = call(train, "--image-size", 32, *at(data, folder, tmp_path / "cache"))
    assert answer.code == 2 and "32" in refusal(answer.stderr) and str(SIZE) in answer.stderr


def test_tinyvgg_needs_no_shared_memory_but_for_its_few_parameters(
    data: Path, trained: Trained, call: Call, tmp_path: Path
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)  # holds for files in /dev/shm too
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 20, limit[1]))
    try:
        arguments = "--arch", "tinyvgg", "--image-size", SIZE, "--epochs", 1, "--workers", 2
        assert call(train, *arguments, *at(data, tmp_path, trained.cache)).code == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_what_a_run_resumes_from_or_why_it_does_not(
    fresh: Result, data: Path, tmp_path: Path
) -> None:
    def find(*more: str) -> tuple[str | None, str]:
        arguments = map(str, at(data, tmp_path / "model", tmp_path / "cache"))
        settings = flags.parse(train.Settings, [*arguments, *more])
        found, reason = starting_point.find_checkpoint(settings, ModelFolder(settings.model_dir))
        return found.file.name if found else None, reason

    assert find() == (None, f"there is no {tmp_path}/model/checkpoint.pt yet")
    copy_of(fresh[0], tmp_path)
    assert find("--fresh") == (None, "--fresh")
    assert find() == ("checkpoint.pt", "")
    (tmp_path / "model" / "checkpoint.pt").rename(tmp_path / "model" / "checkpoint.previous.pt")
    assert find() == ("checkpoint.previous.pt", "")


# --- refused


def test_another_architecture_is_refused_naming_both(
    trained: Trained, data: Path, call: Call
) -> None:
    answer = call(train, "--arch", "tinyvgg", *at(data, trained.model, trained.cache))
    assert (
        answer.code == 2
        and "tinyvgg" in refusal(answer.stderr)
        and "efficientnet_lite0" in answer.stderr
    )


def test_other_classes_are_refused_naming_both(
    trained: Trained, data: Path, call: Call, tmp_path: Path
) -> None:
    photos = tmp_path / "data"
    for split in ("train", "val"):
        for old, new in {"eyewear": "glasses", "handbag": "handbag"}.items():
            shutil.copytree(data / split / old, photos / split / new)
    answer = call(train, *at(photos, trained.model, trained.cache))
    assert (
        answer.code == 2
        and "glasses, handbag" in refusal(answer.stderr)
        and ", ".join(CLASSES) in answer.stderr
    )


def lose_the_right_to_write_everywhere() -> None:
    """Drop CAP_DAC_OVERRIDE (1): without it, the mode of a folder binds root as well."""
    pr_capbset_drop = 24
    ctypes.CDLL(None).prctl(pr_capbset_drop, 1, 0, 0, 0)


@pytest.mark.parametrize("kind", ["read-only folder", "folder in a read-only folder", "file"])
def test_a_model_folder_that_cannot_be_written_is_refused_before_training(
    kind: str, data: Path, start: Start, trained: Trained, tmp_path: Path
) -> None:
    model_dir = {"read-only folder": tmp_path / "closed", "file": tmp_path / "file"}.get(
        kind, tmp_path / "closed" / "model"
    )
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir(mode=0o555)
    script = start(
        "train.py",
        *at(data, model_dir, trained.cache),
        preexec_fn=lose_the_right_to_write_everywhere,
    )
    assert script.code() == 2
    assert str(model_dir) in refusal(script.stderr) and script.stdout == ""


def test_a_missing_data_folder_is_refused_before_training(start: Start, tmp_path: Path) -> None:
    script = start("train.py", *at(tmp_path / "nowhere", tmp_path / "model", tmp_path / "cache"))
    assert script.code() == 2
    assert (
        f"train.py: {tmp_path}/nowhere: no such folder; make it" in refusal(script.stderr)
        and script.stdout == ""
    )


def test_a_cpu_that_lacks_bfloat16_trains_in_float32(
    data: Path, trained: Trained, start: Start, tmp_path: Path
) -> None:
    few = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    script = start(
        "train.py", *SMALL_RUN, "--epochs", 1, *at(data, tmp_path, trained.cache), env=few
    ).ok()
    assert "Precision: float32" in script.stdout and "\nepoch 1: " in script.stdout


def test_a_file_shows_each_line_at_once(
    data: Path, trained: Trained, start: Start, tmp_path: Path
) -> None:
    script = start("train.py", *SMALL_RUN, "--epochs", 1000, *at(data, tmp_path, trained.cache))
    script.wait_for("^Plan: ")
    assert "\nclosed form: " not in script.stdout
    script.kill()


def test_a_wrong_flag_is_refused_by_the_real_process_in_one_line(start: Start) -> None:
    script = start("train.py", "--arch", "resnet50")
    assert script.code() == 2
    assert (
        refusal(script.stderr)
        == "train.py: --arch: 'resnet50' is not one of efficientnet_lite0, tinyvgg\n"
    )
