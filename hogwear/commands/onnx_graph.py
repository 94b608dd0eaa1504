"""An ONNX graph, a node at a time, and the letterboxing of `decoding.decode` as one, to the last bit.

    graph = Graph()
    pixels = letterbox(graph, "photo", 160)
    probabilities = graph.add("Softmax", ...)

Tensors are named by strings here, as in the file.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 18, 9  # of December 2022: what reads the file need not be new
WHITE = 255
PRECISION = 22  # bits after the point of the weights that Pillow resizes with, Resample.c
DIGIT, DIGITS = (
    64,
    4,
)  # so small that no CPU's sums of two products saturate in 16 bits: 2 * 255 * 63 < 32768


class Graph:
    """Nodes and constants, collected in the order in which they are computed."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """A node with one output; the name of that."""
        name = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def cast(self, x: str, dtype: npt.DTypeLike) -> str:
        return self.add("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def model(self, outputs: int, metadata: dict[str, str]) -> onnx.ModelProto:
        """From `photo`, (H, W, 3) uint8 RGB of any H and W, to `probabilities`, (outputs,) float32. Checked."""
        photo = helper.make_tensor_value_info("photo", TensorProto.UINT8, ["height", "width", 3])
        probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [outputs])
        graph = helper.make_graph(self.nodes, "hogwear", [photo], [probabilities], self.constants)
        model = helper.make_model(
            graph,
            producer_name="hogwear",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return model


def letterbox(graph: Graph, photo: str, size: int) -> str:
    """(H, W, 3) uint8 -> (1, 3, size, size) uint8: the longer side fitted to `size`, white around it.

    Resize with antialias=1 would do the first half, but computes its weights in float32: where a photo becomes smaller
    by a round factor, as 224 -> 160, many values lie halfway between two integers and come out as the other one
    (docs/decisions/export.md).
    """
    zero, one, two = (graph.constant(x, np.int64) for x in (0, 1, 2))
    height, width = (
        graph.add("Squeeze", graph.add("Shape", photo, start=i, end=i + 1)) for i in (0, 1)
    )
    longer = graph.cast(graph.add("Max", height, width), np.float64)
    scale = graph.add("Div", graph.constant(size, np.float64), longer)

    def fitted(side: str) -> str:
        exact = graph.add("Mul", graph.cast(side, np.float64), scale)
        return graph.add(
            "Max", one, graph.cast(graph.add("Round", exact), np.int64)
        )  # halves to even, as Python does

    new_height, new_width = fitted(height), fitted(width)

    # Pillow resizes columns first, then rows, but the other way round where the height loses more than twice as much.
    lost = graph.add("Sub", height, new_height)
    tall = graph.add("And", graph.add("Greater", lost, zero),
                     graph.add("Greater", lost, graph.add("Mul", two, graph.add("Sub", width, new_width))))  # fmt: skip
    x = transpose_if(graph, photo, tall, [2, 1, 0], [2, 0, 1])  # (3, W, H) or (3, H, W)
    first, second = (
        graph.add("Where", tall, *sides) for sides in ((height, width), (width, height))
    )
    new_first, new_second = (
        graph.add("Where", tall, *sides)
        for sides in ((new_height, new_width), (new_width, new_height))
    )
    x = graph.add("Transpose", resized(graph, x, first, new_first), perm=[0, 2, 1])
    x = resized(graph, x, second, new_second)
    x = transpose_if(graph, x, tall, [0, 1, 2], [0, 2, 1])  # (3, new height, new width)

    before, after = [], []
    for side in (new_height, new_width):
        free = graph.add("Sub", graph.constant(size, np.int64), side)
        before.append(graph.add("Div", free, two))
        after.append(graph.add("Sub", free, before[-1]))
    none, axes = graph.constant([0], np.int64), graph.constant([0], np.int64)
    top, left, bottom, right = (graph.add("Unsqueeze", side, axes) for side in before + after)
    x = graph.add(
        "Pad",
        x,
        graph.add("Concat", none, top, left, none, bottom, right, axis=0),
        graph.constant(WHITE, np.uint8),
    )
    return graph.add("Reshape", x, graph.constant([1, 3, size, size], np.int64))


def transpose_if(
    graph: Graph, x: str, condition: str, then: list[int], otherwise: list[int]
) -> str:
    """x, uint8 with three axes, with its axes in either order."""

    def branch(perm: list[int]) -> onnx.GraphProto:
        result = helper.make_tensor_value_info("transposed", TensorProto.UINT8, [None, None, None])
        return helper.make_graph(
            [helper.make_node("Transpose", [x], ["transposed"], perm=perm)],
            "transposed",
            [],
            [result],
        )

    return graph.add("If", condition, then_branch=branch(then), else_branch=branch(otherwise))


def resized(graph: Graph, x: str, size: str, new_size: str) -> str:
    """(3, n, size) uint8 -> (3, n, new_size) uint8, by a product of matrices for each digit of the weights."""
    total = graph.constant(1 << (PRECISION - 1), np.int32)  # one half, to round
    for place, digit in enumerate(resizing_weights(graph, size, new_size)):
        product = graph.add("MatMulInteger", x, digit)
        total = graph.add(
            "Add", total, graph.add("Mul", product, graph.constant(DIGIT**place, np.int32))
        )
    return graph.cast(graph.add("Div", total, graph.constant(1 << PRECISION, np.int32)), np.uint8)


def resizing_weights(graph: Graph, size: str, new_size: str) -> list[str]:
    """Pillow's BILINEAR along one axis, as a matrix (size, new_size) of integers of PRECISION bits after the point.

    A triangle as wide as the pixels that come together in one, its sum 1. The integers come in digits, the lowest
    first, because ONNX multiplies matrices of bytes: fast, and without rounding anything.
    """
    zero, one, half = (graph.constant(x, np.float64) for x in (0, 1, 0.5))

    def centres(count: str) -> str:
        return graph.add("Add", graph.add("Range", zero, graph.cast(count, np.float64), one), half)

    scale = graph.add("Div", graph.cast(size, np.float64), graph.cast(new_size, np.float64))
    inverse_width = graph.add("Div", one, graph.add("Max", scale, one))
    new_centres = graph.add("Mul", centres(new_size), scale)
    distance = graph.add(
        "Sub", graph.add("Unsqueeze", centres(size), graph.constant([1], np.int64)), new_centres
    )
    triangle = graph.add(
        "Max",
        graph.add("Sub", one, graph.add("Abs", graph.add("Mul", distance, inverse_width))),
        zero,
    )
    weights = graph.add(
        "Div", triangle, graph.add("ReduceSum", triangle, graph.constant([0], np.int64))
    )
    fixed = graph.add(
        "Add", graph.add("Mul", weights, graph.constant(1 << PRECISION, np.float64)), half
    )
    rest, digit = graph.cast(graph.add("Floor", fixed), np.int32), graph.constant(DIGIT, np.int32)
    digits = []
    for _ in range(DIGITS):
        digits.append(graph.cast(graph.add("Mod", rest, digit), np.int8))
        rest = graph.add("Div", rest, digit)
    return digits
