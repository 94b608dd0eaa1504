"""What a run has achieved so far: running metrics, a row per validation, and the best weights."""

from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from hogwear.evaluation import calibration, metrics
from hogwear.networks.novelty import Novelty
from hogwear.system.arrays import Float32Array, Int64Array
from hogwear.system.files import write_atomically
from hogwear.system.text import to_csv
from hogwear.training.discriminant import Forecast
from hogwear.training.hogwild import StepResult

CONFIDENT = 0.99  # accuracy of the answers whose probability is at least confidence_threshold
QUANTILES = 201  # that are kept of scores: every half per cent
STAGES = ("initial", "closed form", "hogwild", "classes changed")
INITIAL, CLOSED_FORM, HOGWILD, CLASSES_CHANGED = STAGES


@dataclass
class RunningMetrics:
    """Sums over the images trained on since the last validation, or by this process."""

    images: int = 0
    loss: float = 0.0
    correct: int = 0
    seconds: float = 0.0

    def add(self, result: StepResult, seconds: float) -> None:
        self.images += result.images
        self.loss += result.loss * result.images
        self.correct += result.correct
        self.seconds += seconds


@dataclass(frozen=True)
class HistoryRow:
    """The figures of a validation; also the columns of metrics.csv."""

    epoch: float  # passes over the training photos, of all runs; 0 is before the first step
    stage: str  # one of STAGES
    images: int = 0  # trained on since the row before
    lr: float = 0.0  # at the last of them
    # Means over these images, by the head that gradient descent trains: not comparable with val
    train_loss: float | None = None
    train_acc: float | None = None
    val_loss: float = 0.0  # calibrated
    val_acc: float = 0.0
    images_per_second: float = 0.0


@dataclass(frozen=True)
class Best:
    """The best weights on the validation photos, and what was measured there."""

    epoch: float
    image_size: int
    val_loss: float  # cross-entropy of the calibrated probabilities
    val_acc: float
    temperature: float  # divides the logits, so that probabilities match accuracies
    confidence_threshold: float
    novelty_quantiles: Tensor  # (QUANTILES,), of the scores of networks/novelty.py
    weights: dict[str, Tensor]

    @classmethod
    def measure(
        cls,
        weights: dict[str, Tensor],
        epoch: float,
        image_size: int,
        logits: Float32Array,
        labels: Int64Array,
    ) -> Self:
        """Validate and calibrate weights by their `logits`, (n, classes), for labels, (n,)."""
        temperature = calibration.fit_temperature(logits, labels)
        confidences = calibration.confidences(logits, temperature)
        is_right = logits.argmax(axis=1) == labels
        scores = Novelty.of(weights).score(logits)
        quantiles = np.quantile(scores, np.linspace(0, 1, QUANTILES)).astype(np.float32)
        return cls(
            epoch=epoch,
            image_size=image_size,
            val_loss=metrics.cross_entropy(logits / temperature, labels),
            val_acc=metrics.accuracy(logits, labels),
            temperature=temperature,
            confidence_threshold=calibration.fit_threshold(CONFIDENT, confidences, is_right),
            novelty_quantiles=torch.from_numpy(quantiles),
            weights=weights,
        )


@dataclass
class History:
    """All validations of all runs into a checkpoint."""

    rows: list[HistoryRow] = field(default_factory=list)
    best: Best | None = None

    @property
    def epochs(self) -> float:
        """Passes over the training photos, of all runs, at the last validation."""
        return self.rows[-1].epoch if self.rows else 0.0

    def add(self, row: HistoryRow, measured: Best) -> None:
        """Add a row. The weights that were measured are kept if their loss is the lowest so far.

        Loss, not accuracy: on a few hundred photos, accuracy is mostly chance, and the loss tells
        networks apart whose accuracies are equal (docs/decisions/fine-tuning.md).
        """
        self.rows.append(row)
        if self.best is None or measured.val_loss < self.best.val_loss:
            self.best = measured

    def describe_best(self) -> str:
        """Of a run with at least one validation."""
        assert self.best
        best = self.best
        loss, accuracy = f"validation loss {best.val_loss:.4f}", f"accuracy {best.val_acc:.4f}"
        return f"{loss}, {accuracy} (epoch {best.epoch:.4g})"

    def describe_last(self, forecast: Forecast | None = None) -> str:
        """The last row, as a line to print."""
        row = self.rows[-1]
        what, expected, speed = row.stage, "", ""
        if row.stage == HOGWILD:
            what, speed = f"epoch {row.epoch:.4g}", f", {row.images_per_second:.0f} images/s"
        elif forecast:
            expected = f"expected accuracy {forecast.accuracy:.3f} (cross-validation), "
        best = " (best)" if self.best and self.best.val_loss == row.val_loss else ""
        validation = f"val loss {row.val_loss:.4f}, val accuracy {row.val_acc:.4f}{best}"
        return f"{what}: {expected}{validation}{speed}"

    def write_csv(self, file: Path) -> None:
        """metrics.csv. OSError where it cannot be written."""
        header = [column.name for column in fields(HistoryRow)]
        write_atomically(file, to_csv([header, *map(astuple, self.rows)]).encode())
