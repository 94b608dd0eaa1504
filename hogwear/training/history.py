"""What a run has achieved so far: running metrics, a row per epoch, and the best weights."""

from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Self

from torch import Tensor

from hogwear.evaluation import calibration, metrics
from hogwear.system.arrays import Float32Array, Int64Array
from hogwear.system.files import write_atomically
from hogwear.system.text import to_csv
from hogwear.training.hogwild import StepResult

CONFIDENT = 0.99  # accuracy of the answers whose probability is at least confidence_threshold


@dataclass
class RunningMetrics:
    """Sums over the training images of an epoch, or of a process, so far."""

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
class EpochRow:
    """The figures of an epoch; also the columns of metrics.csv."""

    epoch: int  # from 1, over all runs
    images: int
    lr: float  # at its end
    train_loss: float
    train_acc: float
    val_loss: float
    val_acc: float
    images_per_second: float


@dataclass(frozen=True)
class Best:
    """The best weights on the validation photos, and what was measured there."""

    epoch: int
    image_size: int
    val_loss: float
    val_acc: float
    temperature: float  # divides the logits, so that probabilities match accuracies
    confidence_threshold: float
    weights: dict[str, Tensor]

    @classmethod
    def measure(
        cls,
        weights: dict[str, Tensor],
        epoch: int,
        image_size: int,
        logits: Float32Array,
        labels: Int64Array,
    ) -> Self:
        """Validate and calibrate weights by their `logits`, (n, classes), for labels, (n,)."""
        temperature = calibration.fit_temperature(logits, labels)
        confidences = calibration.confidences(logits, temperature)
        is_right = logits.argmax(axis=1) == labels
        return cls(
            epoch=epoch,
            image_size=image_size,
            val_loss=metrics.cross_entropy(logits, labels),
            val_acc=metrics.accuracy(logits, labels),
            temperature=temperature,
            confidence_threshold=calibration.fit_threshold(CONFIDENT, confidences, is_right),
            weights=weights,
        )


@dataclass
class History:
    """All epochs of all runs into a checkpoint."""

    rows: list[EpochRow] = field(default_factory=list)
    best: Best | None = None

    def is_best(self, row: EpochRow) -> bool:
        """Whether an epoch has the highest validation accuracy so far; of equal ones, the last."""
        return self.best is None or row.val_acc >= self.best.val_acc

    def describe_best(self) -> str:
        """Of a run with at least one epoch."""
        assert self.best
        return f"validation accuracy {self.best.val_acc:.4f} (epoch {self.best.epoch})"

    def describe_last(self, total_epochs: int) -> str:
        """The last epoch, as a line to print."""
        row = self.rows[-1]
        best = " (best)" if self.best and self.best.epoch == row.epoch else ""
        return (
            f"epoch {row.epoch}/{total_epochs}: "
            f"train loss {row.train_loss:.3f}, train accuracy {row.train_acc:.3f}, "
            f"val loss {row.val_loss:.4f}, val accuracy {row.val_acc:.4f}{best}, "
            f"{row.images_per_second:.0f} images/s"
        )

    def write_csv(self, file: Path) -> None:
        """metrics.csv. OSError where it cannot be written."""
        header = [column.name for column in fields(EpochRow)]
        write_atomically(file, to_csv([header, *map(astuple, self.rows)]).encode())
