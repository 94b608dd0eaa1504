"""The architectures: building a network, and loading a trained one from a checkpoint.

    net = build("efficientnet_lite0", num_classes=5, image_size=128, dtype=choose_dtype(cache_dir))
    net.load_pretrained()
    logits = net(pixels)  # (B, 128, 128, 3) uint8 RGB, letterboxed -> (B, 5) float32

hogwear/networks/network.py has the interface of a network.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hogwear.evaluation.trained_model import TrainedModel
from hogwear.networks import precision
from hogwear.networks.layers import Conv, Pointwise
from hogwear.networks.network import Network
from hogwear.networks.novelty import Novelty
from hogwear.networks.weights import read_pretrained
from hogwear.system.errors import BadInput
from hogwear.training import checkpoint, checkpoint_schema
from hogwear.training.checkpoint import Checkpoint

# The stages of EfficientNet-Lite0: kernel size, stride of the first block, expansion factor, output
# channels, number of blocks.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM_CHANNELS, LAST_CHANNELS = 32, 1280
BATCH_NORM_EPS = 1e-3
TRUNK_BATCH = 8  # photos at a time, so that their activations fit into the CPU's cache
TRUNK_STRIDE = 16  # pixels of a photo for one location after the trunk
TRUNK_BLOCKS = 8  # of the 16; docs/decisions/frozen-trunk.md
# The head sees several levels of the network, not only the last: docs/decisions/closed-form-head.md
ROOT_LEVELS = (11, 13)  # blocks, counted from 0, whose depthwise outputs it sees
MEAN_LEVELS = (8, 9, 10)  # blocks whose outputs it sees, besides that of the trunk
ROOT_SCALE = 3.0  # of the former
MIN_MEAN = 1e-4  # of activations, so that the slope of its root is finite


class InvertedResidual(nn.Module):
    """Expand (1x1), depthwise, project (1x1) over (B, H, W, C). MobileNetV2, arXiv 1801.04381."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        channels = in_channels * expansion
        self.expand = Pointwise(in_channels, channels) if expansion > 1 else None
        self.depthwise = Conv(channels, channels, kernel_size, stride, groups=channels)
        self.project = Pointwise(channels, out_channels)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(self.widen(x), x)

    def widen(self, x: Tensor) -> Tensor:
        """The output of the depthwise convolution, with more channels than the block's."""
        return self.depthwise(x if self.expand is None else self.expand(x, relu6=True))

    def reduce(self, widened: Tensor, x: Tensor) -> Tensor:
        """The output of the block for its input x."""
        return self.project(widened, residual=x if self.residual else None)


@dataclass(frozen=True)
class Level:
    """Activations, (B, H, W, C), of which the head sees the means over the photo, or their roots.

    The roots make features out of activations that are rarely far from 0.
    """

    activations: Tensor
    root_scale: float | None = None  # factor of the square roots; None: the means themselves

    def features(self) -> Tensor:
        """(B, C) float32."""
        means = self.activations.mean((1, 2), dtype=torch.float32)
        return means if self.root_scale is None else self.root_scale * means.clamp(MIN_MEAN).sqrt()

    def contributions(self, weight: Tensor) -> Tensor:
        """How much each location adds to a logit with this weight, (B, C): (B, H, W).

        Summed over H and W, it is the product of features and weight.
        """
        x = self.activations.float()
        if self.root_scale is not None:
            means = x.mean((1, 2))
            x = x + (means.clamp(MIN_MEAN) - means)[:, None, None]
            weight = weight * self.features() / means.clamp(MIN_MEAN)
        return torch.einsum("bhwc,bc->bhw", x, weight) / (x.shape[1] * x.shape[2])


class EfficientNetLite0(Network):
    """EfficientNet-Lite0 with batch normalisation folded into the convolutions.

    So there are no statistics that concurrent workers could corrupt, and each layer has one
    operation less. Weights are float32; trunk and tail compute in `dtype`. Preprocessing:
    (x - 127) / 128.
    """

    default_lr = 0.05
    pretrained = True

    def __init__(self, num_classes: int, image_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.stem = Conv(3, STEM_CHANNELS, 3, stride=2)
        blocks, channels = [], STEM_CHANNELS
        for kernel_size, stride, expansion, out_channels, count in STAGES:
            for i in range(count):
                block_stride = stride if i == 0 else 1
                blocks.append(
                    InvertedResidual(channels, out_channels, kernel_size, block_stride, expansion)
                )
                channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.last = Pointwise(channels, LAST_CHANNELS)
        widened = (self.block(i).depthwise.groups for i in ROOT_LEVELS)
        reduced = (self.block(i).project.out_features for i in (TRUNK_BLOCKS - 1, *MEAN_LEVELS))
        self.head = nn.Linear(sum((LAST_CHANNELS, *widened, *reduced)), num_classes)
        self.training_head = nn.Linear(LAST_CHANNELS, num_classes)
        self.novelty = Novelty(num_classes)
        self.blocks[:TRUNK_BLOCKS].requires_grad_(False)
        self.head.requires_grad_(False)
        for p in (*self.head.parameters(), *self.training_head.parameters()):
            nn.init.zeros_(p)

    def trunk(self, pixels: Tensor) -> Tensor:
        return torch.cat([self.trunk_of_batch(part) for part in pixels.split(TRUNK_BATCH)])

    def trunk_shape(self, image_size: int) -> tuple[int, int, int]:
        side = -(-image_size // TRUNK_STRIDE)
        return side, side, self.block(TRUNK_BLOCKS - 1).project.out_features

    def trunk_of_batch(self, pixels: Tensor) -> Tensor:
        x = (pixels.to(self.dtype) - 127) / 128  # exact in bfloat16: 8 significant bits
        x = self.stem(x)
        for block in self.blocks[:TRUNK_BLOCKS]:
            x = block(x)
        return x

    def block(self, index: int) -> InvertedResidual:
        block = self.blocks[index]
        assert isinstance(block, InvertedResidual)
        return block

    def tail(self, x: Tensor) -> Tensor:
        return torch.cat([level.features() for level in self.levels(x)], dim=1)

    def levels(self, x: Tensor) -> list[Level]:
        """What the head sees: the last activations, and those of ROOT_LEVELS and MEAN_LEVELS."""
        roots, means = [], [Level(x)]
        for i in range(TRUNK_BLOCKS, len(self.blocks)):
            widened = self.block(i).widen(x)
            x = self.block(i).reduce(widened, x)
            if i in ROOT_LEVELS:
                roots.append(Level(widened, ROOT_SCALE))
            if i in MEAN_LEVELS:
                means.append(Level(x))
        return [Level(self.last(x, relu6=True), 1.0), *roots, *means]

    def training_tail(self, x: Tensor) -> Tensor:
        for block in self.blocks[TRUNK_BLOCKS:]:
            x = block(x)
        logits: Tensor = self.training_head(Level(self.last(x, relu6=True)).features())
        return logits

    def class_activation_map(self, pixels: Tensor, classes: Tensor) -> Tensor:
        levels = self.levels(self.trunk(pixels))
        channels = [level.activations.shape[3] for level in levels]
        weights = self.head.weight[classes].split(channels, dim=1)
        maps = [level.contributions(w) for level, w in zip(levels, weights, strict=True)]
        height, width = max(each.shape[1:] for each in maps)
        return torch.stack([spread(each, height, width) for each in maps]).sum(0)

    def crop_size(self, image_size: int) -> int:
        return 8 * round(0.9 * image_size / 8)  # docs/decisions/augmentation.md

    @torch.no_grad()
    def load_pretrained(self) -> None:
        state = read_pretrained()

        def fold(module: Conv | Pointwise, conv: str, norm: str) -> None:
            scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + BATCH_NORM_EPS).sqrt()
            weight = state[f"{conv}.weight"] * scale[:, None, None, None]
            module.weight.copy_(weight.reshape(module.weight.shape))
            module.bias.copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale)

        fold(self.stem, "_conv_stem", "_bn0")
        for i in range(len(self.blocks)):
            block = self.block(i)
            if block.expand is not None:
                fold(block.expand, f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0")
            fold(block.depthwise, f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1")
            fold(block.project, f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2")
        fold(self.last, "_conv_head", "_bn1")


def spread(x: Tensor, height: int, width: int) -> Tensor:
    """(B, h, w) -> (B, height, width), with the same sum: each value is divided among its cells."""
    for dim, size in ((1, height), (2, width)):
        source = torch.arange(size) * x.shape[dim] // size
        shares = 1 / source.bincount(minlength=x.shape[dim])
        x = x.index_select(dim, source) * shares[source].unsqueeze(1 if dim == 1 else 0)
    return x


class TinyVGG(Network):
    """The small network of poloclub.github.io/cnn-explainer, trained from scratch."""

    default_lr = 0.02
    pretrained = False
    CHANNELS = 10

    def __init__(self, num_classes: int, image_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        c, self.side = self.CHANNELS, image_size // 4
        blocks: list[nn.Module] = []
        for in_channels in (3, c):
            # Pooling before the ReLU gives the same result with a quarter of the ReLU's work.
            blocks += [nn.Conv2d(in_channels, c, 3, padding=1), nn.ReLU(inplace=True)]
            blocks += [nn.Conv2d(c, c, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*blocks, nn.Flatten())
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # arXiv 1502.01852
                nn.init.zeros_(layer.bias)
        self.head = nn.Linear(c * self.side * self.side, num_classes)
        self.novelty = Novelty(num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def trunk(self, pixels: Tensor) -> Tensor:
        return ((pixels.float() - 127) / 128).permute(0, 3, 1, 2)

    def tail(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def class_activation_map(self, pixels: Tensor, classes: Tensor) -> Tensor:
        products = self.features(pixels) * self.head.weight[classes]
        return products.view(len(products), self.CHANNELS, self.side, self.side).sum(1)


ARCHITECTURES: dict[str, type[Network]] = {
    "efficientnet_lite0": EfficientNetLite0,
    "tinyvgg": TinyVGG,
}


def build(
    arch: str, num_classes: int, image_size: int, dtype: torch.dtype = torch.float32
) -> Network:
    """A network with random initial weights, which torch.manual_seed determines.

    Trunk and tail compute in `dtype`.
    """
    return ARCHITECTURES[arch](num_classes, image_size, dtype)


def choose_dtype(cache_dir: Path) -> torch.dtype:
    """The dtype in which this CPU computes the trunk fastest. See precision.choose_dtype."""
    return precision.choose_dtype(
        lambda dtype: build("efficientnet_lite0", 2, 128, dtype).trunk,
        (TRUNK_BATCH, 128, 128, 3),
        cache_dir,
    )


def load_checkpoint(model_dir: Path) -> Checkpoint:
    """The validated checkpoint in model_dir. Raises as checkpoint.load and validate_checkpoint."""
    return validate_checkpoint(checkpoint.load(model_dir))


def validate_checkpoint(saved: Checkpoint) -> Checkpoint:
    """The same checkpoint. BadInput where its content is not what this version of train writes."""
    try:
        checkpoint_schema.validate(saved.state, build)
    except checkpoint_schema.InvalidState as error:
        raise BadInput(
            f"{saved.file}: not what train writes ({error}); move it away, or train with --fresh"
        ) from None
    return saved


def load(model_dir: Path, dtype: torch.dtype) -> TrainedModel:
    """The best network of the checkpoint in model_dir, to predict with in `dtype`.

    Raises as load_checkpoint.
    """
    saved = load_checkpoint(model_dir)
    state = saved.state
    hyperparameters, best, forecast = (
        state[name] for name in ("hyperparameters", "best", "forecast")
    )
    measured = ("epoch", "val_acc", "temperature", "confidence_threshold", "novelty_quantiles")
    class_names, image_size = tuple(state["class_names"]), best["image_size"]
    net = build(hyperparameters["arch"], len(class_names), image_size, dtype)
    net.load_state_dict(best["weights"])
    net.requires_grad_(False)
    return TrainedModel(
        net=net,
        arch=hyperparameters["arch"],
        class_names=class_names,
        image_size=image_size,
        dtype=dtype,
        is_sample=state["photos"]["is_sample"],
        history=tuple(state["history"]),
        hyperparameters=hyperparameters,
        sha256=saved.sha256,
        split=state["split"],
        trained_on=state["trained_on"].numpy(),
        expected_acc=forecast and forecast["accuracy"],
        novelty_auroc=state["novelty_auroc"],
        **{name: best[name] for name in measured},
    )
