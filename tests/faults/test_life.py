"""The life of a project: photos come, go and change; train, eval and infer run, in any order.

Whatever happens, no file of the user's changes, no figure is of other photos than it says, and no photo that is tested was trained on.
Once with a trainer that only takes down what it is given, and once with real processes.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from helpers import Call, Completed, Start, Times, at, saved
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from PIL import Image

import eval
import infer
import model
import train
from hogwear.cluster.peers import SINGLE_MACHINE
from hogwear.data import decoding
from hogwear.data.array_file import ArrayFile
from hogwear.data.pixels import Pixels
from hogwear.evaluation import mistakes, pictures, predict, report
from hogwear.networks.parameters import OptimizerState
from hogwear.system import machine, signals
from hogwear.system.arrays import Float32Array, UInt8Array
from hogwear.system.artifacts import EVALUATION, PREDICTIONS, SPLIT
from hogwear.training.hogwild import StepResult
from hogwear.training.run_state import RunState
from hogwear.training.trainer import Trainer, create_schedule
from hogwear.training.validation import Validator

SIZE = 32
CLASSES = ("footwear", "handbag")
SPLITS = ("train", "val", "test")
FLAGS = ("--arch", "tinyvgg", "--image-size", SIZE, "--workers", 1, "--epochs", 1)
YEAR_2020 = 1577836800  # when all photos say that they were taken: no time tells them apart
REASONS = (  # for which a command may refuse; anything else is a mistake
    "no checkpoint", "too few photos", "photos to train on are gone", "were used for training", "no readable photo", "no photo could be read", "would end after",
    "not in .*split.json yet", "empty, but the checkpoint was trained on real photos", "infer did not write this",
)  # fmt: skip
Command = Callable[..., Completed]
Photo = tuple[str, str]  # its content, as hexadecimal digits, and its class


@dataclass
class Recorder:
    """Stands in for training and for the network, and records the photos that they get."""

    pixels: dict[str, UInt8Array]  # {content: (SIZE, SIZE, 3)}, of all photos there are
    fitted: list[
        tuple[list[Photo], list[Photo]]
    ]  # what fit was given to train on, and to validate with
    predicted: list[list[str]]  # contents
    forbidden: set[int]  # inodes that may not be opened, as after chmod 000
    interrupts = False  # whether the next fit stops half-way
    cache: Path | None = None  # to remove while the next fit runs

    def fit(self, trainer: Trainer, stop: signals.Stop, *others: object) -> None:
        """In place of Trainer.fit: one step per run, which changes the weights."""
        if self.cache:
            shutil.rmtree(self.cache)
        data, state = trainer.data, trainer.state
        self.fitted.append((self.photos(state, data.train), self.photos(state, data.val)))
        trainer.schedule, trainer.step = create_schedule(trainer), 1
        trainer.metrics.add(StepResult(images=1, loss=1.0, correct=1), seconds=1.0)
        workers: Any = None  # nothing is left for them to do
        trainer.validator = Validator(
            trainer.net, state, data.val, None, None, workers, SINGLE_MACHINE
        )

        def collect_logits(*arguments: object) -> Float32Array:
            return self.predict(trainer.net, data.val.images, data.val.rows)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(predict, "collect_logits", collect_logits)
            assert trainer.validator.validate_first()
            trainer.net.head.bias.data[0] = len(self.fitted)  # which weights these are
            trainer.optimizer.copy_(OptimizerState.create(trainer.net, 0))
            assert trainer.take_snapshot()
            if self.interrupts:
                stop.signal = signal.SIGINT
            else:
                assert trainer.validate_average()
                state.finished = True
        trainer.save()

    def photos(self, state: RunState, pixels: Pixels) -> list[Photo]:
        """The photos of a split, sorted; each copy is listed."""
        images = pixels.images[pixels.rows]
        contents = [bytes(content).hex() for content in pixels.hashes]
        for content, image in zip(contents, images, strict=True):
            assert np.array_equal(image, self.pixels[content]), "pixels of another photo"
        return sorted(
            (content, state.class_names[label])
            for content, label in zip(contents, pixels.labels, strict=True)
        )

    def predict(
        self, net: Any, images: ArrayFile | UInt8Array, rows: Any, *others: object
    ) -> Float32Array:
        """Logits that depend on the weights and on the photo only."""
        known = {image.tobytes(): content for content, image in self.pixels.items()}
        contents = [known[image.tobytes()] for image in images[rows]]
        self.predicted.append(contents)
        return np.array(
            [
                [0, 1] if self.answer(net.head.bias[0].item(), content) else [1, 0]
                for content in contents
            ],
            np.float32,
        )

    @staticmethod
    def answer(weights: float, content: str) -> int:
        """The class that these weights predict."""
        return hashlib.sha256(f"{weights:g} {content}".encode()).digest()[0] % 2

    def open(self, path: Path, *others: Any, opened: Any = decoding.open_photo) -> Any:
        if path.stat().st_ino in self.forbidden:
            raise PermissionError(13, os.strerror(13), str(path))
        return opened(path, *others)


class Life(RuleBasedStateMachine):
    """`pool`: photos to add; `command`: runs a script; `recorder`: replaces training, if given."""

    pool: list[bytes]
    command: Command
    recorder: Recorder | None
    succeeded: dict[str, int]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="life"))
        self.data, self.model, self.cache, self.responses = (
            self.folder / name for name in ("data", "model", "cache", "responses")
        )
        self.model.mkdir()
        self.to_come = list(self.pool)
        self.named = 0
        self.files: dict[Path, bytes] = {}  # of the user's, as they have to be
        self.trained: set[str] = set()  # contents that the present weights were ever trained on
        self.last: Any = None  # the photos of the last fit, while a checkpoint goes on from it
        self.sides: dict[str, str] = {}  # as split.json was
        if self.recorder:
            self.recorder.fitted.clear()
            self.recorder.forbidden.clear()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    # --- what the user does

    @initialize(divided=st.booleans())
    def begin(self, divided: bool) -> None:
        """Start with class folders to be split, or with the user's own train, val and test."""
        self.places = (
            [Path(split, name) for split in SPLITS for name in CLASSES]
            if divided
            else [Path(name) for name in CLASSES]
        )
        for place in self.places:
            for _ in range(3 if divided else 8):
                self.put(place)
        self.a_picture_is_put_where_results_are_written("results/photo1.png")
        self.train_is_called(fresh=False, interrupt=False, cache_goes=False)

    def put(self, place: Path, content: bytes | None = None) -> None:
        content = self.to_come.pop() if content is None else content
        self.named += 1
        self.write(self.data / place / f"{self.named}.bmp", content)

    def write(self, file: Path, content: bytes) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        os.utime(file, (YEAR_2020, YEAR_2020))
        self.files[file] = content

    def photos(self) -> list[Path]:
        return sorted(file for file in self.files if file.is_relative_to(self.data))

    def move(self, file: Path, to: Path) -> None:
        file.rename(to)
        self.files[to] = self.files.pop(file)

    @precondition(lambda self: len(self.to_come) > 2)
    @rule(draw=st.data(), count=st.integers(1, 2))
    def photos_come(self, draw: st.DataObject, count: int) -> None:
        for _ in range(count):
            self.put(draw.draw(st.sampled_from(self.places)))

    @rule(draw=st.data())
    def a_photo_is_copied(self, draw: st.DataObject) -> None:
        self.put(
            draw.draw(st.sampled_from(self.places)),
            self.files[draw.draw(st.sampled_from(self.photos()))],
        )

    @rule(draw=st.data())
    def a_photo_goes(self, draw: st.DataObject) -> None:
        file = draw.draw(st.sampled_from(self.photos()))
        if len([other for other in self.photos() if other.parent == file.parent]) > 1:
            if self.recorder:
                self.recorder.forbidden.discard(file.stat().st_ino)
            file.unlink()
            del self.files[file]

    @rule(draw=st.data())
    def a_photo_is_moved(self, draw: st.DataObject) -> None:
        """To another class or split, or to another name only."""
        file, place = (
            draw.draw(st.sampled_from(self.photos())),
            draw.draw(st.sampled_from(self.places)),
        )
        if len([other for other in self.photos() if other.parent == file.parent]) > 1:
            self.named += 1
            self.move(file, self.data / place / f"{self.named}.bmp")

    @rule(draw=st.data())
    def two_folders_are_exchanged(self, draw: st.DataObject) -> None:
        """Afterwards their files have the same names, sizes and times, as far as there were as many."""
        one, other = draw.draw(
            st.lists(st.sampled_from(self.places), min_size=2, max_size=2, unique=True)
        )
        for place in one, other:
            for number, file in enumerate(
                sorted(file for file in self.photos() if file.parent == self.data / place)
            ):
                self.move(file, file.with_name(f"exchanged-{number}.bmp"))
        files = {
            place: [file for file in self.photos() if file.parent == self.data / place]
            for place in (one, other)
        }
        away = self.folder / "away"
        (self.data / one).rename(away)
        (self.data / other).rename(self.data / one)
        away.rename(self.data / other)
        contents = {
            self.data / to / file.name: self.files.pop(file)
            for place, to in ((one, other), (other, one))
            for file in files[place]
        }
        self.files |= contents

    @rule()
    def the_data_folder_is_renamed(self) -> None:
        self.named += 1
        moved = self.data.rename(self.folder / f"data{self.named}")
        self.files = {
            moved / file.relative_to(self.data) if file.is_relative_to(self.data) else file: content
            for file, content in self.files.items()
        }
        self.data = moved

    @rule()
    def the_cache_is_deleted(self) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)

    @precondition(lambda self: self.recorder is not None)
    @rule(draw=st.data())
    def some_photos_may_not_be_read(self, draw: st.DataObject) -> None:
        self.forbid(draw.draw(st.lists(st.sampled_from(self.photos()), max_size=2)))

    def forbid(self, files: list[Path]) -> None:
        """Let these photos be unreadable, and no others; as with any chmod, their ctime changes."""
        assert self.recorder
        before = self.recorder.forbidden
        self.recorder.forbidden = {file.stat().st_ino for file in files}
        for file in self.photos():
            if file.stat().st_ino in before ^ self.recorder.forbidden:
                file.chmod(file.stat().st_mode)

    @rule(
        name=st.sampled_from(
            (
                "results/photo1.png",
                "results/1_handbag.png",
                "contact_sheet_holiday.png",
                "contact_sheet.png",
            )
        )
    )
    def a_picture_is_put_where_results_are_written(self, name: str) -> None:
        """Add a picture, or change the one that is there."""
        self.write(self.responses / name, self.to_come[0][:500])

    # --- what the user calls

    @rule(
        fresh=st.sampled_from((False, False, False, True)),
        interrupt=st.booleans(),
        cache_goes=st.booleans(),
    )
    def train_is_called(self, fresh: bool, interrupt: bool, cache_goes: bool) -> None:
        if self.recorder:
            self.recorder.interrupts, self.recorder.cache = (
                interrupt,
                self.cache if cache_goes else None,
            )
        answer = self.call(train, *FLAGS, *["--fresh"] * fresh)
        if answer.code in (0, 130):
            self.look_at_run(answer, fresh)

    def look_at_run(self, answer: Completed, fresh: bool) -> None:
        sides = (
            json.loads((self.model / SPLIT).read_text())["split"]
            if (self.model / SPLIT).exists()
            else {}
        )
        assert self.sides.items() <= sides.items(), "a photo that had a side has another"
        self.sides = sides
        state = saved(self.model)
        if not self.recorder:
            return
        on, validated = self.recorder.fitted[-1]
        there_are = self.readable()
        assert {*on, *validated} <= there_are
        if fresh:
            self.trained, self.last = set(), None
        self.trained |= {content for content, _ in on}
        assert not self.trained & {content for content, _ in validated}
        given = {photo for photo in there_are if self.side_of(photo) == "train"}
        assert given <= set(on), "a photo that can be read is left out"
        changed = self.last is not None and self.last != (on, validated)
        assert ("The photos have changed since the last run" in answer.stdout) == changed
        self.last = on, validated
        weights = state["best"]["weights"]["head.bias"][0].item()
        right = [
            self.recorder.answer(weights, content) == CLASSES.index(name)
            for content, name in validated
        ]
        assert state["best"]["val_acc"] == pytest.approx(np.mean(right)), (
            "an accuracy of other photos than there are"
        )

    def readable(self) -> set[Photo]:
        assert self.recorder
        return {
            (content_of(self.files[file]), file.parent.name)
            for file in self.photos()
            if self.can_be_read(file)
        }

    def side_of(self, photo: Photo) -> str | None:
        """Its split; None if that depends on which of several copies is read."""
        assert self.recorder
        files = [
            file
            for file in self.photos()
            if (content_of(self.files[file]), file.parent.name) == photo
        ]
        if len(self.places) == len(CLASSES):
            return self.sides.get(photo[0])
        folders = {file.parent.parent.name for file in files if self.can_be_read(file)}
        return folders.pop() if len(folders) == 1 else None

    @rule()
    def all_three_are_called(self) -> None:
        self.train_is_called(fresh=False, interrupt=False, cache_goes=False)
        self.eval_is_called()
        self.infer_is_called()

    @rule()
    def eval_is_called(self) -> None:
        (self.model / EVALUATION).unlink(missing_ok=True)
        if self.call(eval).code:
            assert not (self.model / EVALUATION).exists()
            return
        results = json.loads((self.model / EVALUATION).read_text())
        checkpoint = (self.model / "checkpoint.pt").read_bytes()
        assert results["checkpoint"]["sha256"] == hashlib.sha256(checkpoint).hexdigest()
        trained_on = set(saved(self.model)["trained_on"].tolist())
        tested = [file for file in self.photos() if self.is_in_test(file)]
        contents = [content_of(self.files[file]) for file in tested if self.can_be_read(file)]
        unseen = [content for content in contents if short_of(content) not in trained_on]
        assert results["num_examples"] == len(unseen)
        assert results["trained_on"] + results["skipped"] == len(tested) - len(unseen)
        if self.recorder:
            assert not set(self.recorder.predicted[-1]) & self.trained
            assert sorted(self.recorder.predicted[-1]) == sorted(unseen)

    def can_be_read(self, file: Path) -> bool:
        return self.recorder is None or file.stat().st_ino not in self.recorder.forbidden

    def is_in_test(self, file: Path) -> bool:
        """Whether it counts as a test photo; in class folders, only one that can be read has a split."""
        if len(self.places) == len(CLASSES):
            return self.can_be_read(file) and self.sides.get(content_of(self.files[file])) == "test"
        return file.parent.parent.name == "test"

    @rule()
    def infer_is_called(self) -> None:
        if self.call(infer, "--responses-dir", self.responses, "--num-images", 2).code:
            return
        for answer in json.loads((self.responses / PREDICTIONS).read_text()):
            content = content_of(self.files[Path(answer["file"])])
            assert (
                content not in self.trained
                and answer["true_class"] == Path(answer["file"]).parent.name
            )

    @precondition(lambda self: (self.model / "checkpoint.pt").exists())
    @rule(script=st.sampled_from((train, eval, infer)))
    def the_mount_is_missing(self, script: Any) -> None:
        before = contents_of(self.model)
        data, self.data = self.data, self.folder / "nothing"
        self.data.mkdir(exist_ok=True)
        answer = self.call(script, *(FLAGS if script is train else ()))
        self.data = data
        assert answer.code == 2 and "empty" in answer.stderr and contents_of(self.model) == before

    def call(self, script: Any, *arguments: object) -> Completed:
        answer = self.command(script, *at(self.data, self.model, self.cache), *arguments)
        assert answer.code in ((0, 130) if answer.code in (0, 130) else (2, 3)), answer
        if answer.code in (2, 3):
            *warnings, refused = answer.stderr.splitlines()
            assert any(re.search(reason, refused) for reason in REASONS), answer
            assert refused.startswith(script.__name__) and all(
                line.startswith("Warning: ") for line in warnings
            ), answer
        self.succeeded[script.__name__] = self.succeeded.get(script.__name__, 0) + (
            answer.code == 0
        )
        return answer

    @invariant()
    def no_file_of_the_users_is_changed(self) -> None:
        assert {
            file: file.read_bytes() if file.exists() else None for file in self.files
        } == self.files
        assert (
            {file for file in self.data.rglob("*") if file.is_file()} == set(self.photos())
            if self.data.exists()
            else True
        )


def content_of(content: bytes) -> str:
    return decoding.hash_content(content).hex()


def short_of(content: str) -> int:
    return int.from_bytes(bytes.fromhex(content)[:8], "little", signed=True)


def contents_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


@pytest.fixture(scope="module")
def pool(photo_files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Real photos, all with the same number of bytes."""
    folder = tmp_path_factory.mktemp("pool")
    photos: dict[bytes, None] = {}
    for file in photo_files:
        with Image.open(file) as photo:
            photo.convert("RGB").resize((SIZE, SIZE)).save(folder / "photo.bmp")
        photos[(folder / "photo.bmp").read_bytes()] = None
    return list(photos)


def live(
    pool: list[bytes], command: Command, recorder: Recorder | None, sequences: int, steps: int
) -> dict[str, int]:
    """How often each command has succeeded in several lives."""
    succeeded: dict[str, int] = {}
    life = type(
        "ALife",
        (Life,),
        {
            "pool": pool,
            "command": staticmethod(command),
            "recorder": recorder,
            "succeeded": succeeded,
        },
    )
    checks = [
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.filter_too_much,
        hypothesis.HealthCheck.data_too_large,
    ]
    run_state_machine_as_test(
        life,
        settings=hypothesis.settings(
            max_examples=sequences, stateful_step_count=steps, deadline=None, derandomize=True, database=None,
            suppress_health_check=checks, phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        ),
    )  # fmt: skip
    return succeeded


def test_whatever_happens_no_photo_is_lost_and_no_test_photo_was_trained_on(
    pool: list[bytes], call: Call, times: Times, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pixels = {}
    for content in pool:
        (tmp_path / "photo.bmp").write_bytes(content)
        pixels[content_of(content)] = decoding.decode(tmp_path / "photo.bmp", SIZE)
    recorder = Recorder(pixels, [], [], set())
    monkeypatch.setattr(
        Trainer, "fit", lambda trainer, *arguments: recorder.fit(trainer, *arguments)
    )
    monkeypatch.setattr(predict, "predict_logits", recorder.predict)
    monkeypatch.setattr(decoding, "open_photo", recorder.open)
    monkeypatch.setattr(machine, "cpus", lambda: 1)
    monkeypatch.setattr(model, "choose_dtype", lambda cache_dir: torch.float32)
    monkeypatch.setattr(report, "write_report", lambda *arguments: "none")
    monkeypatch.setattr(mistakes, "find_worst_mistakes", lambda *arguments: [])
    monkeypatch.setattr(
        pictures, "draw_prediction", lambda prediction, image: prediction.predicted.encode()
    )
    monkeypatch.setattr(pictures, "draw_sheet", lambda photos: b"sheet")
    succeeded = live(pool, call, recorder, times(4, 200), 12)
    assert min(succeeded.get(script, 0) for script in ("train", "eval", "infer")) >= times(1, 50)


@pytest.mark.long
def test_whatever_happens_every_command_works_or_says_why_not(
    pool: list[bytes], start: Start, times: Times
) -> None:
    def command(script: Any, *arguments: object) -> Completed:
        running = start(f"{script.__name__}.py", *arguments)
        code = running.code()
        return Completed(code, running.stdout, running.stderr)

    succeeded = live(pool, command, None, times(2, 20), 2)
    assert sum(succeeded.values()) >= times(2, 40)
