"""The worst mistakes of an evaluation, with the regions of each photo that led to them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hogwear.data.photos import Split
from hogwear.data.pixels import Pixels
from hogwear.evaluation import metrics
from hogwear.evaluation.evaluation import Evaluation
from hogwear.networks.network import Network
from hogwear.system.arrays import FloatArray, UInt8Array

WORST = 12  # mistakes in the report
MISLABELLED = 0.9  # from this probability on, an incorrect prediction suggests a wrong label


@dataclass(frozen=True, eq=False)
class Mistake:
    """A photo that was predicted incorrectly."""

    file: Path
    true_class: str
    predicted: str
    probability: float  # of the predicted class, calibrated
    image: UInt8Array  # (S, S, 3)
    activation_map: FloatArray  # (H, W), of the predicted class

    @property
    def maybe_mislabelled(self) -> bool:
        """Whether the network is so confident that the label may be wrong."""
        return self.probability >= MISLABELLED

    def to_json(self) -> dict[str, Any]:
        """An entry of eval_results.json."""
        names = "true_class", "predicted", "probability", "maybe_mislabelled"
        return {"file": str(self.file)} | {name: getattr(self, name) for name in names}


def find_worst_mistakes(
    net: Network, evaluation: Evaluation, pixels: Pixels, split: Split
) -> list[Mistake]:
    """The WORST mistakes: those whose true class has the lowest probabilities."""
    labels, predicted = evaluation.labels, evaluation.predicted
    log_probabilities = metrics.log_softmax(evaluation.logits / evaluation.temperature)
    incorrect = np.flatnonzero(~evaluation.correct)
    of_label = log_probabilities[incorrect, labels[incorrect]]
    worst = incorrect[np.argsort(of_label, kind="stable")][:WORST]
    if not len(worst):
        return []
    images, classes = pixels.images[pixels.rows[worst]], predicted[worst]
    with torch.inference_mode():
        maps = net.class_activation_map(torch.from_numpy(images), torch.from_numpy(classes))
    return [
        Mistake(
            split.paths[pixels.rows[i]],
            evaluation.class_names[labels[i]],
            evaluation.class_names[predicted[i]],
            float(np.exp(log_probabilities[i, predicted[i]])),
            image,
            activation_map,
        )
        for i, image, activation_map in zip(worst, images, maps.numpy(), strict=True)
    ]
