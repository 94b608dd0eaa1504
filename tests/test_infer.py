"""infer.py: a picture and an answer for every photo, and a reason where there is none."""

import csv
import json
import os
import re
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CLASSES, Completed, Script, Trained, at, refusal
from PIL import Image

import infer
from hogwear.commands.shared_settings import load_model
from hogwear.data import decoding
from hogwear.data.near_duplicates import compute_signature, find_pairs
from hogwear.evaluation import pictures
from hogwear.evaluation.query_pool import POOL
from hogwear.evaluation.trained_model import LEAST_AUROC

Infer = Callable[..., Completed]


@pytest.fixture(scope="module")
def five(
    data: Path,
    trained: Trained,
    start: Callable[..., Script],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Script]:
    """responses/ after a run with the default settings, over pictures of an earlier one; and the process."""
    folder = tmp_path_factory.mktemp("responses")
    arguments = "--responses-dir", folder, *at(data, trained.model, trained.cache)
    start("infer.py", "--seed", 4, "--num-images", 7, *arguments).ok()
    return folder, start("infer.py", "--seed", 3, *arguments).ok()


@pytest.fixture
def predict(data: Path, trained: Trained, call: Callable[..., Completed], tmp_path: Path) -> Infer:
    """predict("--num-images", 2): infer.py into tmp_path."""
    return lambda *arguments: call(
        infer, "--responses-dir", tmp_path, *at(data, trained.model, trained.cache), *arguments
    )


def answers_in(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "predictions.json").read_text())
    return found


def pictures_in(folder: Path) -> set[str]:
    return {file.name for file in (folder / "results").iterdir()}


def test_five_photos_of_the_test_split_give_five_pictures_that_open(
    five: tuple[Path, Script], data: Path
) -> None:
    folder, script = five
    answers = answers_in(folder)
    assert len(answers) == len({answer["file"] for answer in answers}) == 5
    assert all(Path(answer["file"]).is_relative_to(data / "test") for answer in answers)
    assert pictures_in(folder) == {
        f"{Path(answer['file']).stem}_{answer['predicted']}.png" for answer in answers
    }
    assert pictures_in(folder) == {answer["picture"] for answer in answers}, (
        "those of the run before are gone"
    )
    for name in pictures_in(folder):
        with Image.open(folder / "results" / name) as picture:
            picture.load()
            assert picture.format == "PNG" and min(picture.size) > 300
    assert (
        f"5 pictures in {folder}/results" in script.stdout
        and script.stderr == ""
        and "Kept in" not in script.stdout
    )


def test_predictions_are_probabilities_with_the_most_probable_class_first(
    five: tuple[Path, Script],
) -> None:
    for answer in answers_in(five[0]):
        assert set(answer["probabilities"]) == set(CLASSES) and sum(
            answer["probabilities"].values()
        ) == pytest.approx(1)
        assert (
            answer["probability"]
            == max(answer["probabilities"].values())
            == answer["probabilities"][answer["predicted"]]
        )
        assert answer["true_class"] == Path(answer["file"]).parent.name and answer["error"] is None


def test_predictions_are_printed_and_incorrect_ones_marked(five: tuple[Path, Script]) -> None:
    lines = five[1].stdout.splitlines()
    for answer in answers_in(five[0]):
        [line] = [line for line in lines if answer["file"] in line]
        assert line.startswith(answer["predicted"]) and f"{answer['probability']:.1%}" in line
        assert ("incorrect" in line) == (answer["predicted"] != answer["true_class"])


def test_a_seed_gives_the_same_photos_again_and_another_gives_others(
    five: tuple[Path, Script], predict: Infer, tmp_path: Path
) -> None:
    assert predict("--seed", 3).code == 0
    assert answers_in(tmp_path) == answers_in(five[0])
    assert predict("--seed", 4, "--num-images", 2).code == 0
    assert len(pictures_in(tmp_path)) == len(answers_in(tmp_path)) == 2
    assert not {answer["file"] for answer in answers_in(tmp_path)} <= {
        answer["file"] for answer in answers_in(five[0])
    }


def test_every_input_is_accounted_for(data: Path, predict: Infer, tmp_path: Path) -> None:
    """Files and folders, one photo given twice, one that cannot be read, one name in two folders."""
    photo, *others = sorted((data / "test" / "footwear").iterdir())[:3]
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    for name in ("mine/shoe.jpg", "mine/deep/shoe.jpg"):
        shutil.copy(photo, tmp_path / name)
    (tmp_path / "mine" / "broken.jpg").write_bytes(b"not a photo")
    (tmp_path / "mine" / ".hidden.jpg").touch()
    answer = predict("--images", others[0], tmp_path / "mine", others[1], others[0])
    assert answer.code == 0
    rows = {row["file"]: row for row in answers_in(tmp_path)}
    broken = str(tmp_path / "mine" / "broken.jpg")
    assert list(rows) == [
        str(others[0]), broken, str(tmp_path / "mine/deep/shoe.jpg"), str(tmp_path / "mine/shoe.jpg"), str(others[1]),
    ]  # fmt: skip
    assert rows[broken] == {
        "file": broken, "true_class": None, "probabilities": {}, "picture": None, "sorted_to": None,
        "error": "not one of JPEG, PNG, WEBP, BMP, GIF, AVIF",
    }  # fmt: skip
    assert f"{broken}: not one of JPEG" in answer.stdout
    pictures = {row["picture"] for row in rows.values()} - {None}
    assert len(pictures) == 4 and pictures == pictures_in(tmp_path)
    shoe = rows[str(tmp_path / "mine" / "shoe.jpg")]
    assert shoe["true_class"] is None and rows[str(others[0])]["true_class"] == "footwear"
    assert {f"shoe_{shoe['predicted']}.png", f"shoe_{shoe['predicted']}_2.png"} <= pictures


def test_the_class_of_a_photo_is_the_outermost_folder_of_that_name(
    data: Path, predict: Infer, tmp_path: Path
) -> None:
    """Folders above the one that is named say nothing about its photos."""
    photo = next((data / "test" / "footwear").iterdir())
    folders = {
        "test/footwear/2024": "footwear", "test/footwear/handbag": "footwear",
        "test/handbag": "handbag", "test/new": None, "test": None,
    }  # fmt: skip
    for folder in folders:
        copy = tmp_path / "eyewear" / folder / "photo.jpg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, copy)
    assert predict("--images", tmp_path / "eyewear" / "test", "--pictures", 0).code == 0
    found = {Path(row["file"]).parent: row["true_class"] for row in answers_in(tmp_path)}
    assert found == {tmp_path / "eyewear" / folder: name for folder, name in folders.items()}


@pytest.mark.parametrize(("auroc", "rate"), [(0.99, 0.1), (0.99, 0.4), (0.8, 0.1)])
def test_as_many_photos_of_val_are_unknown_as_may_be_unless_that_was_found_not_to_work(
    auroc: float,
    rate: float,
    data: Path,
    predict: Infer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        infer, "load_model", lambda settings: replace(load_model(settings), novelty_auroc=auroc)
    )
    flags = "--sort", "--pictures", 2, "--unknown-rate", rate
    answer = predict("--images", data / "val", *flags)
    assert answer.code == 0
    rows = {row["file"]: row for row in answers_in(tmp_path)}
    marked = {file for file, row in rows.items() if row["unknown"]}
    with (tmp_path / "predictions.csv").open(newline="") as file:
        table = {row["file"]: row["unknown"] for row in csv.DictReader(file)}
    if auroc < LEAST_AUROC:
        assert {row["unknown"] for row in rows.values()} == {None} and set(table.values()) == {""}
        assert "not recognised as unknown: AUROC 0.80" in answer.stdout
        return
    assert len(rows) == 40 and 40 * rate - 1 <= len(marked) <= 40 * rate
    assert {file for file, value in table.items() if value == "True"} == marked
    assert {Path(rows[file]["sorted_to"]).parent.name for file in marked} == {"unknown"}
    assert len([line for line in answer.stdout.splitlines() if "  unknown" in line]) == len(marked)


def test_every_input_is_sorted_into_a_folder_or_named_with_the_reason(
    data: Path, predict: Infer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run with another photo keeps what its user has moved, and adds the new one."""
    for name in ("topwear", "footwear"):
        shutil.copytree(data / "test" / name, tmp_path / "new" / name)
    (tmp_path / "new" / "broken.jpg").write_bytes(b"not a photo")
    inputs = contents(tmp_path / "new")
    assert predict("--images", tmp_path / "new", "--pictures", 0).code == 0
    unsorted = [row for row in answers_in(tmp_path) if not row["error"]]
    median = sorted(row["probability"] for row in unsorted)[8]
    monkeypatch.setattr(
        infer,
        "load_model",
        lambda settings: replace(load_model(settings), confidence_threshold=median),
    )

    answer = predict("--images", tmp_path / "new", "--sort", "--pictures", 2)
    assert answer.code == 0
    rows = answers_in(tmp_path)
    folder = tmp_path / "sorted"
    assert len(rows) == len(inputs) == 17
    for row in rows:
        if row["error"]:
            assert Path(row["file"]).name == "broken.jpg" and row["sorted_to"] is None
            continue
        expected = "unsure" if row["unsure"] else row["predicted"]
        assert Path(row["sorted_to"]).parent == Path("sorted", expected)
        copy = tmp_path / row["sorted_to"]
        assert copy.read_bytes() == Path(row["file"]).read_bytes() and not copy.is_symlink()
    assert {row["unsure"] for row in rows if not row["error"]} == {True, False}
    with (tmp_path / "predictions.csv").open(newline="") as file:
        assert [row["sorted_to"] or None for row in csv.DictReader(file)] == [
            row["sorted_to"] for row in rows
        ]
    assert f"Sorted: 16 photos copied to {folder}, 1 not readable.\n" in answer.stdout
    assert contents(tmp_path / "new") == inputs

    moved = next(row["sorted_to"] for row in rows if row.get("unsure"))
    (folder / "eyewear").mkdir(exist_ok=True)
    (tmp_path / moved).rename(folder / "eyewear" / Path(moved).name)
    shutil.copy(next((data / "test" / "handbag").iterdir()), tmp_path / "new" / "one more.jpg")
    before = contents(folder)
    again = predict("--images", tmp_path / "new", "--sort", "--pictures", 2)
    assert again.code == 0 and "Kept in" not in again.stdout
    assert (
        f"Sorted: 1 photo copied to {folder}, 16 there already, 1 not readable.\n" in again.stdout
    )
    after = contents(folder)
    assert {name: after[name] for name in before} == before and len(after) == 17
    assert f"sorted/eyewear/{Path(moved).name}" in {
        row["sorted_to"] for row in answers_in(tmp_path)
    }


def test_sorting_needs_photos_that_are_not_sorted_yet(
    data: Path, predict: Infer, tmp_path: Path
) -> None:
    said = refusal(predict("--sort").stderr)
    assert "--sort: name the photos to sort with --images" in said
    photo = next((data / "test" / "topwear").iterdir())
    assert predict("--images", photo, "--sort").code == 0
    before = contents(tmp_path)
    for given in (tmp_path / "sorted", next((tmp_path / "sorted").rglob("*.jpg"))):
        answer = predict("--images", given, "--sort")
        assert answer.code == 2 and "overlaps with what infer writes to" in refusal(answer.stderr)
    assert contents(tmp_path) == before
    assert predict("--images", tmp_path / "sorted").code == 0, "only predicted"


def test_a_disk_without_room_for_a_copy_ends_infer_with_one_line(
    data: Path, trained: Trained, start: Callable[..., Script], tmp_path: Path
) -> None:
    photo = max((data / "test" / "topwear").iterdir(), key=lambda file: file.stat().st_size)
    half = photo.stat().st_size // 2

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))

    script = start(
        "infer.py", *at(data, trained.model, trained.cache), "--responses-dir", tmp_path,
        "--images", photo, "--sort", preexec_fn=limited,
    )  # fmt: skip
    assert script.code() == 2
    assert refusal(script.stderr).startswith(f"infer.py: {tmp_path}/sorted/")
    assert f"/{photo.name}: File too large" in script.stderr
    assert contents(tmp_path) == {}


def test_the_first_photos_get_pictures_and_all_get_predictions(
    data: Path, predict: Infer, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    for i, photo in enumerate(sorted((data / "test" / "handbag").iterdir())[:6]):
        shutil.copy(photo, tmp_path / "new" / f"{i}.jpg")
    (tmp_path / "new" / "1.jpg").write_bytes(b"no photo")
    answer = predict("--images", tmp_path / "new", "--pictures", 3)
    assert answer.code == 0
    rows = answers_in(tmp_path)
    assert [Path(row["file"]).name for row in rows] == [f"{i}.jpg" for i in range(6)]
    assert [row["picture"] is not None for row in rows] == [True, False, True, False, False, False]
    assert pictures_in(tmp_path) == {row["picture"] for row in rows} - {None}
    assert [bool(row["probabilities"]) for row in rows] == [True, False, True, True, True, True]
    with (tmp_path / "predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.size == (
            pictures.GAP + 3 * (pictures.CELL + pictures.GAP),
            pictures.GAP + pictures.CELL + pictures.CAPTION + pictures.GAP,
        )
    assert all(row["file"] in answer.stdout for row in rows)
    assert (
        "2 pictures in " in answer.stdout
        and "(the first 3 of 6 photos; --pictures)" in answer.stdout
    )


def test_without_pictures_there_are_only_predictions(
    data: Path, predict: Infer, tmp_path: Path
) -> None:
    assert predict("--num-images", 2).code == 0
    answer = predict("--images", data / "test" / "handbag", "--pictures", 0)
    assert answer.code == 0 and "(the first 0 of " in answer.stdout
    assert {row["picture"] for row in answers_in(tmp_path)} == {None} and pictures_in(
        tmp_path
    ) == set()
    assert {path.name for path in tmp_path.iterdir()} == {
        "results",
        "predictions.json",
        "predictions.csv",
        ".hogwear.sha256",
    }


def test_photos_that_do_not_fit_on_one_sheet_are_on_the_next(
    data: Path, predict: Infer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "PHOTOS_PER_SHEET", 3)
    assert predict("--images", data / "test" / "footwear", "--pictures", 4).code == 0
    wide = []
    for name in ("contact_sheet.png", "contact_sheet-2.png"):
        with Image.open(tmp_path / name) as sheet:
            wide.append((sheet.width - pictures.GAP) // (pictures.CELL + pictures.GAP))
    assert wide == [3, 2] and len(list(tmp_path.glob("*.png"))) == 2


def test_a_file_name_like_a_formula_is_text_in_the_table_and_unchanged_in_the_json(
    data: Path, predict: Infer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["=HYPERLINK(A1).jpg", "+1.jpg", "@SUM(1).jpg"]
    for name in names:
        shutil.copy(next((data / "test" / "topwear").iterdir()), name)
    assert predict("--images", *names).code == 0
    assert [row["file"] for row in answers_in(tmp_path)] == names
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"'{name}" for name in names]
    assert all(
        0 <= float(row[f"probability_{n}"]) <= 1 and row[f"class_{n}"] in CLASSES
        for row in rows
        for n in range(1, 6)
    )


def test_a_photo_in_the_wrong_folder_is_marked_incorrect(
    data: Path, predict: Infer, tmp_path: Path
) -> None:
    (tmp_path / "eyewear").mkdir()
    shutil.copy(
        sorted((data / "test" / "bottomwear").iterdir())[0], tmp_path / "eyewear" / "skirt.jpg"
    )
    answer = predict("--images", tmp_path / "eyewear")
    [row] = answers_in(tmp_path)
    assert row["predicted"] != row["true_class"] == "eyewear"
    assert "incorrect (labelled eyewear)" in answer.stdout


REFUSED: dict[str, Callable[[Path], Path]] = {
    "does not exist": lambda folder: folder / "nowhere.jpg",
    "no files in": lambda folder: folder,
    "no photo could be read": lambda folder: Path(__file__),
}


@pytest.mark.parametrize(("said", "path"), REFUSED.items(), ids=list(REFUSED))
def test_without_one_readable_photo_it_is_refused_and_the_old_pictures_stay(
    said: str, path: Callable[[Path], Path], predict: Infer, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "old.png").touch()
    given = path(tmp_path / "empty")
    answer = predict("--images", given)
    assert answer.code == 2 and said in refusal(answer.stderr) and str(given) in answer.stderr
    assert pictures_in(tmp_path) == {"old.png"}


def contents(folder: Path) -> dict[str, bytes]:
    """{path: content} of all files below."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_only_what_infer_made_is_deleted_and_the_rest_is_counted(
    data: Path, predict: Infer, tmp_path: Path
) -> None:
    assert predict("--num-images", 4, "--seed", 1).code == 0
    made = sorted((tmp_path / "results").iterdir())
    Image.new("RGB", (8, 8)).save(made[0])  # overwritten by its user ...
    shutil.copy(made[1], tmp_path / "results" / "copy.png")  # ... copied ...
    made[2].rename(tmp_path / "results" / "renamed.png")  # ... and renamed
    (tmp_path / "results" / "link.png").symlink_to(made[1])
    (tmp_path / "results" / "sorted").mkdir()
    (tmp_path / "results" / "sorted" / "picture.png").write_bytes(b"mine")
    (tmp_path / "contact_sheet_holiday.png").write_bytes(b"mine")
    theirs = {name: content for name, content in contents(tmp_path).items() if Path(name).name not in
              {made[1].name, made[3].name, "link.png", "contact_sheet.png", "predictions.json", "predictions.csv", ".hogwear.sha256"}}  # fmt: skip
    assert len(theirs) == 5
    answer = predict("--num-images", 3, "--seed", 2)
    assert (
        answer.code == 0
        and f"Kept in {tmp_path}: 6 files that infer did not write or that were changed."
        in answer.stdout
    )
    assert {
        name: content for name, content in contents(tmp_path).items() if name in theirs
    } == theirs
    assert (
        (tmp_path / "results" / "link.png").is_symlink()
        and not made[1].exists()
        and not made[3].exists()
    )
    pictures = {row["picture"] for row in answers_in(tmp_path)}
    assert len(pictures) == 3 and pictures_in(tmp_path) == pictures | {
        made[0].name,
        "copy.png",
        "renamed.png",
        "link.png",
        "sorted",
    }
    again = predict("--num-images", 2, "--seed", 3)
    assert (
        again.code == 0
        and ": 6 files that infer" in again.stdout
        and len(pictures_in(tmp_path)) == 2 + 5
    )


def test_a_file_of_the_user_keeps_its_name(data: Path, predict: Infer, tmp_path: Path) -> None:
    photo = next((data / "test" / "topwear").iterdir())
    arguments = "--images", photo
    assert predict(*arguments).code == 0
    [row] = answers_in(tmp_path)
    (tmp_path / "results" / row["picture"]).write_bytes(b"mine")
    (tmp_path / "contact_sheet.png").write_bytes(b"mine")
    assert predict(*arguments).code == 0
    stem = row["picture"].removesuffix(".png")
    assert answers_in(tmp_path) == [row | {"picture": f"{stem}_2.png"}] and pictures_in(
        tmp_path
    ) == {row["picture"], f"{stem}_2.png"}
    with Image.open(tmp_path / "contact_sheet_2.png") as sheet:
        sheet.load()
    assert (
        (tmp_path / "results" / row["picture"]).read_bytes()
        == (tmp_path / "contact_sheet.png").read_bytes()
        == b"mine"
    )


@pytest.mark.parametrize("name", ["predictions.json", "predictions.csv"])
@pytest.mark.parametrize("ours", [False, True], ids=["their own", "edited"])
def test_predictions_that_infer_did_not_write_or_that_were_edited_are_not_overwritten(
    name: str, ours: bool, predict: Infer, tmp_path: Path
) -> None:
    if ours:
        assert predict("--num-images", 1).code == 0
    with (tmp_path / name).open("a") as file:
        file.write("mine")
    before = contents(tmp_path)
    answer = predict("--num-images", 1)
    assert (
        answer.code == 2
        and f"{tmp_path / name}: infer did not write this, or it was changed since; move it away"
        in refusal(answer.stderr)
    )
    assert contents(tmp_path) == before
    (tmp_path / name).unlink()
    assert predict("--num-images", 1).code == 0


PLACES: dict[str, Callable[[Path], Path]] = {  # of photos, where results/ is that of tmp_path
    "in results": lambda folder: folder / "results",
    "one of results": lambda folder: folder / "results" / "photo0.png",
    "around results": lambda folder: folder,
    "a pattern that finds some": lambda folder: folder / "**" / "*.png",
    "a link to results": lambda folder: linked(folder / "link", folder / "results"),
    "a link in an album": lambda folder: (
        linked(folder / "album" / "photo.png", folder / "results" / "photo0.png").parent
    ),
}


def linked(path: Path, target: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target)
    return path


@pytest.fixture
def project(data: Path, tmp_path: Path) -> Path:
    """A folder whose user keeps photos in results/."""
    (tmp_path / "results").mkdir()
    for i, photo in enumerate(sorted((data / "test" / "topwear").iterdir())[:3]):
        with Image.open(photo) as opened:
            opened.save(tmp_path / "results" / f"photo{i}.png")
    (tmp_path / "contact_sheet_holiday.png").write_bytes(b"mine")
    return tmp_path


@pytest.mark.parametrize("place", PLACES.values(), ids=list(PLACES))
def test_photos_that_lie_where_results_are_written_are_refused_and_nothing_is_touched(
    place: Callable[[Path], Path], predict: Infer, project: Path
) -> None:
    given, before = place(project), contents(project)
    answer = predict("--images", given)
    assert (
        answer.code == 2
        and "--images: " in refusal(answer.stderr)
        and "choose another --responses-dir" in answer.stderr
    )
    assert contents(project) == before


@pytest.mark.parametrize(
    ("folder", "responses"),
    [
        ("data", "data"),
        ("data", "data/train"),
        ("data", "data/train/topwear"),
        ("results", "."),
        ("results/mine", "."),
    ],
)
def test_photos_of_a_data_folder_that_lie_where_results_are_written_are_refused(
    folder: str,
    responses: str,
    data: Path,
    trained: Trained,
    call: Callable[..., Completed],
    tmp_path: Path,
) -> None:
    for split in ("train", "val"):
        shutil.copytree(data / "test", tmp_path / folder / split, copy_function=os.link)
    before = contents(tmp_path / folder)
    answer = call(
        infer,
        "--responses-dir",
        tmp_path / responses,
        *at(tmp_path / folder, trained.model, tmp_path / "cache"),
    )
    assert (
        answer.code == 2
        and "where infer writes its results; choose another --responses-dir"
        in refusal(answer.stderr)
    )
    assert contents(tmp_path / folder) == before


@pytest.mark.parametrize("responses", [".", "data/new"])
def test_results_may_lie_around_a_data_folder_and_beside_its_photos(
    responses: str, data: Path, trained: Trained, call: Callable[..., Completed], tmp_path: Path
) -> None:
    for split in ("train", "val"):
        shutil.copytree(data / "test", tmp_path / "data" / split, copy_function=os.link)
    for _ in range(2):
        answer = call(
            infer,
            "--responses-dir",
            tmp_path / responses,
            "--num-images",
            1,
            *at(tmp_path / "data", trained.model, tmp_path / "cache"),
        )
        assert answer.code == 0 and "Kept in" not in answer.stdout


def test_a_sheet_that_will_be_replaced_is_refused_but_a_photo_beside_it_is_not(
    data: Path, predict: Infer, tmp_path: Path
) -> None:
    shutil.copy(next((data / "test" / "topwear").iterdir()), tmp_path / "shirt.jpg")
    for _ in range(2):
        assert predict("--images", tmp_path / "shirt.jpg").code == 0
    assert f"--images: {tmp_path / 'contact_sheet.png'} " in refusal(
        predict("--images", tmp_path / "contact_sheet.png").stderr
    )


def test_without_a_checkpoint_train_has_to_run_first(
    data: Path, call: Callable[..., Completed], tmp_path: Path
) -> None:
    answer = call(infer, "--responses-dir", tmp_path, *at(data, tmp_path, tmp_path / "cache"))
    assert answer.code == 3 and "no checkpoint; run train first" in refusal(answer.stderr)


def test_photos_that_were_trained_on_are_counted_in_a_warning(
    data: Path, predict: Infer, tmp_path: Path
) -> None:
    shutil.copy(next((data / "train" / "topwear").iterdir()), tmp_path / "renamed.jpg")
    test_photo = next((data / "test" / "topwear").iterdir())
    answer = predict("--images", tmp_path / "renamed.jpg", test_photo)
    assert answer.code == 0
    assert refusal(answer.stderr).startswith("Warning: 1 of 2 photos were used for training; ")
    assert predict("--images", test_photo).stderr == ""


def rows_in(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def margin(answer: dict[str, Any]) -> float:
    first, second, *_ = sorted(answer["probabilities"].values(), reverse=True)
    return float(first - second)


def test_the_photos_to_label_next_are_listed_and_shown_in_their_order(
    data: Path, predict: Infer, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    for name in CLASSES:
        shutil.copytree(data / "test" / name, new / name)
    (new / "broken.jpg").write_bytes(b"no photo")
    shutil.copy(next((data / "train" / "topwear").iterdir()), new / "labelled.jpg")
    photo = sorted((new / "handbag").iterdir())[0]
    with Image.open(photo) as opened:
        opened.convert("RGB").save(new / "resaved.jpg", quality=80)
    answer = predict("--images", new, "--next", 6, "--sort", "--pictures", 0)
    assert answer.code == 0, answer.stderr
    table, answers = rows_in(tmp_path / "next.csv"), answers_in(tmp_path)
    by_file = {each["file"]: each for each in answers}
    assert len({row["file"] for row in table}) == 6 and len(answers) == 43
    for row in table:
        probabilities = by_file[row["file"]]["probabilities"]
        first, second, *_ = sorted(probabilities, key=lambda name: -probabilities[name])
        assert (row["class"], row["predicted"], row["second"]) == ("", first, second)
        assert float(row["probability"]) == pytest.approx(probabilities[first], abs=1e-6)
        assert float(row["second_probability"]) == pytest.approx(probabilities[second], abs=1e-6)
    listed = [margin(by_file[row["file"]]) for row in table]
    unlisted = {"broken.jpg", "labelled.jpg"}
    margins = sorted(margin(x) for x in answers if Path(x["file"]).name not in unlisted)
    assert listed[0] == margins[0] and max(listed) <= margins[POOL * 6]
    with Image.open(tmp_path / "next.png") as sheet:
        assert (sheet.width - pictures.GAP) // (pictures.CELL + pictures.GAP) == 3
    assert f"To label next: 6 photos in {tmp_path}/next.csv, shown on {tmp_path}/next.png." in (
        answer.stdout
    )
    left_out = r"^Not listed: 1 photo that .* trained on and [1-9] near duplicates? of other photos"
    assert re.search(left_out, answer.stdout, re.MULTILINE)
    images = [decoding.decode(Path(row["file"]), 64) for row in table]
    assert len(find_pairs(np.stack([compute_signature(image) for image in images]))) == 0
    assert all((tmp_path / each["sorted_to"]).exists() for each in answers if not each["error"])


def test_with_too_few_photos_all_are_listed_and_it_says_so(
    data: Path, predict: Infer, tmp_path: Path
) -> None:
    photos = sorted((data / "test" / "topwear").iterdir())[:2]
    answer = predict("--images", *photos, "--next", 50)
    assert answer.code == 0
    assert {row["file"] for row in rows_in(tmp_path / "next.csv")} == set(map(str, photos))
    assert "To label next: 2 photos in " in answer.stdout
    assert " (50 were asked for; there are no more)." in answer.stdout
    assert "Not listed" not in answer.stdout
    answer = predict("--images", next((data / "train" / "topwear").iterdir()), "--next", 50)
    assert answer.code == 0 and "To label next: 0 photos in " in answer.stdout
    assert rows_in(tmp_path / "next.csv") == [] and not (tmp_path / "next.png").exists()


def test_a_list_with_classes_filled_in_is_not_overwritten(
    data: Path, predict: Infer, tmp_path: Path
) -> None:
    arguments = "--images", data / "test" / "topwear", "--next", 2
    for _ in range(2):
        assert predict(*arguments).code == 0
    (tmp_path / "next_holiday.png").write_bytes(b"mine")
    with (tmp_path / "next.csv").open("a") as file:
        file.write("x.jpg,topwear\n")
    before = contents(tmp_path)
    answer = predict(*arguments)
    assert answer.code == 2 and f"{tmp_path / 'next.csv'}: infer did not write this" in refusal(
        answer.stderr
    )
    assert contents(tmp_path) == before
    assert predict("--images", data / "test" / "topwear").code == 0, "without a list"
    after = contents(tmp_path)
    assert {name for name in before if name.startswith("next")} == {
        name for name in after if before.get(name) == after[name] and name.startswith("next")
    }


def test_what_to_label_next_is_chosen_from_photos_that_are_named(predict: Infer) -> None:
    said = refusal(predict("--next", 5).stderr)
    assert "--next: name the photos to choose from with --images" in said
    assert "--next: 0 is out of range, expected at least 1" in refusal(predict("--next", 0).stderr)
