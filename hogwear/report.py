"""Pictures of what the network answered."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hogwear.decoding import Array

RIGHT, WRONG, OTHERS, INK = "#0072B2", "#D55E00", "#BFC5CC", "#22262B"  # Okabe-Ito blue and vermillion, told apart by all
TOP_CLASSES = 5
PHOTO_SIDE = 480  # pixels, in the picture


@dataclass(frozen=True)
class Prediction:
    """The answer for one photo."""

    file: Path
    true_class: str | None  # where known
    unread: str | None  # why there is no answer
    probabilities: dict[str, float]  # {class: 0..1}, adding up to 1; empty if unread

    @property
    def predicted(self) -> str:
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def is_wrong(self) -> bool:
        return self.true_class is not None and self.true_class != self.predicted

    def line(self) -> str:
        """For a terminal."""
        name = str(self.file) if str(self.file).isprintable() else repr(str(self.file))
        if self.unread is not None:
            return f"{'not read':12}          {name}: {self.unread}"
        wrong = f"  WRONG: it is {self.true_class}" if self.is_wrong else ""
        return f"{self.predicted:12} {self.probabilities[self.predicted]:7.1%}  {name}{wrong}"

    def as_json(self) -> dict[str, Any]:
        answer: dict[str, Any] = {"file": str(self.file), "true_class": self.true_class, "error": self.unread}
        if self.unread is None:
            answer |= {"predicted": self.predicted, "probability": self.probabilities[self.predicted]}
        return answer | {"probabilities": self.probabilities}


def free_name(folder: Path, prediction: Prediction) -> Path:
    """folder/<stem>_<predicted class>.png, with a number where two photos have one name, and _ for what cannot be printed."""
    name = "_".join(os.fsencode(part)[:110].decode(errors="ignore") for part in (prediction.file.stem, prediction.predicted))
    name = "".join(c if c.isprintable() and c != "/" else "_" for c in name)  # a class may be called anything by a checkpoint
    candidates = (folder / f"{name}{f'_{n}' if n > 1 else ''}.png" for n in range(1, 1 << 30))
    return next(path for path in candidates if not path.exists())


def draw_prediction(prediction: Prediction, image: Array, file: Path) -> None:
    """The photo, `image` (S, S, 3), its predicted class and probability, the true class where known, and the runners-up."""
    from matplotlib.figure import Figure  # half a second

    colour = WRONG if prediction.is_wrong else RIGHT
    figure = Figure(figsize=(8, 4.4), dpi=120, facecolor="white")
    photo = figure.add_axes((0.03, 0.06, 0.47, 0.78))
    photo.imshow(image)
    photo.set_anchor("W")
    photo.set(xticks=[], yticks=[])
    for spine in photo.spines.values():
        spine.set(color=colour, linewidth=2)
    title = f"{prediction.predicted}  {prediction.probabilities[prediction.predicted]:.1%}"
    figure.text(0.03, 0.91, title, fontsize=19, fontweight="bold", color=colour, va="center", parse_math=False)
    if prediction.true_class is not None:
        verdict = f"wrong: it is {prediction.true_class}" if prediction.is_wrong else "right"
        figure.text(0.98, 0.91, verdict, fontsize=14, color=colour, va="center", ha="right", parse_math=False)
    draw_bars(figure.add_axes((0.68, 0.12, 0.235, 0.66)), prediction.probabilities, prediction.predicted, colour)
    figure.text(0.03, 0.025, shortened(prediction.file.name, 60), fontsize=9, color="#6B7280", va="center", parse_math=False)
    figure.savefig(file, metadata={"Software": None})


def draw_bars(axes: Any, probabilities: dict[str, float], predicted: str, colour: str) -> None:
    """The likeliest classes, the best on top."""
    names = sorted(probabilities, key=probabilities.__getitem__, reverse=True)[:TOP_CLASSES]
    values = [probabilities[name] for name in names]
    axes.barh(range(len(names)), values, color=[colour if n == predicted else OTHERS for n in names], height=0.62)
    for i, value in enumerate(values):
        axes.text(max(value, 0) + 0.03, i, f"{value:.1%}", va="center", fontsize=10, color=INK)
    axes.set(xlim=(0, 1.0), ylim=(TOP_CLASSES - 0.5, -0.5), xticks=[])
    axes.set_yticks(range(len(names)), [shortened(name, 18) for name in names], fontsize=11, color=INK, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def shortened(text: str, length: int) -> str:
    """Text that can be drawn on one line: nothing unprintable, at most `length` characters."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= length else clean[: length - 1] + "…"
