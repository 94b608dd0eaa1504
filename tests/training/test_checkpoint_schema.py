"""A checkpoint with a valid digest and invalid content is refused in one line."""

import copy
import hashlib
import io
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CLASSES, Call, at, refusal, saved, stopped_after

import eval
import infer
import model
import train
from hogwear.system import flags
from hogwear.system.artifacts import CHECKPOINT
from hogwear.system.errors import BadInput
from hogwear.training import checkpoint
from hogwear.training.checkpoint import Checkpoint

State = dict[str, Any]
Key = tuple[Any, ...]  # the way through the dicts and lists of a state
REMOVED, EXTRA = object(), object()
NEVER = [
    -1,
    -0.5,
    10**5000,
    math.nan,
    math.inf,
    b"x",
    ["x", "x"],
    {"x": 1},
    {1: 1},
    torch.zeros(2, 3),
    torch.zeros(0),
    REMOVED,
    EXTRA,
]
OPTIONAL = (  # last parts of keys whose values may be None
    *("job_id", "total_images", "start_loss", "ridge", "forecast"),
    *("lr", "epochs", "time_budget", "train_loss", "train_acc"),
)


@dataclass(frozen=True)
class Written:
    """The checkpoints that a real run of TinyVGG has written."""

    cache: Path
    states: dict[str, State]

    def state(self, name: str) -> State:
        return copy.deepcopy(self.states[name])


@pytest.fixture(scope="module")
def written(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A run of two epochs that is interrupted in the second one, then resumed to its end."""
    folder, states = tmp_path_factory.mktemp("written"), {}
    small = (
        "--arch",
        "tinyvgg",
        "--image-size",
        32,
        "--epochs",
        2,
        "--batch-size",
        8,
        "--workers",
        2,
        *at(data, folder / "model", folder / "cache"),
    )
    with stopped_after(batches=20):
        train.main(flags.parse(train.Settings, [*map(str, small)]))
    states["interrupted"] = saved(folder / "model")
    train.main(flags.parse(train.Settings, [*map(str, small)]))
    states["finished"] = saved(folder / "model")
    return Written(folder / "cache", states)


def inner(state: Any, key: Key) -> Any:
    for step in key:
        state = state[step]
    return state


def changed(state: State, key: Key, value: object) -> State:
    """Change a value of the state in place, remove it, or add a key to it; returns the state."""
    if value is REMOVED:
        del inner(state, key[:-1])[key[-1]]
    elif value is EXTRA:
        inner(state, key)["extra"] = 1
    else:
        inner(state, key[:-1])[key[-1]] = value
    return state


def keys(value: Any, way: Key = ()) -> Iterator[Key]:
    """All keys of a state, at every depth."""
    inside: Any = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, part in inside:
        yield (*way, key)
        yield from keys(part, (*way, key))


def invalid_values(state: State, key: Key) -> Iterator[Any]:
    """Values that train never writes there."""
    was = inner(state, key)
    for value in NEVER:
        inside = dict if value is EXTRA else object
        if isinstance(was, inside) and not (value is REMOVED and isinstance(key[-1], int)):
            yield value
    if key != ("job_id",) and key[0] != "class_names":
        yield "x"
    if was is not None and (key[-1] not in OPTIONAL or (key[0], key[-1]) == ("history", "lr")):
        yield None
    if not isinstance(was, bool):
        yield True


def problem(state: State) -> str:
    """Why it is refused; empty if it is accepted."""
    try:
        model.validate_checkpoint(Checkpoint(Path("model/checkpoint.pt"), state, ""))
    except BadInput as error:
        assert str(error).isprintable() and len(str(error)) < 400, error
        assert str(error).startswith("model/checkpoint.pt: not what train writes (") and str(
            error
        ).endswith("or train with --fresh")
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["finished", "interrupted"])
def test_what_train_has_written_is_accepted(name: str, written: Written) -> None:
    state = written.state(name)
    assert problem(state) == "" and state["finished"] == (name == "finished")


@pytest.mark.parametrize("name", ["finished", "interrupted"])
def test_an_invalid_value_of_any_key_is_noticed_and_named(name: str, written: Written) -> None:
    state, tried, missed = written.state(name), 0, []
    for key in [key for key in keys(state) if key != ("format",)]:
        for value in invalid_values(state, key):
            said = problem(changed(copy.deepcopy(state), key, value))
            tried += 1
            if str(key[-1]) not in said and str(key[0]) not in said:
                missed.append((key, type(value), said))
    assert tried > 500 and not missed, missed[:20]


def put(*key: Any, value: Any) -> Callable[[State], object]:
    return lambda state: changed(state, key, value)


def fill(*key: Any, value: float) -> Callable[[State], object]:
    return lambda state: inner(state, key).view(-1)[-1:].fill_(value)


def cast(*key: Any, dtype: torch.dtype) -> Callable[[State], object]:
    return lambda state: changed(state, key, inner(state, key).to(dtype))


HEAD = ("best", "weights", "head.weight")
IS = "best.weights.head.weight is float32 of shape"
EXPECTED = "expected finite float32 numbers of shape"
FORECAST = {"accuracy": 0.8, "loss": 0.5, "photos": 120}
EDGES: dict[str, Callable[[State], object]] = {
    "hyperparameters.arch is 'resnet50'": put("hyperparameters", "arch", value="resnet50"),
    "hyperparameters.image_size is 31,": put("hyperparameters", "image_size", value=31),
    "hyperparameters.image_size is 100000": put("hyperparameters", "image_size", value=100000),
    "hyperparameters.image_size is 32.0": put("hyperparameters", "image_size", value=32.0),
    "hyperparameters.epochs is -1": put("hyperparameters", "epochs", value=-1),
    "hyperparameters.epochs is 1000000000": put("hyperparameters", "epochs", value=10**9),
    "hyperparameters.time_budget is 4611686018427387904": put(
        "hyperparameters", "time_budget", value=2**62
    ),
    "hyperparameters.lr is 10.0": put("hyperparameters", "lr", value=10.0),
    "hyperparameters.no_mirror is 1, expected True or False": put(
        "hyperparameters", "no_mirror", value=1
    ),
    "hyperparameters.momentum is 1.0": put("hyperparameters", "momentum", value=1.0),
    "class_names is of type list": put("class_names", value=[*CLASSES[:4], CLASSES[0]]),
    "class_names is of type list, expected a list of two or more different": put(
        "class_names", value=["one"]
    ),
    "printable names": put("class_names", 0, value="\x1b[2J"),
    "expected a list of two": put("class_names", 0, value=""),
    f"{IS} (5, 640), {EXPECTED} (4, 640)": put("class_names", value=list(CLASSES[:4])),
    f"{IS} (5, 640), {EXPECTED} (5, 2560)": put("hyperparameters", "image_size", value=64),
    f"{IS} (5, 640), expected finite": fill(*HEAD, value=math.nan),
    "expected finite float32": fill(*HEAD, value=math.inf),
    "best.weights.head.weight is float64": cast(*HEAD, dtype=torch.float64),
    "best.weights.head.weight is bfloat16": cast(*HEAD, dtype=torch.bfloat16),
    f"{IS} (3200,)": lambda state: changed(state, HEAD, inner(state, HEAD).flatten()),
    "best.temperature is 0.0": put("best", "temperature", value=0.0),
    "best.temperature is 1e-300": put("best", "temperature", value=1e-300),
    "best.confidence_threshold is 1.02": put("best", "confidence_threshold", value=1.02),
    "best.val_acc is 1.5": put("best", "val_acc", value=1.5),
    "best.epoch is 2.5, expected a number, at least 0 and at most 2": put(
        "best", "epoch", value=2.5
    ),
    "best.image_size is 64": put("best", "image_size", value=64),
    "row 2 of history.epoch is 2.0, expected a number, at least 3": put(
        "history", 0, "epoch", value=3.0
    ),
    "row 1 of history.stage is 'refit', expected one of initial, closed form, hogwild": put(
        "history", 0, "stage", value="refit"
    ),
    "row 1 of history.val_acc is 1.5": put("history", 0, "val_acc", value=1.5),
    "best.epoch is missing": put("best", value={}),
    "best is None, expected a dict": put("best", value=None),
    "history is of type list, expected a list of validations": put("history", value=[]),
    "forecast.accuracy is 1.5": put("forecast", value=FORECAST | {"accuracy": 1.5}),
    "forecast.photos is 0": put("forecast", value=FORECAST | {"photos": 0}),
    "forecast.loss is missing": put("forecast", value={"accuracy": 0.8, "photos": 120}),
    "ridge is 0.0": put("ridge", value=0.0),
    "start_loss is -0.5": put("start_loss", value=-0.5),
    "rollbacks is 3": put("rollbacks", value=3),
    "photos.val.sha256 is": put("photos", "val", "sha256", value="g" * 64),
    "photos.val.count is 0": put("photos", "val", "count", value=0),
}
FINISHED: dict[str, Callable[[State], object]] = EDGES | {
    "snapshot is None, expected a dict": put("finished", value=False),
    "snapshot is float32 of shape (1, 1), expected None": put("snapshot", value=torch.zeros(1, 1)),
}


def momentum(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], object]:
    """Change the momentum, (2, 6215)."""
    key = ("snapshot", "momentum")
    return lambda state: changed(state, key, change(inner(state, key)))


INTERRUPTED: dict[str, Callable[[State], object]] = {
    "snapshot is of type dict, expected None": put("finished", value=True),
    "snapshot is None, expected a dict": put("snapshot", value=None),
    "snapshot.momentum is float32 of shape (2, 6215), expected finite": fill(
        "snapshot", "momentum", value=math.nan
    ),
    "snapshot.momentum is float32 of shape (6215,)": momentum(lambda m: m[0]),
    "snapshot.momentum is float32 of shape (0, 6215)": momentum(lambda m: m[:0]),
    "snapshot.momentum is float32 of shape (2, 6214)": momentum(lambda m: m[:, 1:]),
    "snapshot.momentum is None": put("snapshot", "momentum", value=None),
    "snapshot.average is float32 of shape (6215,), expected finite": fill(
        "snapshot", "average", value=math.inf
    ),
    "snapshot.average is float32 of shape (1,)": put("snapshot", "average", value=torch.zeros(1)),
    "snapshot.weights.head.bias is float32 of shape (5,), expected finite": fill(
        "snapshot", "weights", "head.bias", value=math.nan
    ),
    "snapshot.metrics.correct is 1, expected an integer, at least 0 and at most 0": (
        lambda state: inner(state, ("snapshot", "metrics")).update(images=0, correct=1)
    ),
}


def test_a_forecast_is_accepted(written: Written) -> None:
    assert problem(written.state("finished") | {"forecast": FORECAST, "ridge": 0.4}) == ""


@pytest.mark.parametrize(("said", "change"), FINISHED.items(), ids=list(FINISHED))
def test_a_value_out_of_range_is_named_with_what_was_expected(
    said: str, change: Callable[[State], object], written: Written
) -> None:
    change(state := written.state("finished"))
    assert said in problem(state)


@pytest.mark.parametrize(("said", "change"), INTERRUPTED.items(), ids=list(INTERRUPTED))
def test_a_value_out_of_range_in_an_interrupted_run_is_named_too(
    said: str, change: Callable[[State], object], written: Written
) -> None:
    change(state := written.state("interrupted"))
    assert said in problem(state)


# --- the commands


def write(state: Any, folder: Path) -> Path:
    """Write it as a checkpoint with a valid digest."""
    folder.mkdir()
    torch.save(state, body := io.BytesIO())
    (folder / CHECKPOINT).write_bytes(body.getvalue() + hashlib.sha256(body.getvalue()).digest())
    return folder


def invalid_states(written: Written) -> dict[str, State]:
    """{description: invalid state}: each key removed, and each value of FINISHED."""
    states: dict[str, State] = {}
    for name in ("finished", "interrupted"):
        state = written.state(name)
        tops = [
            key
            for key in keys(state)
            if len(key) == 1
            or (key[0] in ("hyperparameters", "best", "snapshot", "photos") and len(key) == 2)
        ]
        states |= {
            f"{name} without {key}": changed(copy.deepcopy(state), key, REMOVED) for key in tops
        }
    for said, change in FINISHED.items():
        change(state := written.state("finished"))
        states[said] = state
    return states


def test_train_eval_and_infer_refuse_an_invalid_checkpoint_in_one_line_that_names_it(
    written: Written, data: Path, photo_files: list[Path], call: Call, tmp_path: Path
) -> None:
    wrong = []
    for number, (what, state) in enumerate(invalid_states(written).items()):
        folder = write(state, tmp_path / str(number))
        places = at(data, folder, written.cache)
        for script, more in (
            (train, ()),
            (eval, ()),
            (infer, ("--responses-dir", tmp_path / "r", "--images", photo_files[0])),
        ):
            answer = call(script, *more, *places)
            if (
                answer.code != 2
                or answer.stdout.count("\n") > 1
                or f"{folder}/{CHECKPOINT}: not " not in refusal(answer.stderr)
            ):
                wrong.append((what, script.__name__, answer))
        assert [file.name for file in folder.iterdir() if file.name != ".lock"] == [CHECKPOINT], (
            "no file is moved or written"
        )
    assert not wrong, wrong[:5]


def test_any_changed_byte_under_a_right_digest_is_refused_or_does_no_harm(
    written: Written, tmp_path: Path
) -> None:
    folder, refused, random_ = (
        write(written.state("interrupted"), tmp_path / "model"),
        0,
        random.Random(0),
    )
    body = (folder / CHECKPOINT).read_bytes()[: -checkpoint.DIGEST_SIZE]
    for place in random_.sample(range(len(body)), 100) + random_.sample(range(5000), 200):
        changed = (
            body[:place] + bytes([body[place] ^ 1 << random_.randrange(8)]) + body[place + 1 :]
        )
        try:
            model.validate_checkpoint(
                checkpoint.parse(folder / CHECKPOINT, changed + hashlib.sha256(changed).digest())
            )
        except BadInput as error:
            assert f"{folder}/{CHECKPOINT}: not " in str(error)
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("script", [eval, infer, train])
def test_weights_so_large_that_outputs_overflow_are_refused(
    script: Any,
    written: Written,
    data: Path,
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = written.state("finished")
    for name, weights in state["best"]["weights"].items():
        weights.fill_(3e38 if name.endswith("weight") else 0)
    state["photos"]["val"]["sha256"] = "0" * 64  # so that train measures them again, too
    monkeypatch.chdir(tmp_path)
    answer = call(script, *at(data, write(state, tmp_path / "model"), written.cache))
    assert (
        answer.code == 2
        and "NaN or infinite: its weights are unusable" in answer.stderr
        and "nan" not in answer.stdout
    )
