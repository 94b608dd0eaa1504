"""When to validate, and when a run is over.

A run with --epochs or --time-budget has a fixed length. Any other run ends as soon as the
validation loss stops falling, or at a limit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from hogwear.training.history import RunningMetrics
from hogwear.training.run_state import RunState
from hogwear.training.schedule import Schedule
from hogwear.training.time_budget import Budget

# The first validation is after the larger of these two, each further one after GROWTH times as much
FIRST_EPOCHS, FIRST_IMAGES = 0.5, 1024
GROWTH = 4
# A run without a fixed length ends when a validation lowers the loss by less than MIN_GAIN nats, or
# at the larger of these two limits: docs/decisions/fine-tuning.md
MIN_GAIN = 0.01
LIMIT_EPOCHS, LIMIT_IMAGES = 2, {"efficientnet_lite0": 4096, "tinyvgg": 20_000}


@dataclass(frozen=True)
class StoppingRule:
    """When a run validates and when it ends. Steps are those of this machine."""

    schedule: Schedule
    state: RunState
    budget: Budget | None

    @property
    def is_fixed(self) -> bool:
        """Whether the run's length does not depend on the validation loss."""
        has_epochs = self.state.hyperparameters.epochs is not None
        return has_epochs or self.budget is not None or self.state.total_images is not None

    @property
    def total_steps(self) -> int | None:
        """The steps of the whole run, or the limit if its length is not fixed.

        None with a time budget, until the speed is known.
        """
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
        """The images that this machine sees in `total_steps`."""
        steps = self.total_steps
        return None if steps is None else self.schedule.images_before(steps)

    @property
    def is_out_of_time(self) -> bool:
        return self.budget is not None and self.budget.seconds_left <= 0

    def adjust(self, images_seen: int, session: RunningMetrics) -> None:
        """With a time budget: set the length to the images that there is time for.

        `session` has the images and seconds of this process, and so its speed.
        """
        if self.budget:
            left = self.budget.images_left(session.images, session.seconds)
            if left is not None:
                self.state.total_images = images_seen + left

    def is_over(self, step: int) -> bool:
        """Whether the run is over after this many steps, if any validation then due is done."""
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
        """Whether to validate before this step: by the growing intervals, or because it is over."""
        return self.is_validation_step(step) or self.is_over(step)

    def is_validation_step(self, step: int) -> bool:
        """Whether to validate before this step, by the growing intervals."""
        return step in (self.validation_step(number) for number in range(step.bit_length() + 1))

    def next_validation(self, step: int) -> int:
        """The first step after this one before which to validate."""
        check = next(check for check in map(self.validation_step, count()) if check > step)
        steps = self.total_steps
        return check if steps is None else min(check, steps)

    def validation_step(self, number: int) -> int:
        """The step before which validation `number`, counted from 0, takes place."""
        return math.ceil(self.validation_epochs(number) * self.schedule.steps_per_epoch)

    def validation_epochs(self, number: int) -> float:
        """The epochs after which validation `number` takes place, the same on all machines."""
        first = max(FIRST_EPOCHS, FIRST_IMAGES / self.state.photos.train.count)
        return first * GROWTH**number

    def epochs_before(self, step: int) -> float:
        """The epochs done before a step. If it is a validation step, all machines agree on them."""
        numbers = range(step.bit_length() + 1)
        checks = (
            self.validation_epochs(number)
            for number in numbers
            if self.validation_step(number) == step
        )
        return next(checks, step / self.schedule.steps_per_epoch)


def is_improving(losses: Sequence[float]) -> bool:
    """Whether the last validation loss is lower than all before it by at least MIN_GAIN.

    The first of `losses` is from before training; with that alone, training goes on.
    """
    return len(losses) == 1 or min(losses[:-1]) - losses[-1] >= MIN_GAIN
