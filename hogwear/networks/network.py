"""What every network offers to training, evaluation and export; model.py has the architectures."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """A frozen trunk, a trained top, and the hyper-parameters that suit them."""

    lr: float  # the default peak learning rate
    pretrained: bool  # whether its features are good for anything before training
    head: nn.Linear  # the classifier: the one layer that never comes from pretrained weights

    def trunk(self, pixels: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 or float in 0..255 -> activations in the network's compute dtype."""
        raise NotImplementedError

    def top(self, x: Tensor) -> Tensor:
        """Activations -> (B, D) float32 features, the classifier's input."""
        raise NotImplementedError

    def features(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.trunk(pixels)
        return self.top(x)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.features(pixels))

    def evidence(self, pixels: Tensor, classes: Tensor) -> Tensor:
        """(B, H, W) float32: how far each place of the last activations speaks for the given class of a photo, (B,) int64.

        These are class activation maps (arXiv 1512.04150): the logit, taken apart by place. H and W are the activations'.
        """
        raise NotImplementedError

    def crop(self, image_size: int) -> int:
        """The side of the random crops that it is best trained on, of photos of this size."""
        return image_size

    def load_pretrained(self) -> None:
        """Replace the initial weights with published ones, where there are any (`pretrained`)."""
