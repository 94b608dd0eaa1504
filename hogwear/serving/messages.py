"""What the application and an engine send each other, through a socket between two processes."""

from dataclasses import dataclass
from typing import Any

PREDICT, EXPLAIN = "predict", "explain"


@dataclass(frozen=True)
class Request:
    """A photo, and what to do with it."""

    number: int
    job: str  # PREDICT or EXPLAIN
    file: str  # what the client calls it
    content: bytes


@dataclass(frozen=True)
class Ready:
    """The first message of an engine: what it has loaded."""

    sha256: str  # of the checkpoint
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Failed:
    """Its first message instead: why the checkpoint cannot be used."""

    message: str
    exit_code: int


@dataclass(frozen=True)
class Answer:
    """The answer to the request with this number."""

    number: int
    entry: dict[str, Any]  # as in predictions.json; after EXPLAIN, only if it has an error
    picture: bytes | None = None  # after EXPLAIN: a PNG
