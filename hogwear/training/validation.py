"""Validation: the photos of val, predicted by the present network, become a row of the history."""

from dataclasses import dataclass, replace

import numpy as np

from hogwear.cluster.peers import SingleMachine
from hogwear.data.pixels import Pixels
from hogwear.evaluation import predict
from hogwear.networks.network import Network
from hogwear.system.arrays import Float32Array, Int64Array
from hogwear.system.workers import Workers
from hogwear.training.history import Best, HistoryRow, RunningMetrics
from hogwear.training.run_state import RunState

HUGE = 1e30  # replaces an infinite logit, so that the validation loss is a number
Logits = tuple[Float32Array, Int64Array]  # (n, classes), and the labels, (n,)


@dataclass(frozen=True)
class Validator:
    """Validates a network between its steps; `workers` have a job "predict"."""

    net: Network
    state: RunState
    val: Pixels
    workers: Workers
    cluster: SingleMachine

    def predict(self) -> Logits:
        """The logits for the validation photos of all machines."""
        logits = predict.collect_logits(self.workers, len(self.val), self.cluster.heartbeat)
        logits = np.nan_to_num(logits, nan=0, posinf=HUGE, neginf=-HUGE)
        logits, labels = self.cluster.all_gather([logits, self.val.labels])
        return logits, labels

    def total(self, sums: RunningMetrics) -> RunningMetrics:
        """Those of all machines together."""
        mine = np.array([[sums.images, sums.loss, sums.correct]])
        images, loss, correct = self.cluster.all_gather([mine])[0].sum(axis=0).tolist()
        return RunningMetrics(int(images), loss, int(correct), sums.seconds)

    def record(self, row: HistoryRow, logits: Logits) -> None:
        """Add a row with these logits' figures to the history, which keeps the best weights."""
        weights = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        image_size = self.state.hyperparameters.image_size
        measured = Best.measure(weights, row.epoch, image_size, *logits)
        row = replace(row, val_loss=measured.val_loss, val_acc=measured.val_acc)
        self.state.history.add(row, measured)
