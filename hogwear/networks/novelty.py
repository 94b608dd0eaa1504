"""How unlike the training photos a photo is, from its logits alone.

The score is a relative Mahalanobis distance (arXiv 2106.09022): the squared distance of the photo's
features from the nearest class, minus that from the mean of all classes. With A, (D, D), the
regularised covariance within classes, and M, (classes, D), their means, minus the mean of these
means, the distances are

    (x - m) inv(A) (x - m)'    and    x inv(A + M'M / classes) x'.

Both contain x inv(A) x', which cancels. All that remains of x are the products z = M inv(A) x',
which a linear discriminant classifier computes anyway: its logits are z - diagonal(P) / 2, where
P = M inv(A) M', divided by a temperature. By the Woodbury identity, the score is

    min(diagonal(P) - 2 z) + z' inv(classes I + P) z,

again divided by the temperature. It beat all others in docs/decisions/unknown.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hogwear.system.arrays import Float32Array


class Novelty(nn.Module):
    """Computes the score from logits. Unless it was fitted, that is -2 times the largest logit."""

    offset: Tensor  # (classes,)
    curvature: Tensor  # (classes, classes)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(num_classes))
        self.register_buffer("curvature", torch.zeros(num_classes, num_classes))

    def forward(self, logits: Tensor) -> Tensor:
        """(B, classes) logits of the head -> (B,) scores; higher is more unlike."""
        x = logits + self.offset
        return ((x @ self.curvature) * x).sum(1) - 2 * logits.amax(1)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> "Novelty":
        """That of a network with these weights."""
        novelty = cls(len(weights["novelty.offset"]))
        novelty.offset.copy_(weights["novelty.offset"])
        novelty.curvature.copy_(weights["novelty.curvature"])
        return novelty

    def score(self, logits: Float32Array) -> Float32Array:
        """The same for arrays: (n, classes) -> (n,)."""
        scores: Float32Array = self(torch.from_numpy(logits)).numpy()
        return scores

    def set_(self, weights: "NoveltyWeights") -> None:
        self.offset.copy_(torch.from_numpy(weights.offset))
        self.curvature.copy_(torch.from_numpy(weights.curvature))

    def scale_(self, factor: float) -> None:
        """Follow a head whose logits are multiplied by a factor, as the scores then are."""
        self.offset.mul_(factor)
        self.curvature.div_(factor)


@dataclass(frozen=True)
class NoveltyWeights:
    """The buffers of `Novelty`."""

    offset: Float32Array
    curvature: Float32Array

    @classmethod
    def fit(cls, products: Tensor, temperature: float) -> "NoveltyWeights":
        """From P, (classes, classes), and the temperature of the logits."""
        count = len(products)
        regularised = products.double() + count * torch.eye(count, dtype=torch.float64)
        curvature = temperature * torch.linalg.inv(regularised)
        offset = products.diagonal() / (2 * temperature)
        return cls(offset.numpy(), curvature.float().numpy())
