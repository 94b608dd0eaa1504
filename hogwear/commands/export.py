"""Write the trained network as ONNX, for other programs and languages: model/model.onnx and MODEL_CARD.md.

    python -m hogwear.commands.export

A fourth script, in effect: nothing in hogwear/ imports it, and it alone in here knows model.py.
"""

import importlib.util
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hogwear.commands import model_card
from hogwear.commands.common import SharedSettings
from hogwear.data import loading
from hogwear.data.split_assignments import SplitAssignments
from hogwear.evaluation import metrics
from hogwear.system import command, machine
from hogwear.system.arrays import FloatArray, Int64Array, UInt8Array
from hogwear.system.artifacts import MODEL_CARD, ONNX_MODEL
from hogwear.system.errors import BadInput
from hogwear.system.files import write_atomically

if TYPE_CHECKING:
    from hogwear.commands.onnx_graph import Graph
    from hogwear.data.pixels import Pixels
    from hogwear.evaluation.trained_model import TrainedModel
    from hogwear.networks.layers import Conv, Pointwise
    from model import EfficientNetLite0, TinyVGG

# torch, onnx and onnxruntime take seconds to import, so not before the flags are known to be good.

TOLERANCE = 1e-3  # of a probability; 1e-5 is what another order of the same float32 sums makes
MEASURED = 1000  # photos at most: a fair sample of a large split


@dataclass(frozen=True)
class Settings(SharedSettings):
    """Export model/checkpoint.pt to ONNX, preprocessing included, and write a model card.

    The exported network is measured on the test split, or on val where there is no test split.
    """


def main(settings: Settings) -> None:
    require_installed("onnx", "onnxruntime")
    import torch

    import model
    from hogwear.evaluation import predict

    machine.keep_freed_memory()
    torch.set_num_threads(1)
    trained = model.load(settings.model_dir, torch.float32)
    evaluation = model_card.evaluation(settings.model_dir, trained.sha256)
    SplitAssignments.read(settings.model_dir).require(trained.split)
    photos = settings.photos_of(trained.class_names, trained.is_sample)
    split = photos.evaluated
    decoded = loading.Loader(settings.cache).load(split, trained.image_size)
    images, labels = sample(
        loading.exclude_trained_on(decoded, trained.trained_on.numpy(), split.name)
    )
    logits = predict.predict_logits(trained.net, images, np.arange(len(images)), machine.cpus())
    expected = np.exp(metrics.log_softmax(logits / trained.temperature))  # (n, classes)

    exported = onnx_model(trained)
    answers, milliseconds = answer(exported, images)
    if not (difference := float(np.abs(answers - expected).max())) < TOLERANCE:
        raise BadInput(
            f"onnxruntime's probabilities differ from the checkpoint's by {difference:.2g}, expected less than {TOLERANCE:g}; "
            f"nothing was written: install the onnxruntime that requirements.txt names"
        )
    print(
        f"As the checkpoint answers: probabilities differ by at most {difference:.1e} on {len(images)} photos of {split.name}."
    )
    measured = model_card.measured(
        megabytes=len(exported) / 1e6,
        accuracy=float((answers.argmax(axis=1) == labels).mean()),
        milliseconds=milliseconds,
        photos=f"{len(images)} photos of {split.name}",
    )
    write_atomically(settings.model_dir / ONNX_MODEL, exported)
    write_atomically(
        settings.model_dir / MODEL_CARD,
        model_card.model_card(trained, measured, evaluation).encode(),
    )
    print(f"{measured}\nWritten to {settings.model_dir}: {ONNX_MODEL} and {MODEL_CARD}.")


def require_installed(*packages: str) -> None:
    """BadInput for those that are not."""
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise BadInput(
            f"exporting needs {' and '.join(missing)}, not installed here: pip install --requirement requirements.txt"
        )


def sample(pixels: "Pixels") -> tuple[UInt8Array, Int64Array]:
    """Photos (n, S, S, 3) and their labels: MEASURED at most, spread over all classes, the same every time."""
    chosen = np.unique(
        np.linspace(0, len(pixels) - 1, min(MEASURED, len(pixels))).round().astype(np.int64)
    )
    return pixels.images[pixels.rows[chosen]], pixels.labels[chosen]


# --- the network as a graph


def onnx_model(trained: "TrainedModel") -> bytes:
    """The file: `photo`, (H, W, 3) uint8 -> `probabilities`, (classes,) float32, calibrated; settings in its metadata."""
    from hogwear.commands.onnx_graph import Graph, letterbox

    graph, size = Graph(), trained.image_size
    pixels = graph.cast(letterbox(graph, "photo", size), np.float32)
    x = graph.add(
        "Div",
        graph.add("Sub", pixels, graph.constant(127, np.float32)),
        graph.constant(128, np.float32),
    )
    features: Any = {"efficientnet_lite0": efficientnet_lite0, "tinyvgg": tinyvgg}[trained.arch]
    x = graph.add("Flatten", features(graph, x, trained.net, size))
    logits = graph.add("Gemm", x, *parameters(graph, trained.net.head), transB=1)
    probabilities = graph.add(
        "Softmax", graph.add("Div", logits, graph.constant(trained.temperature, np.float32))
    )
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
    return graph.model(len(trained.class_names), metadata).SerializeToString()


def efficientnet_lite0(graph: "Graph", x: str, net: "EfficientNetLite0", side: int) -> str:
    """(1, 3, side, side) -> (1, HEAD_CHANNELS, 1, 1)."""
    x, side = convolution(graph, x, net.stem, side, relu6=True)
    block: Any
    for block in net.blocks:
        y = (
            convolution(graph, x, block.expand, side, relu6=True)[0]
            if block.expand is not None
            else x
        )
        y, side = convolution(graph, y, block.depthwise, side, relu6=True)
        y, side = convolution(graph, y, block.project, side, relu6=False)
        x = graph.add("Add", x, y) if block.residual else y
    x, side = convolution(graph, x, net.last, side, relu6=True)
    return graph.add("GlobalAveragePool", x)


def tinyvgg(graph: "Graph", x: str, net: "TinyVGG", side: int) -> str:
    """(1, 3, side, side) -> (1, CHANNELS, side // 4, side // 4)."""
    from torch import nn

    for layer in net.layers:
        if isinstance(layer, nn.Conv2d):
            x = graph.add("Conv", x, *parameters(graph, layer), pads=[1, 1, 1, 1])
        elif isinstance(layer, nn.ReLU):
            x = graph.add("Relu", x)
        elif isinstance(layer, nn.MaxPool2d):
            x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    return x


def convolution(
    graph: "Graph", x: str, layer: "Conv | Pointwise", side: int, relu6: bool
) -> tuple[str, int]:
    """A layer over a square of this side, with its ReLU6; and the side of what it gives."""
    from hogwear.networks.layers import same_padding

    before, after = same_padding(side, layer.kernel_size, layer.stride)
    weight, bias = (parameter.numpy() for parameter in (layer.weight, layer.bias))
    weight = weight.reshape(len(weight), -1, layer.kernel_size, layer.kernel_size)
    x = graph.add("Conv", x, graph.constant(weight, np.float32), graph.constant(bias, np.float32),
                  strides=[layer.stride] * 2, pads=[before, before, after, after], group=layer.groups)  # fmt: skip
    if relu6:
        x = graph.add("Clip", x, graph.constant(0, np.float32), graph.constant(6, np.float32))
    return x, -(-side // layer.stride)


def parameters(graph: "Graph", layer: Any) -> tuple[str, str]:
    """Weight and bias of one of torch's own layers."""
    return graph.constant(layer.weight.numpy(), np.float32), graph.constant(
        layer.bias.numpy(), np.float32
    )


# --- measured


def answer(exported: bytes, photos: UInt8Array) -> tuple[FloatArray, float]:
    """Probabilities (n, classes) of onnxruntime for one photo after the other, and the median milliseconds of one, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(exported, options)
    answers, times = [], []
    for photo in photos:
        started = time.perf_counter()
        answers.append(session.run(None, {"photo": photo})[0])
        times.append(1000 * (time.perf_counter() - started))
    return np.stack(answers), float(np.median(times))


if __name__ == "__main__":
    command.run(main, Settings)
