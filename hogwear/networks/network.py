"""The interface of a network. model.py has the architectures."""

import torch
from torch import Tensor, nn

from hogwear.networks.novelty import Novelty


class Network(nn.Module):
    """An image classifier in three parts: a frozen trunk, a trained tail, and a linear head.

    A pretrained network has a second head, the training head, through which gradient descent trains
    the tail. Its first head is fitted in closed form (docs/decisions/fine-tuning.md).

    It takes letterboxed RGB pixels, (B, S, S, 3) uint8, normalises them itself, and returns
    (B, num_classes) float32 logits.
    """

    default_lr: float  # peak learning rate
    dtype: torch.dtype = torch.float32  # of trunk and tail
    pretrained: bool  # whether its features are useful before any training
    head: nn.Linear  # the classifier; its weights are never pretrained
    training_head: nn.Linear  # only in a pretrained network
    novelty: Novelty  # computes from the logits how unlike the training photos a photo is

    def trunk(self, pixels: Tensor) -> Tensor:
        """(B, S, S, 3) uint8, or float in 0..255 -> activations in the network's compute dtype."""
        raise NotImplementedError

    def tail(self, x: Tensor) -> Tensor:
        """Activations of the trunk -> (B, D) float32 features, the input of the head."""
        raise NotImplementedError

    def trunk_shape(self, image_size: int) -> tuple[int, int, int]:
        """(H, W, C) of the trunk's activations for a photo of this size."""
        raise NotImplementedError

    def features(self, pixels: Tensor) -> Tensor:
        """(B, S, S, 3) pixels -> (B, D) float32 features, with gradients of the tail only."""
        with torch.no_grad():
            x = self.trunk(pixels)
        return self.tail(x)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.features(pixels))

    def training_logits(self, pixels: Tensor) -> Tensor:
        """(B, S, S, 3) pixels -> (B, num_classes) float32 logits of the training head."""
        with torch.no_grad():
            x = self.trunk(pixels)
        return self.training_tail(x)

    def training_tail(self, x: Tensor) -> Tensor:
        """Activations of the trunk -> logits of the training head, with gradients."""
        logits: Tensor = self.head(self.tail(x))
        return logits

    def class_activation_map(self, pixels: Tensor, classes: Tensor) -> Tensor:
        """How much each location contributes to the logit of `classes`, (B,) int64, one per photo.

        Returns (B, H, W) float32, the size of the last activations. Summed over H and W, a map is
        the logit without its bias (class activation mapping, arXiv 1512.04150).
        """
        raise NotImplementedError

    def crop_size(self, image_size: int) -> int:
        """The side of the random crops to train on, for photos of this size."""
        return image_size

    def load_pretrained(self) -> None:
        """Load published weights, all but the head's; does nothing where there are none."""
