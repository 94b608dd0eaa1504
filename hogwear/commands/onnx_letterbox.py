"""The letterboxing of data/decoding.py as an ONNX graph, equal to the last bit.

ONNX's own Resize with antialias=1 computes its weights in float32. Where a photo shrinks by a
simple ratio, as from 224 to 160 pixels, many values lie halfway between two integers, and are then
rounded the other way (docs/decisions/export.md).
"""

import numpy as np
import onnx
from onnx import TensorProto, helper

from hogwear.commands.onnx_graph import Graph
from hogwear.data.decoding import WHITE

FIXED_POINT_BITS = 22  # fractional bits of the weights that Pillow resizes with, Resample.c
# The base of the digits below. No CPU's sum of two products overflows: 2 * 255 * 63 < 2**15.
DIGIT = 64
DIGITS = 4


def letterbox(graph: Graph, photo: str, size: int) -> str:
    """(H, W, 3) uint8 -> (1, 3, size, size) uint8: resized to fit, with white around it."""
    zero, one, two = (graph.constant(x, np.int64) for x in (0, 1, 2))
    height, width = (
        graph.add("Squeeze", graph.add("Shape", photo, start=i, end=i + 1)) for i in (0, 1)
    )
    longer = graph.cast(graph.add("Max", height, width), np.float64)
    scale = graph.add("Div", graph.constant(size, np.float64), longer)

    def fit(side: str) -> str:
        exact = graph.add("Mul", graph.cast(side, np.float64), scale)
        rounded = graph.cast(graph.add("Round", exact), np.int64)  # half to even, as in Python
        return graph.add("Max", one, rounded)

    new_height, new_width = fit(height), fit(width)

    # Pillow resizes columns first, but rows first where the height loses more than twice as much.
    lost = graph.add("Sub", height, new_height)
    twice_lost_width = graph.add("Mul", two, graph.add("Sub", width, new_width))
    shrinks = graph.add("Greater", lost, zero)
    rows_first = graph.add("And", shrinks, graph.add("Greater", lost, twice_lost_width))

    first, second = (
        graph.add("Where", rows_first, *sides) for sides in ((height, width), (width, height))
    )
    new_first, new_second = (
        graph.add("Where", rows_first, *sides)
        for sides in ((new_height, new_width), (new_width, new_height))
    )
    x = transpose_if(graph, photo, rows_first, [2, 1, 0], [2, 0, 1])  # (3, W, H) or (3, H, W)
    x = graph.add("Transpose", resize(graph, x, first, new_first), perm=[0, 2, 1])
    x = resize(graph, x, second, new_second)
    x = transpose_if(graph, x, rows_first, [0, 1, 2], [0, 2, 1])  # (3, new height, new width)
    x = pad(graph, x, (new_height, new_width), size)
    return graph.add("Reshape", x, graph.constant([1, 3, size, size], np.int64))


def pad(graph: Graph, x: str, sides: tuple[str, str], size: int) -> str:
    """Center (3, *sides) on a white square, (3, size, size)."""
    before, after = [], []
    for side in sides:
        free = graph.add("Sub", graph.constant(size, np.int64), side)
        before.append(graph.add("Div", free, graph.constant(2, np.int64)))
        after.append(graph.add("Sub", free, before[-1]))
    none, axes = graph.constant([0], np.int64), graph.constant([0], np.int64)
    top, left, bottom, right = (graph.add("Unsqueeze", side, axes) for side in before + after)
    pads = graph.add("Concat", none, top, left, none, bottom, right, axis=0)
    return graph.add("Pad", x, pads, graph.constant(WHITE[0], np.uint8))


def transpose_if(
    graph: Graph, x: str, condition: str, then: list[int], otherwise: list[int]
) -> str:
    """Transpose x, uint8 with three axes, in one of two ways."""

    def branch(perm: list[int]) -> onnx.GraphProto:
        result = helper.make_tensor_value_info("transposed", TensorProto.UINT8, [None, None, None])
        node = helper.make_node("Transpose", [x], ["transposed"], perm=perm)
        return helper.make_graph([node], "transposed", [], [result])

    return graph.add("If", condition, then_branch=branch(then), else_branch=branch(otherwise))


def resize(graph: Graph, x: str, size: str, new_size: str) -> str:
    """(3, n, size) uint8 -> (3, n, new_size) uint8, by one matrix product per digit."""
    total = graph.constant(1 << (FIXED_POINT_BITS - 1), np.int32)  # one half, to round
    for place, digit in enumerate(resizing_weights(graph, size, new_size)):
        product = graph.add("MatMulInteger", x, digit)
        scaled = graph.add("Mul", product, graph.constant(DIGIT**place, np.int32))
        total = graph.add("Add", total, scaled)
    shifted = graph.add("Div", total, graph.constant(1 << FIXED_POINT_BITS, np.int32))
    return graph.cast(shifted, np.uint8)


def resizing_weights(graph: Graph, size: str, new_size: str) -> list[str]:
    """The weights of Pillow's BILINEAR filter along one axis: (size, new_size) fixed-point numbers.

    Each column is a triangle as wide as the pixels that are merged, with sum 1. The numbers are
    split into digits, lowest first, because ONNX multiplies matrices of bytes: fast and exactly.
    """
    zero, one, half = (graph.constant(x, np.float64) for x in (0, 1, 0.5))
    axis = graph.constant([1], np.int64)

    def centers(count: str) -> str:
        return graph.add("Add", graph.add("Range", zero, graph.cast(count, np.float64), one), half)

    scale = graph.add("Div", graph.cast(size, np.float64), graph.cast(new_size, np.float64))
    inverse_width = graph.add("Div", one, graph.add("Max", scale, one))
    new_centers = graph.add("Mul", centers(new_size), scale)
    distance = graph.add("Sub", graph.add("Unsqueeze", centers(size), axis), new_centers)
    relative = graph.add("Abs", graph.add("Mul", distance, inverse_width))
    triangle = graph.add("Max", graph.add("Sub", one, relative), zero)
    sums = graph.add("ReduceSum", triangle, graph.constant([0], np.int64))
    weights = graph.add("Div", triangle, sums)
    scaled = graph.add("Mul", weights, graph.constant(1 << FIXED_POINT_BITS, np.float64))
    rest = graph.cast(graph.add("Floor", graph.add("Add", scaled, half)), np.int32)
    base, digits = graph.constant(DIGIT, np.int32), []
    for _ in range(DIGITS):
        digits.append(graph.cast(graph.add("Mod", rest, base), np.int8))
        rest = graph.add("Div", rest, base)
    return digits
