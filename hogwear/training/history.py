"""What a run has achieved so far: running metrics, a row per epoch, and the best weights."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from torch import Tensor

from hogwear.cluster.peers import SingleMachine
from hogwear.data.pixels import Pixels
from hogwear.evaluation import metrics, predict
from hogwear.networks.network import Network
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

    def add(self, result: StepResult) -> None:
        self.images += result.images
        self.loss += result.loss * result.images
        self.correct += result.correct


class TrainingMetrics:
    """The metrics of the current epoch, and of all that this process has trained."""

    def __init__(self, epoch: RunningMetrics | None = None) -> None:
        self.epoch = replace(epoch) if epoch else RunningMetrics()
        self.session = RunningMetrics()

    def add(self, result: StepResult) -> None:
        self.epoch.add(result)
        self.session.add(result)

    def add_seconds(self, since: float) -> float:
        """Count the time since then as training time; returns the present time."""
        now = time.monotonic()
        self.epoch.seconds += now - since
        self.session.seconds += now - since
        return now


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
    ) -> "Best":
        """Validate and calibrate weights by their `logits`, (n, classes), for labels, (n,)."""
        temperature = metrics.fit_temperature(logits, labels)
        confidence = metrics.confidences(logits, temperature)
        is_right = logits.argmax(axis=1) == labels
        return cls(
            epoch=epoch,
            image_size=image_size,
            val_loss=metrics.cross_entropy(logits, labels),
            val_acc=metrics.accuracy(logits, labels),
            temperature=temperature,
            confidence_threshold=metrics.fit_threshold(CONFIDENT, confidence, is_right),
            weights=weights,
        )

    def measure_again(
        self, net: Network, val: Pixels, workers: int, cluster: SingleMachine
    ) -> "Best":
        """The same weights with figures of other validation photos, at their own image size.

        The network is left with these weights. BadInput where its outputs are not finite.
        """
        net.load_state_dict(self.weights)
        logits = predict.predict_logits(net, val.images, val.rows, workers, cluster.heartbeat)
        logits, labels = cluster.all_gather([logits, val.labels])
        return self.measure(self.weights, self.epoch, self.image_size, logits, labels)


def is_better(row: EpochRow, best: Best) -> bool:
    """The selection of weights: by validation accuracy; of equal ones, the later."""
    return row.val_acc >= best.val_acc


@dataclass
class History:
    """All epochs of all runs into a checkpoint."""

    rows: list[EpochRow] = field(default_factory=list)
    best: Best | None = None

    def add(self, row: EpochRow, candidate: Callable[[], Best]) -> None:
        """Add the row of an epoch; `candidate` measures its weights if they are the new best."""
        self.rows.append(row)
        if self.best is None or is_better(row, self.best):
            self.best = candidate()

    def describe_best(self) -> str:
        """Of a run with at least one epoch."""
        assert self.best
        return f"validation accuracy {self.best.val_acc:.4f} (epoch {self.best.epoch})"

    def describe_last(self, total_epochs: int) -> str:
        """The last epoch as a line to print."""
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
        table = [
            [column.name for column in fields(EpochRow)],
            *(list(asdict(row).values()) for row in self.rows),
        ]
        write_atomically(file, to_csv(table).encode())
