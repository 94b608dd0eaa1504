"""A trained model as an ONNX graph, from a photo of any size to calibrated probabilities.

The letterboxing equals data/decoding.py to the last bit. ONNX's own Resize with antialias=1
computes its weights in float32. Where a photo shrinks by a simple ratio, as from 224 to 160 pixels,
many values lie halfway between two integers and are then rounded the other way
(docs/decisions/export.md).
"""

import json
import math

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import nn

from hogwear.commands.onnx_graph import Graph, Value
from hogwear.commands.shared_settings import UNKNOWN_RATE
from hogwear.data.decoding import WHITE
from hogwear.evaluation.trained_model import TrainedModel
from hogwear.networks.layers import Conv, Pointwise
from hogwear.networks.novelty import Novelty
from hogwear.system.arrays import FloatArray
from model import (
    MEAN_LEVELS,
    MIN_MEAN,
    ROOT_LEVELS,
    ROOT_SCALE,
    TRUNK_BLOCKS,
    EfficientNetLite0,
    TinyVGG,
)

FIXED_POINT_BITS = 22  # fractional bits of the weights that Pillow resizes with, Resample.c
# The base of the digits below. No CPU's sum of two products overflows: 2 * 255 * 63 < 2**15.
DIGIT = 64
DIGITS = 4


def to_onnx(trained: TrainedModel) -> bytes:
    """The content of model.onnx.

    Input `photo`, (H, W, 3) uint8; outputs `probabilities`, (classes,) float32, and `novelty`,
    () float32; the settings are in the metadata.
    """
    graph, size, net = Graph(), trained.image_size, trained.net
    x = (letterbox(graph.photo, size).cast(np.float32) - 127) / 128
    if isinstance(net, EfficientNetLite0):
        x = add_efficientnet_lite0(x, net)
    else:
        assert isinstance(net, TinyVGG)
        x = add_tinyvgg(x, net)
    logits = graph.add("Gemm", graph.add("Flatten", x), *parameters(net.head), transB=1)
    probabilities = graph.add("Softmax", logits / trained.temperature)
    graph.add("Squeeze", probabilities, [0], output="probabilities")
    graph.add("Squeeze", add_novelty(logits, net.novelty), [0], output="novelty")
    metadata = {
        "class_names": json.dumps(trained.class_names),
        "arch": trained.arch,
        "image_size": str(size),
        "temperature": str(trained.temperature),
        "sure_from": str(trained.confidence_threshold),
        "unknown_above": str(unknown_threshold(trained)),
        "epoch": str(trained.epoch),
        "checkpoint_sha256": trained.sha256,
        "choices": json.dumps(trained.hyperparameters),
    }
    outputs = {"probabilities": [len(trained.class_names)], "novelty": []}
    return graph.to_model(outputs, metadata).SerializeToString()


def unknown_threshold(trained: TrainedModel) -> float:
    """The novelty above which a photo is unknown; infinite where no photo is called so."""
    return math.inf if trained.unknown_is_off else trained.novelty_threshold(UNKNOWN_RATE.default)


# --- Letterboxing


def letterbox(photo: Value, size: int) -> Value:
    """(H, W, 3) uint8 -> (1, 3, size, size) uint8: resized to fit, with white around it."""
    add = photo.graph.add
    height, width = (
        add("Squeeze", add("Shape", photo, dtype=np.int64, start=i, end=i + 1)) for i in (0, 1)
    )
    scale = size / height.maximum(width).cast(np.float64)

    def fit(side: Value) -> Value:
        exact = side.cast(np.float64) * scale
        return add("Round", exact).cast(np.int64).maximum(1)  # half to even, as in Python

    new_height, new_width = fit(height), fit(width)

    # Pillow resizes columns first, but rows first where the height loses more than twice as much.
    lost = height - new_height
    limit = ((width - new_width) * 2).maximum(0)
    rows_first = add("Greater", lost, limit, dtype=np.bool_)
    orders = (height, width), (width, height)
    first, second = (add("Where", rows_first, *sides, dtype=np.int64) for sides in orders)
    x = transpose_if(rows_first, photo, [2, 1, 0], [2, 0, 1])  # (3, W, H) or (3, H, W)
    x = add("Transpose", resize(x, first, fit(first)), perm=[0, 2, 1])
    x = resize(x, second, fit(second))
    x = transpose_if(rows_first, x, [0, 1, 2], [0, 2, 1])  # (3, new height, new width)

    def margins(side: Value) -> tuple[Value, Value]:
        before = (size - side) / 2
        return add("Unsqueeze", before, [0]), add("Unsqueeze", size - side - before, [0])

    (top, bottom), (left, right) = margins(new_height), margins(new_width)
    pads = add("Concat", [0], top, left, [0], bottom, right, axis=0)
    return add("Reshape", add("Pad", x, pads, WHITE[0]), [1, 3, size, size])


def transpose_if(condition: Value, x: Value, then: list[int], otherwise: list[int]) -> Value:
    """Transpose x, uint8 with three axes, in one of two ways."""

    def branch(perm: list[int]) -> onnx.GraphProto:
        result = helper.make_tensor_value_info("transposed", TensorProto.UINT8, [None, None, None])
        node = helper.make_node("Transpose", [x.name], ["transposed"], perm=perm)
        return helper.make_graph([node], "transposed", [], [result])

    branches = {"then_branch": branch(then), "else_branch": branch(otherwise)}
    return x.graph.add("If", condition, dtype=np.uint8, **branches)


def resize(x: Value, size: Value, new_size: Value) -> Value:
    """(3, n, size) uint8 -> (3, n, new_size) uint8, by one matrix product per digit."""
    products = [
        x.graph.add("MatMulInteger", x, digit, dtype=np.int32) * DIGIT**place
        for place, digit in enumerate(resizing_weights(size, new_size))
    ]
    total = sum(products[1:], products[0] + (1 << (FIXED_POINT_BITS - 1)))  # one half, to round
    return (total / (1 << FIXED_POINT_BITS)).cast(np.uint8)


def resizing_weights(size: Value, new_size: Value) -> list[Value]:
    """The weights of Pillow's BILINEAR filter along one axis: (size, new_size) fixed-point numbers.

    Each column is a triangle as wide as the pixels that are merged, with sum 1. The numbers are
    split into digits, lowest first, because ONNX multiplies matrices of bytes: fast and exactly.
    """
    add, size, new_size = size.graph.add, size.cast(np.float64), new_size.cast(np.float64)

    def centers(count: Value) -> Value:
        return add("Range", 0, count, 1) + 0.5

    scale = size / new_size
    distance = add("Unsqueeze", centers(size), [1]) - centers(new_size) * scale
    relative = add("Abs", distance * (1 / scale.maximum(1)))
    triangle = (1 - relative).maximum(0)
    weights = triangle / add("ReduceSum", triangle, [0])
    rest = add("Floor", weights * (1 << FIXED_POINT_BITS) + 0.5).cast(np.int32)
    digits = []
    for _ in range(DIGITS):
        digits.append(add("Mod", rest, DIGIT).cast(np.int8))
        rest = rest / DIGIT
    return digits


# --- The network


def add_efficientnet_lite0(x: Value, net: EfficientNetLite0) -> Value:
    """(1, 3, S, S) -> (1, D, 1, 1) features, in the order of `EfficientNetLite0.levels`."""
    add = x.graph.add
    x = add_convolution(x, net.stem)
    roots, means = [], []
    for i in range(len(net.blocks)):
        block = net.block(i)
        y = x if block.expand is None else add_convolution(x, block.expand)
        widened = add_convolution(y, block.depthwise)
        y = add_convolution(widened, block.project, relu6=False)
        x = x + y if block.residual else y
        if i in ROOT_LEVELS:
            roots.append(pool_root(widened) * ROOT_SCALE)
        if i in (TRUNK_BLOCKS - 1, *MEAN_LEVELS):
            means.append(add("GlobalAveragePool", x))
    last = pool_root(add_convolution(x, net.last))
    return add("Concat", last, *roots, *means, axis=1)


def pool_root(x: Value) -> Value:
    """The square roots of the means over the photo."""
    return x.graph.add("Sqrt", x.graph.add("GlobalAveragePool", x).maximum(MIN_MEAN))


def add_convolution(x: Value, layer: Conv | Pointwise, relu6: bool = True) -> Value:
    weight, bias = parameters(layer)
    weight = weight.reshape(len(weight), -1, layer.kernel_size, layer.kernel_size)
    strides, groups = [layer.stride] * 2, layer.groups
    y = x.graph.add("Conv", x, weight, bias, auto_pad="SAME_UPPER", strides=strides, group=groups)
    return x.graph.add("Clip", y, 0, 6) if relu6 else y


def add_tinyvgg(x: Value, net: TinyVGG) -> Value:
    """(1, 3, S, S) -> (1, CHANNELS, S // 4, S // 4) features."""
    for layer in net.layers:
        if isinstance(layer, nn.Conv2d):
            x = x.graph.add("Conv", x, *parameters(layer), pads=[1, 1, 1, 1])
        elif isinstance(layer, nn.ReLU):
            x = x.graph.add("Relu", x)
        elif isinstance(layer, nn.MaxPool2d):
            x = x.graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    return x


def add_novelty(logits: Value, novelty: Novelty) -> Value:
    """(1, classes) -> (1,): see networks/novelty.py."""
    add = logits.graph.add
    x = logits + novelty.offset.numpy()
    squares = add("ReduceSum", add("MatMul", x, novelty.curvature.numpy()) * x, [1], keepdims=0)
    return squares - add("ReduceMax", logits, [1], keepdims=0) * 2


def parameters(layer: Conv | nn.Linear | nn.Conv2d) -> tuple[FloatArray, FloatArray]:
    """Weight and bias."""
    assert layer.bias is not None
    return layer.weight.numpy(), layer.bias.numpy()
