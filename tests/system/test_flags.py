"""Command lines: where a value comes from, and what a wrong one is answered with."""

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from helpers import Call, Completed, refusal

import eval
import infer
import train
from hogwear.commands import doctor, export
from hogwear.system import flags

VALUES = {
    "epochs": (3, 4),
    "lr": (0.5, 0.25),
    "arch": ("tinyvgg", "efficientnet_lite0"),
    "model_dir": (Path("a"), Path("b")),
}
WRONG = [
    ("epochs", "many"), ("epochs", "1.5"), ("epochs", "-1"), ("image_size", "16"),
    ("image_size", "4096"), ("workers", "0"), ("workers", "two"), ("batch_size", "0"), ("lr", "nan"), ("lr", "inf"),
    ("lr", "0"), ("lr", "fast"), ("momentum", "1"), ("momentum", "-0.1"), ("seed", "-1"), ("seed", str(2**64)),
    ("arch", "resnet50"), ("max_megapixels", "0"), ("max_megabytes", "-1"),
]  # fmt: skip
Refuse = Callable[..., str]


@pytest.fixture
def refuse(call: Callable[..., Completed]) -> Refuse:
    """The one line with which a command line of train.py is refused."""

    def refuse(*arguments: str) -> str:
        answer = call(train, *arguments, main=lambda settings: None)
        assert answer.code == 2, answer
        return refusal(answer.stderr)

    return refuse


@pytest.mark.parametrize("name", VALUES)
def test_a_flag_beats_the_environment_which_beats_the_default(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = VALUES[name]
    default = getattr(flags.parse(train.Settings, []), name)
    assert default not in (first, second)
    monkeypatch.setenv(f"HOGWEAR_{name.upper()}", str(first))
    assert getattr(flags.parse(train.Settings, []), name) == first
    assert (
        getattr(flags.parse(train.Settings, [f"--{name.replace('_', '-')}", str(second)]), name)
        == second
    )


@pytest.mark.parametrize("name", [*VALUES, "fresh"])
def test_an_empty_variable_counts_as_unset(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"HOGWEAR_{name.upper()}", "")
    assert flags.parse(train.Settings, []) == train.Settings()


@pytest.mark.parametrize(
    ("word", "value"), [("1", True), ("yes", True), ("0", False), ("no", False)]
)
def test_a_switch_is_a_word_in_the_environment(
    word: str, value: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOGWEAR_FRESH", word)
    assert flags.parse(train.Settings, []).fresh is value
    assert flags.parse(train.Settings, ["--fresh"]).fresh


def test_several_values_are_separated_by_colons_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOGWEAR_IMAGES", "a.jpg:b")
    assert flags.parse(infer.Settings, []).images == (Path("a.jpg"), Path("b"))
    assert flags.parse(infer.Settings, ["--images", "c", "d"]).images == (Path("c"), Path("d"))


def test_a_flag_with_several_values_may_be_given_several_times() -> None:
    twice = ["--rename", "a=b", "c=d", "--rename", "e=f"]
    assert flags.parse(train.Settings, twice).rename == ("a=b", "c=d", "e=f")


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_named_in_one_line(
    name: str, value: str, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag, variable = f"--{name.replace('_', '-')}", f"HOGWEAR_{name.upper()}"
    line = refuse(f"{flag}={value}")
    assert line.startswith(f"train.py: {flag}: ") and value in line
    monkeypatch.setenv(variable, value)
    line = refuse()
    assert line.startswith(f"train.py: {variable}: ") and value in line


@pytest.mark.parametrize("value", ["9" * 20, "-" + "9" * 20, "1e400"])
@pytest.mark.parametrize(
    "script", [train, eval, infer, doctor, export], ids=lambda script: script.__name__
)
def test_a_number_that_is_too_large_or_too_small_is_refused_in_one_line(
    script: Any, value: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = [f.name for f in fields(script.Settings) if flags.value_type(f) in (int, float)]
    assert "min_count" in numbers
    for name in numbers:
        flag, variable = f"--{name.replace('_', '-')}", f"HOGWEAR_{name.upper()}"
        answer = call(script, f"{flag}={value}", main=lambda settings: None)
        assert answer.code == 2 and f": {flag}: " in refusal(answer.stderr)
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            answer = call(script, main=lambda settings: None)
        assert answer.code == 2 and f": {variable}: " in refusal(answer.stderr)


@pytest.mark.parametrize("arguments", [["--epoch", "3"], ["--epochs"], ["photo.jpg"], ["--frehs"]])
def test_an_unknown_or_incomplete_flag_is_named_in_one_line(
    arguments: list[str], refuse: Refuse
) -> None:
    line = refuse(*arguments)
    assert arguments[0] in line and "train.py --help" in line


def test_a_switch_refuses_another_word(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOGWEAR_FRESH", "maybe")
    assert "HOGWEAR_FRESH: 'maybe'" in refuse()


@pytest.mark.parametrize("script", [train, eval, infer], ids=lambda script: script.__name__)
def test_help_shows_every_flag_with_its_default_and_how_to_name_its_variable(
    script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        flags.parse(script.Settings, ["--help"])
    text = capsys.readouterr().out
    assert exit.value.code == 0
    assert set(re.findall(r"^  --([a-z-]+)", text, re.MULTILINE)) == {
        "version",
        *(f.name.replace("_", "-") for f in fields(script.Settings)),
    }
    assert "HOGWEAR_<FLAG>" in text
    for setting in fields(script.Settings):
        if isinstance(setting.default, (int, Path)) and not isinstance(setting.default, bool):
            assert f"(default: {setting.default})" in " ".join(text.split())


OUT_OF_MEMORY = "memory ran out: use fewer --workers, a smaller --batch-size or --image-size"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "photo.jpg"),
            2,
            "train.py: photo.jpg: No such file or directory\n",
        ),
        (
            OSError(28, "No space left on device", "a"),
            2,
            "train.py: a: No space left on device; free some space, or choose another folder\n",
        ),
        (MemoryError(), 2, f"train.py: {OUT_OF_MEMORY}\n"),
        (
            RuntimeError("alloc_cpu.cpp: can't allocate memory: you tried to allocate 9 bytes"),
            2,
            f"train.py: {OUT_OF_MEMORY}\n",
        ),
        (
            RuntimeError(
                "unable to mmap 9 bytes from file </torch_1>: Cannot allocate memory (12)"
            ),
            2,
            f"train.py: {OUT_OF_MEMORY}\n",
        ),
        (RuntimeError("could not create a primitive\n"), 2, f"train.py: {OUT_OF_MEMORY}\n"),
        (
            ImportError("libtorch_cpu.so: failed to map segment from shared object"),
            2,
            f"train.py: {OUT_OF_MEMORY}\n",
        ),
        (OSError(12, "Cannot allocate memory"), 2, f"train.py: {OUT_OF_MEMORY}\n"),
    ],
)
def test_a_system_error_is_one_line_too(
    error: BaseException, code: int, line: str, call: Callable[..., Completed]
) -> None:
    def main(settings: train.Settings) -> None:
        raise error

    assert call(train, main=main) == Completed(code, "", line)


def test_a_programming_error_keeps_its_traceback(call: Callable[..., Completed]) -> None:
    def main(settings: train.Settings) -> None:
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        call(train, main=main)
