"""Validation: refit the head to the current features, predict the photos of val, and calibrate."""

from dataclasses import dataclass, replace

import numpy as np

from hogwear.cluster.peers import SingleMachine
from hogwear.data.pixels import Pixels
from hogwear.evaluation import calibration, predict
from hogwear.networks.network import Network
from hogwear.system.arrays import Float32Array, Int64Array
from hogwear.system.workers import Workers
from hogwear.training.heads import HeadFitter, scale_head
from hogwear.training.history import (
    CLASSES_CHANGED,
    CLOSED_FORM,
    INITIAL,
    Best,
    HistoryRow,
    RunningMetrics,
)
from hogwear.training.passes import TrunkOutputs
from hogwear.training.run_state import RunState

HUGE = 1e30  # replaces an infinite logit, so that the validation loss is a number


@dataclass(frozen=True)
class Validator:
    """Validates the network while no worker is training, and adds a row to the history.

    `workers` must have a job "predict" and those of `heads`. Only a pretrained network has `heads`
    and a `trunk`: the trunk's activations for the photos of val, from which "predict" starts.
    """

    net: Network
    state: RunState
    val: Pixels
    heads: HeadFitter | None
    trunk: TrunkOutputs | None
    workers: Workers
    cluster: SingleMachine

    def validate_first(self) -> bool:
        """Validate the weights that a run starts from. False if a stop was requested before.

        A new run first fits both heads of a pretrained network, and so does one whose classes have
        changed. Another later run refits the head, and validates it, only if the training photos
        have changed since the run before.
        """
        state, heads = self.state, self.heads
        if state.history.best:
            if heads and state.train_photos_changed:
                return self.validate(HistoryRow(state.history.epochs, CLOSED_FORM))
            return True
        row = HistoryRow(0.0, CLOSED_FORM if heads else INITIAL)
        if state.initial:
            row = HistoryRow(state.initial.epoch, CLASSES_CHANGED)
        is_calibrated = not heads or state.ridge is None
        if heads:
            solved = heads.fit_heads(self.workers, state.ridge)
            if not solved:
                return False
            classifier, speed = solved
            state.forecast, state.ridge = classifier.forecast, classifier.ridge
            state.novelty_auroc = heads.measure_novelty(classifier.ridge)
            row = replace(row, images_per_second=speed)
        self.measure(row, is_calibrated)
        return True

    def validate(self, row: HistoryRow) -> bool:
        """Refit the head to the current features, validate it, and add the result to `row`.

        False if a stop was requested before.
        """
        if self.heads:
            assert self.state.ridge
            if not self.heads.refit_head(self.workers, self.state.ridge):
                return False
        self.measure(row, is_calibrated=not self.heads)
        return True

    def measure(self, row: HistoryRow, is_calibrated: bool) -> None:
        """Predict, and record. A head whose logits may have any scale is calibrated before that."""
        logits, labels = self.predict()
        if not is_calibrated:
            scale = 1 / calibration.fit_any_temperature(logits, labels)
            scale_head(self.net.head, scale)
            self.net.novelty.scale_(scale)
            logits *= np.float32(scale)
        self.record(row, logits, labels)

    def predict(self) -> tuple[Float32Array, Int64Array]:
        """The logits, (n, classes), and labels, (n,), of the validation photos of all machines."""
        if self.trunk:
            self.trunk.computing.run(self.workers, self.cluster, lambda: False)
        logits = predict.collect_logits(self.workers, len(self.val), self.cluster.heartbeat)
        logits = np.nan_to_num(logits, nan=0, posinf=HUGE, neginf=-HUGE)
        logits, labels = self.cluster.all_gather([logits, self.val.labels])
        return logits, labels

    def record(self, row: HistoryRow, logits: Float32Array, labels: Int64Array) -> None:
        """Add a row to the history, with loss and accuracy of these logits, (n, classes).

        The weights are kept if they are the best so far.
        """
        weights = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        image_size = self.state.hyperparameters.image_size
        measured = Best.measure(weights, row.epoch, image_size, logits, labels)
        row = replace(row, val_loss=measured.val_loss, val_acc=measured.val_acc)
        self.state.history.add(row, measured)

    def total(self, sums: RunningMetrics) -> RunningMetrics:
        """The training metrics of all machines together; `seconds` are those of this machine."""
        mine = np.array([[sums.images, sums.loss, sums.correct]])
        images, loss, correct = self.cluster.all_gather([mine])[0].sum(axis=0).tolist()
        return RunningMetrics(int(images), loss, int(correct), sums.seconds)
