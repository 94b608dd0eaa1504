"""Builds an ONNX graph with operators and methods, one node each.

graph = Graph()
x = graph.photo.cast(np.float32) / 255
graph.add("Softmax", x, output="probabilities")
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 18, 9  # of December 2022, so that old readers understand the file

Operand = Union["Value", npt.ArrayLike]


class Graph:
    """Nodes in the order of computation, and constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.photo = Value(self, "photo", np.uint8)  # the input: (H, W, 3), RGB, any H and W

    def add(
        self,
        operator: str,
        *inputs: Operand,
        dtype: npt.DTypeLike | None = None,
        output: str | None = None,
        **attributes: Any,
    ) -> "Value":
        """Add a node with one output, which has this dtype or, by default, that of the inputs.

        Numbers among the inputs take the dtype of the others; lists are int64 shapes or axes.
        """
        of_inputs = next(x.dtype for x in inputs if isinstance(x, Value))
        names = [self.name_of(x, of_inputs) for x in inputs]
        name = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [name], name=name, **attributes))
        return Value(self, name, dtype or of_inputs)

    def name_of(self, x: Operand, dtype: npt.DTypeLike) -> str:
        """The name of a value, or of a new constant."""
        if isinstance(x, Value):
            return x.name
        name = f"constant_{len(self.constants)}"
        array = np.asarray(x, dtype if np.isscalar(x) else None)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def to_model(self, outputs: dict[str, list[int]], metadata: dict[str, str]) -> onnx.ModelProto:
        """The checked model, from `photo` to `outputs`, {name: shape}, in float32."""
        photo = helper.make_tensor_value_info("photo", TensorProto.UINT8, ["height", "width", 3])
        results = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in outputs.items()
        ]
        graph = helper.make_graph(self.nodes, "hogwear", [photo], results, self.constants)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(
            graph, producer_name="hogwear", ir_version=IR_VERSION, opset_imports=[opset]
        )
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return model


def binary(operator: str) -> Callable[["Value", Operand], "Value"]:
    return lambda x, other: x.graph.add(operator, x, other)


def reflected(operator: str) -> Callable[["Value", Operand], "Value"]:
    return lambda x, other: x.graph.add(operator, other, x)


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor in the graph. As in the file, it is known by its name."""

    graph: Graph
    name: str
    dtype: npt.DTypeLike

    def cast(self, dtype: npt.DTypeLike) -> "Value":
        to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.graph.add("Cast", self, dtype=dtype, to=to)

    __add__, __mul__, maximum = binary("Add"), binary("Mul"), binary("Max")
    __sub__, __rsub__ = binary("Sub"), reflected("Sub")
    __truediv__, __rtruediv__ = binary("Div"), reflected("Div")  # integers: rounded towards 0
