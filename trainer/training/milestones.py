"""After which optimizer steps a run validates, saves and ends: arithmetic that every rank does alike."""

from dataclasses import dataclass

from trainer.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Milestones:
    """Steps are counted from 1: step n is done when n optimizer steps have been taken."""

    steps_per_epoch: int
    total_steps: int
    validate_every: int | None
    """Optimizer steps between validations; None without validation data."""
    save_every: int | None
    """Optimizer steps between checkpoints beside those of epochs and validations; None adds none."""

    @classmethod
    def of(cls, config: RunConfig, steps_per_epoch: int) -> "Milestones":
        """The milestones of a recipe over a training split of so many steps per epoch."""
        total = config.limits.epochs * steps_per_epoch
        every = config.validate_every
        validate_every = every.steps if every.steps is not None else (every.epochs or 1) * steps_per_epoch
        return cls(
            steps_per_epoch=steps_per_epoch,
            total_steps=min(total, config.limits.max_steps or total),
            validate_every=validate_every if config.data.val is not None else None,
            save_every=config.checkpoint.every_steps,
        )

    @property
    def total_validations(self) -> int:
        """Validations of the whole run, if it does not stop early."""
        if self.validate_every is None:
            return 0
        return -(-self.total_steps // self.validate_every)

    def validates_at(self, step: int) -> bool:
        """Whether the run validates when this step is done: at the interval and at the end."""
        if self.validate_every is None or step == 0:
            return False
        return step % self.validate_every == 0 or step == self.total_steps

    def validation_after(self, step: int, count: int) -> int:
        """The step of the `count`-th validation behind this step, or the last step if there are fewer."""
        if self.validate_every is None:
            return self.total_steps
        return min(self.total_steps, (step // self.validate_every + count) * self.validate_every)

    def saves_at(self, step: int) -> bool:
        """Whether the run saves when this step is done: validated, at an epoch's end, at the interval or at the end."""
        at_interval = self.save_every is not None and step % self.save_every == 0
        at_end = step % self.steps_per_epoch == 0 or step == self.total_steps
        return self.validates_at(step) or at_interval or at_end
