"""When to validate, and when a run is over: at its length, or when the loss falls too slowly."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from hogwear.training.history import RunningMetrics
from hogwear.training.run_state import RunState
from hogwear.training.schedule import Schedule
from hogwear.training.time_budget import Budget

FIRST_EPOCHS, FIRST_IMAGES = 0.5, 1024  # before the first validation: the larger of both
GROWTH = 4  # of the images seen, from one validation to the next
# A run without a length goes on while the validation loss falls by so much, in nats, from one
# validation to the next, but not beyond the larger of both limits. docs/decisions/fine-tuning.md
MIN_GAIN = 0.01
LIMIT_EPOCHS, LIMIT_IMAGES = 2, {"efficientnet_lite0": 4096, "tinyvgg": 20_000}


@dataclass(frozen=True)
class StoppingRule:
    """The length of a run: epochs, a time budget, or as long as the validation loss falls."""

    schedule: Schedule
    state: RunState
    budget: Budget | None

    @property
    def is_fixed(self) -> bool:
        """Whether the length does not depend on the validation loss."""
        has_epochs = self.state.hyperparameters.epochs is not None
        return has_epochs or self.budget is not None or self.state.total_images is not None

    @property
    def total_steps(self) -> int | None:
        """At most, if it is not fixed; None in the first moments of a time budget."""
        steps = self.schedule.steps_per_epoch
        if self.state.total_images is not None:
            return self.schedule.steps_for(self.state.total_images)
        epochs = self.state.hyperparameters.epochs
        if epochs is not None:
            return epochs * steps
        if self.budget:
            return None
        images = LIMIT_IMAGES[self.state.hyperparameters.arch]
        return math.ceil(max(LIMIT_EPOCHS, images / self.state.photos.train.count) * steps)

    @property
    def total_images(self) -> int | None:
        steps = self.total_steps
        return None if steps is None else self.schedule.images_before(steps)

    @property
    def is_out_of_time(self) -> bool:
        return self.budget is not None and self.budget.seconds_left <= 0

    def adjust(self, images_seen: int, session: RunningMetrics) -> None:
        """Move the end of a run with a budget to where its time ends at the present speed."""
        if self.budget:
            left = self.budget.images_left(session.images, session.seconds)
            if left is not None:
                self.state.total_images = images_seen + left

    def is_over(self, step: int) -> bool:
        """Whether a run is over that has done so many steps, and validated them if it is time."""
        if self.is_out_of_time:
            return True
        steps = self.total_steps
        if steps is not None and step >= steps:
            return True
        return (
            not self.is_fixed
            and self.is_validation_step(step)
            and not is_improving(self.state.losses())
        )

    def should_validate(self, step: int) -> bool:
        """Whether to validate before this step, if that has not been done."""
        return self.is_validation_step(step) or self.is_over(step)

    def is_validation_step(self, step: int) -> bool:
        """Whether to validate before this step, wherever the run ends."""
        return step in (self.validation_step(number) for number in range(step.bit_length() + 1))

    def next_validation(self, step: int) -> int:
        """The next step before which to validate, after this one."""
        check = next(check for check in map(self.validation_step, count()) if check > step)
        steps = self.total_steps
        return check if steps is None else min(check, steps)

    def validation_step(self, number: int) -> int:
        """The step before which to validate, the first time for 0."""
        return math.ceil(self.validation_epochs(number) * self.schedule.steps_per_epoch)

    def validation_epochs(self, number: int) -> float:
        """The epochs before that, the same on all machines."""
        first = max(FIRST_EPOCHS, FIRST_IMAGES / self.state.photos.train.count)
        return first * GROWTH**number

    def epochs_before(self, step: int) -> float:
        """Passes over the photos before a step: before a validation, the same on all machines."""
        numbers = range(step.bit_length() + 1)
        checks = (
            self.validation_epochs(number)
            for number in numbers
            if self.validation_step(number) == step
        )
        return next(checks, step / self.schedule.steps_per_epoch)


def is_improving(losses: Sequence[float]) -> bool:
    """Whether to go on after these validation losses; the first is from before training."""
    return len(losses) == 1 or min(losses[:-1]) - losses[-1] >= MIN_GAIN
