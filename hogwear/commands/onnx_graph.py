"""Builds an ONNX graph one node at a time.

    graph = Graph()
    x = graph.add("Relu", "photo")
    probabilities = graph.add("Softmax", x, output="probabilities")

As in the file, tensors are named by strings.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 18, 9  # of December 2022, so that old readers understand the file


class Graph:
    """Nodes in the order of computation, and constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output; return the output's name."""
        name = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """Add a constant; return its name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def cast(self, x: str, dtype: npt.DTypeLike) -> str:
        """Add a Cast node."""
        return self.add("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def to_model(self, num_classes: int, metadata: dict[str, str]) -> onnx.ModelProto:
        """The checked model, from `photo` to `probabilities`.

        `photo` is (H, W, 3) uint8 RGB with any H and W; `probabilities` is (num_classes,) float32.
        """
        photo = helper.make_tensor_value_info("photo", TensorProto.UINT8, ["height", "width", 3])
        probabilities = helper.make_tensor_value_info(
            "probabilities", TensorProto.FLOAT, [num_classes]
        )
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
