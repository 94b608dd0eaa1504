"""When to validate, and when a run is over: at its length, or when the loss falls too slowly."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from hogwear.training.photo_sets import PhotoSets
from hogwear.training.run_state import RunState
from hogwear.training.schedule import Schedule
from hogwear.training.time_budget import Budget

MIN_IMAGES = 1024  # between two validations
VAL_SHARE = 3  # train on that many images for each photo that is validated
PATIENCE = 2  # validations
MIN_GAIN = 0.02  # by which the loss has to fall within them, relative to what it is ...
MIN_NATS = 0.001  # ... and absolutely


@dataclass(frozen=True)
class Length:
    """The length of a run: epochs, a time budget, or as long as the validation loss falls."""

    schedule: Schedule
    state: RunState
    budget: Budget | None

    @property
    def total_steps(self) -> int | None:
        """None if it depends on the validation loss."""
        if self.state.total_images is not None:
            return self.schedule.steps_for(self.state.total_images)
        epochs = self.state.hyperparameters.epochs
        return None if epochs is None else epochs * self.schedule.steps_per_epoch

    @property
    def total_images(self) -> int | None:
        steps = self.total_steps
        return None if steps is None else self.schedule.images_before(steps)

    @property
    def is_out_of_time(self) -> bool:
        return self.budget is not None and self.budget.seconds_left <= 0

    def is_over(self, step: int) -> bool:
        """Whether a run is over that has done so many steps, and validated them if it is time."""
        if self.is_out_of_time:
            return True
        steps = self.total_steps
        if steps is not None:
            return step >= steps
        return self.is_check(step) and not still_pays(self.state.losses())

    def is_check(self, step: int) -> bool:
        """Whether a part of an epoch ends before this step. An epoch has as many everywhere."""
        steps, parts = self.schedule.steps_per_epoch, checks_per_epoch(self.state.photos)
        return step * parts // steps != (step - 1) * parts // steps

    def next_check(self, step: int) -> int:
        """The next step before which to validate, after this one."""
        check = next(later for later in count(step + 1) if self.is_check(later))
        steps = self.total_steps
        return check if steps is None else min(check, steps)


def checks_per_epoch(photos: PhotoSets) -> int:
    """Validations in an epoch of all machines together: they take a tenth of the time at most."""
    images = max(MIN_IMAGES, VAL_SHARE * photos.val.count)
    return max(1, photos.train.count // images)


def still_pays(losses: Sequence[float]) -> bool:
    """Whether to go on after these validation losses; the first is from before training."""
    if len(losses) <= PATIENCE:
        return True
    before, now = min(losses[:-PATIENCE]), min(losses)
    return before - now >= max(MIN_GAIN * before, MIN_NATS)
