"""A photo and what the network predicts for it, as text, as JSON and as rows of a CSV table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hogwear.system.arrays import UInt8Array
from hogwear.system.text import escape

TOP_CLASSES = 5


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo to predict: its pixels, or why it could not be read."""

    file: Path
    true_class: str | None  # where known
    image: UInt8Array | None  # (S, S, 3); dropped after prediction where no picture needs it
    error: str | None = None  # why it could not be read
    content_hash: bytes = b""  # where the photo is the user's own

    def with_image(self, decoded: UInt8Array | str | None) -> "Photo":
        """The same photo with these pixels, or without any: None, or why they cannot be read."""
        return replace(self, image=None if isinstance(decoded, str) else decoded)


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for one photo."""

    photo: Photo
    probabilities: dict[str, float]  # {class: 0..1}, sum 1, calibrated; empty without an image
    unsure: bool = False  # whether the probability is below the confidence threshold
    unknown: bool | None = None  # whether it is unlike the training photos; None: cannot tell
    sorted_to: str | None = None  # the path of its copy within the responses folder

    @cached_property
    def predicted(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def probability(self) -> float:
        """The probability of the predicted class."""
        return self.probabilities[self.predicted]

    @property
    def is_incorrect(self) -> bool:
        """Whether the true class is known and another one was predicted."""
        return self.photo.true_class not in (None, self.predicted)

    @property
    def doubt(self) -> str:
        """Why the predicted class may be wrong: "unknown", "unsure" or nothing."""
        return "unknown" if self.unknown else "unsure" * self.unsure

    def without_image(self) -> "Prediction":
        """The same, but it does not keep the pixels in memory."""
        return replace(self, photo=self.photo.with_image(None))

    def top_classes(self) -> list[tuple[str, float]]:
        """The most probable classes and their probabilities, in falling order."""
        return sorted(self.probabilities.items(), key=lambda item: -item[1])[:TOP_CLASSES]

    def line(self) -> str:
        """One line for a terminal."""
        if self.photo.error is not None:
            return escape(f"{'not readable':22}{self.photo.file}: {self.photo.error}")
        doubt = self.doubt and f"  {self.doubt}"
        incorrect = f"  incorrect (labelled {self.photo.true_class})" * self.is_incorrect
        return escape(
            f"{self.predicted:12} {self.probability:7.1%}  {self.photo.file}{doubt}{incorrect}"
        )

    def to_json(self) -> dict[str, Any]:
        """An entry of predictions.json, apart from its picture."""
        photo = self.photo
        entry: dict[str, Any] = {
            "file": str(photo.file),
            "true_class": photo.true_class,
            "error": photo.error,
            "sorted_to": self.sorted_to,
        }
        if photo.error is None:
            entry |= {
                "predicted": self.predicted,
                "probability": self.probability,
                "unsure": self.unsure,
                "unknown": self.unknown,
            }
        return entry | {"probabilities": self.probabilities}


def to_rows(predictions: Sequence[Prediction]) -> list[list[object]]:
    """The rows of predictions.csv: a header, then one per photo."""
    count = max(len(prediction.top_classes()) for prediction in predictions)
    columns = [f"{name}_{n}" for n in range(1, count + 1) for name in ("class", "probability")]
    first = ["file", "true_class", "error", "unsure", "unknown", "sorted_to"]
    rows: list[list[object]] = [[*first, *columns]]
    for prediction in predictions:
        photo = prediction.photo
        doubts = [None] * 2 if photo.error else [prediction.unsure, prediction.unknown]
        top = [x for name, share in prediction.top_classes() for x in (name, round(share, 6))]
        where = prediction.sorted_to
        rows.append([photo.file, photo.true_class, photo.error, *doubts, where, *top])
    return rows


def to_label_rows(predictions: Sequence[Prediction]) -> list[list[object]]:
    """The rows of next.csv: a header, then one per photo, with an empty class to fill in."""
    rows: list[list[object]] = [
        ["file", "class", "predicted", "probability", "second", "second_probability", "unknown"]
    ]
    for prediction in predictions:
        top = [x for name, share in prediction.top_classes()[:2] for x in (name, round(share, 6))]
        rows.append([prediction.photo.file, None, *top, prediction.unknown])
    return rows
