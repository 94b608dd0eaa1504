"""infer.py: a picture and an answer for every photo, and a reason where there is none."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CLASSES, Answer, Script, Trained, at, refusal
from PIL import Image

import infer
from hogwear import pictures
from hogwear.decoding import decode
from hogwear.pictures import Prediction

Infer = Callable[..., Answer]


@pytest.fixture(scope="module")
def five(
    data: Path, trained: Trained, start: Callable[..., Script], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Script]:
    """responses/ after a run with the default settings, over pictures of an earlier one; and the process."""
    folder = tmp_path_factory.mktemp("responses")
    (folder / "results").mkdir()
    (folder / "results" / "stale_topwear.png").touch()
    return folder, start(
        "infer.py", "--responses-dir", folder, "--seed", 3, *at(data, trained.model, trained.cache)
    ).ok()


@pytest.fixture
def predict(data: Path, trained: Trained, call: Callable[..., Answer], tmp_path: Path) -> Infer:
    """predict("--num-images", 2): infer.py into tmp_path."""
    return lambda *arguments: call(
        infer, "--responses-dir", tmp_path, *at(data, trained.model, trained.cache), *arguments
    )


def answers_in(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "predictions.json").read_text())
    return found


def pictures_in(folder: Path) -> set[str]:
    return {file.name for file in (folder / "results").iterdir()}


def test_five_photos_of_the_test_split_give_five_pictures_that_open(five: tuple[Path, Script], data: Path) -> None:
    folder, script = five
    answers = answers_in(folder)
    assert len(answers) == len({answer["file"] for answer in answers}) == 5
    assert all(Path(answer["file"]).is_relative_to(data / "test") for answer in answers)
    assert pictures_in(folder) == {f"{Path(answer['file']).stem}_{answer['predicted']}.png" for answer in answers}
    assert pictures_in(folder) == {answer["picture"] for answer in answers}, "the stale one is gone"
    for name in pictures_in(folder):
        with Image.open(folder / "results" / name) as picture:
            picture.load()
            assert picture.format == "PNG" and min(picture.size) > 300
    assert f"5 pictures in {folder}/results" in script.stdout and script.stderr == ""


def test_answers_are_probabilities_with_the_likeliest_class_on_top(five: tuple[Path, Script]) -> None:
    for answer in answers_in(five[0]):
        assert set(answer["probabilities"]) == set(CLASSES) and sum(answer["probabilities"].values()) == pytest.approx(
            1
        )
        assert (
            answer["probability"]
            == max(answer["probabilities"].values())
            == answer["probabilities"][answer["predicted"]]
        )
        assert answer["true_class"] == Path(answer["file"]).parent.name and answer["error"] is None


def test_the_answers_are_printed_and_wrong_ones_marked(five: tuple[Path, Script]) -> None:
    lines = five[1].stdout.splitlines()
    for answer in answers_in(five[0]):
        [line] = [line for line in lines if answer["file"] in line]
        assert line.startswith(answer["predicted"]) and f"{answer['probability']:.1%}" in line
        assert ("WRONG" in line) == (answer["predicted"] != answer["true_class"])


def test_a_seed_gives_the_same_photos_again_and_another_gives_others(
    five: tuple[Path, Script], predict: Infer, tmp_path: Path
) -> None:
    assert predict("--seed", 3).code == 0
    assert answers_in(tmp_path) == answers_in(five[0])
    assert predict("--seed", 4, "--num-images", 2).code == 0
    assert len(pictures_in(tmp_path)) == len(answers_in(tmp_path)) == 2
    assert not {answer["file"] for answer in answers_in(tmp_path)} <= {answer["file"] for answer in answers_in(five[0])}


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
        "file": broken, "true_class": None, "probabilities": {}, "picture": None,
        "error": "not one of JPEG, PNG, WEBP, BMP, GIF",
    }  # fmt: skip
    assert f"{broken}: not one of JPEG" in answer.stdout
    pictures = {row["picture"] for row in rows.values()} - {None}
    assert len(pictures) == 4 and pictures == pictures_in(tmp_path)
    shoe = rows[str(tmp_path / "mine" / "shoe.jpg")]
    assert shoe["true_class"] is None and rows[str(others[0])]["true_class"] == "footwear"
    assert {f"shoe_{shoe['predicted']}.png", f"shoe_{shoe['predicted']}_2.png"} <= pictures


def test_a_photo_in_the_wrong_folder_is_marked_wrong(data: Path, predict: Infer, tmp_path: Path) -> None:
    (tmp_path / "eyewear").mkdir()
    shutil.copy(sorted((data / "test" / "bottomwear").iterdir())[0], tmp_path / "eyewear" / "skirt.jpg")
    answer = predict("--images", tmp_path / "eyewear")
    [row] = answers_in(tmp_path)
    assert row["predicted"] != row["true_class"] == "eyewear"
    assert "WRONG: it is eyewear" in answer.stdout


@pytest.mark.parametrize(("true_class", "wrong"), [("a", False), ("b", True), (None, False)])
def test_right_and_wrong_pictures_look_different(
    true_class: str | None, wrong: bool, photo_files: list[Path], tmp_path: Path
) -> None:
    prediction = Prediction(photo_files[0], true_class, None, {"a": 0.75, "b": 0.25})
    assert (prediction.predicted, prediction.is_wrong) == ("a", wrong)
    png = pictures.draw_prediction(prediction, decode(photo_files[0], pictures.PHOTO_SIDE))
    with Image.open(io.BytesIO(png)) as picture:
        colours = {colour for count, colour in picture.convert("RGB").getcolors(1 << 24) or () if count > 1000}
    right, warning = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
    assert (right in colours, warning in colours) == (not wrong, wrong)


def test_the_longest_names_a_disk_can_hold_get_their_picture(photo_files: list[Path], tmp_path: Path) -> None:
    prediction = Prediction(Path("写" * 83 + ".jpg"), None, None, {"バッグ" * 28: 1.0})
    taken: set[str] = set()
    for _ in range(2):
        pictures.free_name(tmp_path, pictures.stem_of(prediction), taken).touch()
    assert len(list(tmp_path.iterdir())) == 2


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


def test_without_a_checkpoint_it_asks_for_a_training_run(
    data: Path, call: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = call(infer, "--responses-dir", tmp_path, *at(data, tmp_path, tmp_path / "cache"))
    assert answer.code == 3 and "no checkpoint; run train first" in refusal(answer.stderr)


def test_a_certain_answer_is_not_cut_off_at_the_edge(photo_files: list[Path], tmp_path: Path) -> None:
    certain = Prediction(photo_files[0], None, None, {"topwear": 1.0, "footwear": 0.0})
    png = pictures.draw_prediction(certain, decode(photo_files[0], pictures.PHOTO_SIDE))
    with Image.open(io.BytesIO(png)) as picture:
        assert (np.asarray(picture.convert("L"))[:, -5:] == 255).all(), "an empty margin on the right"
