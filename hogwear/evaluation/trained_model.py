"""A trained network and its metadata from the checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hogwear.data.split_assignments import SplitVersion
from hogwear.evaluation import metrics
from hogwear.evaluation.prediction import Photo, Prediction
from hogwear.networks.network import Network
from hogwear.system.arrays import BoolArray, Float32Array, Float64Array, FloatArray, Int64Array

LEAST_AUROC = 0.85  # of the score of unlike photos: below it, no photo is called unknown


def find_reason_for_off(auroc: float | None) -> str:
    """Why no photo is called unknown, by the AUROC of novelty scores; empty if photos are."""
    if auroc is None:
        return "not tested, for want of classes or photos, or because of --arch tinyvgg"
    if auroc < LEAST_AUROC:
        return (
            f"AUROC {auroc:.2f}, for one class left out at a time; expected at least {LEAST_AUROC}"
        )
    return ""


@dataclass(frozen=True)
class TrainedModel:
    """The best network of a run, frozen, and what is known about it."""

    net: Network
    arch: str
    class_names: tuple[str, ...]
    image_size: int
    dtype: torch.dtype
    is_sample: bool  # whether it was trained on the built-in sample
    history: tuple[dict[str, Any], ...]  # one row per validation, as in metrics.csv
    hyperparameters: dict[str, Any]  # of the last run
    sha256: str  # of the checkpoint file
    split: SplitVersion  # of model/split.json
    trained_on: Int64Array  # (k,), contents.shorten_hashes of all photos it was ever trained on
    expected_acc: float | None  # by cross-validation of the closed-form classifier
    epoch: float  # that the weights are from; 0 is before the first step
    val_acc: float  # of these weights
    temperature: float  # divides the logits, to calibrate the probabilities; fitted on val
    confidence_threshold: float  # from this probability on, 99 % were correct on val
    novelty_quantiles: Tensor  # (k,), of the scores on val, in equal steps from 0 to 1
    novelty_auroc: float | None  # for classes that training left out; None where not measured

    @property
    def unknown_is_off(self) -> str:
        """Why no photo is called unknown; empty if photos are."""
        return find_reason_for_off(self.novelty_auroc)

    def novelty_threshold(self, rate: float) -> float:
        """The score above which this share of the photos of val is."""
        quantiles = self.novelty_quantiles.numpy()
        return float(np.interp(1 - rate, np.linspace(0, 1, len(quantiles)), quantiles))

    def is_unknown(self, logits: Float32Array, rate: float) -> BoolArray | None:
        """Whether each photo, by its logits, (n, classes), is of no known class: (n,).

        So is at most this share of the photos of val. None where `unknown_is_off`.
        """
        if self.unknown_is_off:
            return None
        is_above: BoolArray = self.net.novelty.score(logits) > self.novelty_threshold(rate)
        return is_above

    def predict(
        self, photos: Sequence[Photo], logits: Float32Array, unknown_rate: float
    ) -> list[Prediction]:
        """A prediction for every photo, in order; without probabilities for those without image.

        `logits` are those of the photos with an image, (n, classes).
        """
        is_unknown = self.is_unknown(logits, unknown_rate)
        probabilities, row, predictions = self.probabilities(logits).tolist(), count(), []
        for photo in photos:
            if photo.image is None:
                predictions.append(Prediction(photo, {}))
                continue
            at = next(row)
            by_class = dict(zip(self.class_names, probabilities[at], strict=True))
            unsure = max(by_class.values()) < self.confidence_threshold
            unknown = None if is_unknown is None else bool(is_unknown[at])
            predictions.append(Prediction(photo, by_class, unsure, unknown))
        return predictions

    def probabilities(self, logits: FloatArray) -> Float64Array:
        """(n, classes) logits -> calibrated probabilities."""
        return np.exp(metrics.log_softmax(logits / self.temperature))
