"""Recovery from divergence: snapshots of what has been learned, and the signs of trouble."""

import math
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor, nn

from hogwear.system.errors import BadInput
from hogwear.training.history import RunningMetrics
from hogwear.training.hyperparameters import MAX_ROLLBACKS

DIVERGED = 5.0  # times the loss of guessing: with a larger mean loss, training has diverged


@dataclass(frozen=True)
class Snapshot:
    """A copy of what has been learned, taken while no worker was training."""

    images_seen: int  # by this machine, in this run
    epochs_done: float
    metrics: RunningMetrics  # of the current epoch
    weights: dict[str, Tensor]
    momentum: Tensor | None  # (workers, trained parameters); None once a run is finished

    @classmethod
    def take(
        cls,
        net: nn.Module,
        momentum: Tensor,
        images_seen: int,
        num_photos: int,
        metrics: RunningMetrics,
    ) -> Self:
        """Copy the weights, the momentum and the metrics; an epoch has `num_photos` photos."""
        return cls(
            images_seen=images_seen,
            epochs_done=images_seen / num_photos,
            metrics=replace(metrics),
            weights={name: tensor.clone() for name, tensor in net.state_dict().items()},
            momentum=momentum.clone(),
        )

    @property
    def is_finite(self) -> bool:
        """Whether no weight and no momentum is NaN or infinite."""
        tensors = (*self.weights.values(), self.momentum)
        return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor is not None)

    def restore(self, net: nn.Module, momentum: Tensor) -> None:
        """Write it back into the network and the momentum, in place."""
        net.load_state_dict(self.weights)
        if self.momentum is not None:
            momentum.copy_(self.momentum)


class DivergenceDetector:
    """The mean loss of about the last ten batches, and whether it means divergence."""

    def __init__(self, num_classes: int) -> None:
        self.mean_loss = 0.0
        self.limit = DIVERGED * math.log(num_classes)

    def add(self, loss: float) -> None:
        self.mean_loss += 0.1 * (loss - self.mean_loss)

    @property
    def diverged(self) -> bool:
        return not self.mean_loss <= self.limit  # true for NaN, too


class TrainingDiverged(BadInput):
    """Training diverged again after MAX_ROLLBACKS rollbacks."""

    def __init__(self, loss: float, lr: float, images_seen: int) -> None:
        super().__init__(
            f"training diverged {MAX_ROLLBACKS + 1} times (loss {loss:.1f}), last with a learning "
            f"rate of {lr:g}: start over with a smaller one, --fresh --lr {lr / 10:g}; "
            f"the checkpoint is from before, after {images_seen} images"
        )
