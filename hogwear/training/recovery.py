"""Recovery from divergence: snapshots of what has been learned, and the signs of trouble."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from torch import Tensor, nn

from hogwear.networks.parameters import OptimizerState
from hogwear.system.errors import BadInput
from hogwear.training.history import RunningMetrics
from hogwear.training.hyperparameters import MAX_ROLLBACKS

DIVERGED = 5.0  # times the loss of guessing: with a larger mean loss, training has diverged


@dataclass(frozen=True)
class Snapshot:
    """A copy of an unfinished run's progress, taken while no worker was training."""

    images_seen: int  # by this machine, in this run
    epochs_done: float
    metrics: RunningMetrics  # since the last validation
    weights: dict[str, Tensor]
    optimizer: OptimizerState

    @classmethod
    def take(
        cls,
        net: nn.Module,
        optimizer: OptimizerState,
        images_seen: int,
        epochs_done: float,
        metrics: RunningMetrics,
    ) -> Self:
        """Copy everything, so that nothing changes it later."""
        return cls(
            images_seen,
            epochs_done,
            replace(metrics),
            {name: tensor.clone() for name, tensor in net.state_dict().items()},
            optimizer.clone(),
        )

    @property
    def is_finite(self) -> bool:
        """Whether no weight and no momentum is NaN or infinite."""
        weights = all(bool(tensor.isfinite().all()) for tensor in self.weights.values())
        return weights and self.optimizer.is_finite

    def state_dict(self) -> dict[str, Any]:
        """What checkpoint_schema.py describes."""
        return {
            "images_seen": self.images_seen,
            "epochs_done": self.epochs_done,
            "metrics": asdict(self.metrics),
            "weights": self.weights,
            "momentum": self.optimizer.momentum,
            "average": self.optimizer.average,
        }

    @classmethod
    def load_state_dict(cls, state: dict[str, Any]) -> Self:
        """The inverse of `state_dict`."""
        optimizer = OptimizerState(state["momentum"], state["average"])
        metrics, weights = RunningMetrics(**state["metrics"]), state["weights"]
        return cls(state["images_seen"], state["epochs_done"], metrics, weights, optimizer)

    def averaged_weights(self, net: nn.Module) -> dict[str, Tensor]:
        """The weights with their average in place of those that are trained.

        `net` is any network with these parameters.
        """
        net.load_state_dict(self.weights)
        with self.optimizer.averaged(net):
            return {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def restore(self, net: nn.Module, optimizer: OptimizerState) -> None:
        """Write it back into the network and the optimizer's state, in place."""
        net.load_state_dict(self.weights)
        optimizer.copy_(self.optimizer)


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
