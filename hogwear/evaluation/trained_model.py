"""A trained network and its metadata from the checkpoint."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hogwear.data.split_assignments import SplitVersion
from hogwear.evaluation import metrics
from hogwear.networks.network import Network
from hogwear.system.arrays import Float64Array, FloatArray, Int64Array


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

    def probabilities(self, logits: FloatArray) -> Float64Array:
        """(n, classes) logits -> calibrated probabilities."""
        return np.exp(metrics.log_softmax(logits / self.temperature))
