"""A trained model as an ONNX graph, from the photo to calibrated probabilities."""

import json

import numpy as np
from torch import nn

from hogwear.commands.onnx_graph import Graph
from hogwear.commands.onnx_letterbox import letterbox
from hogwear.evaluation.trained_model import TrainedModel
from hogwear.networks.layers import Conv, Pointwise, same_padding
from model import EfficientNetLite0, InvertedResidual, TinyVGG


def to_onnx(trained: TrainedModel) -> bytes:
    """The content of model.onnx.

    Input `photo`, (H, W, 3) uint8; output `probabilities`, (classes,) float32; the settings are in
    the metadata.
    """
    graph, size, net = Graph(), trained.image_size, trained.net
    pixels = graph.cast(letterbox(graph, "photo", size), np.float32)
    centered = graph.add("Sub", pixels, graph.constant(127, np.float32))
    x = graph.add("Div", centered, graph.constant(128, np.float32))
    if isinstance(net, EfficientNetLite0):
        x = add_efficientnet_lite0(graph, x, net, size)
    else:
        assert isinstance(net, TinyVGG)
        x = add_tinyvgg(graph, x, net)
    x = graph.add("Flatten", x)
    logits = graph.add("Gemm", x, *add_parameters(graph, net.head), transB=1)
    temperature = graph.constant(trained.temperature, np.float32)
    probabilities = graph.add("Softmax", graph.add("Div", logits, temperature))
    graph.add("Squeeze", probabilities, graph.constant([0], np.int64), output="probabilities")
    metadata = {
        "class_names": json.dumps(trained.class_names),
        "arch": trained.arch,
        "image_size": str(size),
        "temperature": str(trained.temperature),
        "sure_from": str(trained.confidence_threshold),
        "epoch": str(trained.epoch),
        "checkpoint_sha256": trained.sha256,
        "choices": json.dumps(trained.hyperparameters),
    }
    return graph.to_model(len(trained.class_names), metadata).SerializeToString()


def add_efficientnet_lite0(graph: Graph, x: str, net: EfficientNetLite0, side: int) -> str:
    """(1, 3, side, side) -> (1, HEAD_CHANNELS, 1, 1) features."""
    x, side = add_convolution(graph, x, net.stem, side, relu6=True)
    for block in net.blocks:
        assert isinstance(block, InvertedResidual)
        y = x
        if block.expand is not None:
            y, side = add_convolution(graph, y, block.expand, side, relu6=True)
        y, side = add_convolution(graph, y, block.depthwise, side, relu6=True)
        y, side = add_convolution(graph, y, block.project, side, relu6=False)
        x = graph.add("Add", x, y) if block.residual else y
    x, side = add_convolution(graph, x, net.last, side, relu6=True)
    return graph.add("GlobalAveragePool", x)


def add_tinyvgg(graph: Graph, x: str, net: TinyVGG) -> str:
    """(1, 3, side, side) -> (1, CHANNELS, side // 4, side // 4) features."""
    for layer in net.layers:
        if isinstance(layer, nn.Conv2d):
            x = graph.add("Conv", x, *add_parameters(graph, layer), pads=[1, 1, 1, 1])
        elif isinstance(layer, nn.ReLU):
            x = graph.add("Relu", x)
        elif isinstance(layer, nn.MaxPool2d):
            x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    return x


def add_convolution(
    graph: Graph, x: str, layer: Conv | Pointwise, side: int, relu6: bool
) -> tuple[str, int]:
    """Add a layer over a square with this side; return the output's name and side."""
    before, after = same_padding(side, layer.kernel_size, layer.stride)
    weight = layer.weight.numpy().reshape(
        len(layer.weight), -1, layer.kernel_size, layer.kernel_size
    )
    x = graph.add(
        "Conv",
        x,
        graph.constant(weight, np.float32),
        graph.constant(layer.bias.numpy(), np.float32),
        strides=[layer.stride] * 2,
        pads=[before, before, after, after],
        group=layer.groups,
    )
    if relu6:
        x = graph.add("Clip", x, graph.constant(0, np.float32), graph.constant(6, np.float32))
    return x, -(-side // layer.stride)


def add_parameters(graph: Graph, layer: nn.Linear | nn.Conv2d) -> tuple[str, str]:
    """Add weight and bias as constants; return their names."""
    assert layer.bias is not None
    weight, bias = layer.weight.numpy(), layer.bias.numpy()
    return graph.constant(weight, np.float32), graph.constant(bias, np.float32)
