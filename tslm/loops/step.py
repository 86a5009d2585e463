"""The training loop: optimizer steps up to a `Budget`, with validation, logging and saving at a `Cadence`.

Everything is counted in optimizer steps. `StepLoop` decides *when* something happens; a `Driver` executes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol

from tslm.errors import UserError
from tslm.loops.base import Loop


class StepLoop(Loop):
    """Take optimizer steps until the budget is spent. Between two steps: log, save, validate, stop, in this order.

    A step is saved after its report, so a diverged training is noticed before it is saved. It is saved before its
    validation, so an error in the validation costs no weights. The saved state says that the validation is due, and a
    loop that restores this state begins with the validation. The last step always reports and saves; if the budget ends
    there, it also validates. A loop that is asked to stop leaves the validation to the loop that resumes it.

    The loop asks for stop requests after each optimizer step, each checkpoint and each validation. A request that
    arrives in between takes effect at the next of these.
    """

    def __init__(self, driver: Driver, budget: Budget, cadence: Cadence) -> None:
        self.driver = driver
        self.budget = budget
        self.cadence = cadence
        self.step = 0
        self.validation_due = False  # at the current step
        self.stopped = False

    @property
    def done(self) -> bool:
        """Whether the budget is spent and the last step validated, or a stop was requested."""
        return self.stopped or (self.step >= self.budget.max_steps and not self.validation_due)

    def advance(self) -> None:
        """Take one optimizer step, unless the current one is not validated yet; then do what is due after it."""
        if not self.validation_due:
            self._train_step()
        if self.validation_due and not self.stopped:
            self.validation_due = not self.driver.validate()
            self.stopped = self.driver.stop_requested()  # early stopping decides during validation

    def _train_step(self) -> None:
        self.driver.train_step()
        self.step += 1
        self.stopped = self.driver.stop_requested()
        spent = self.step >= self.budget.max_steps
        self.validation_due = spent or _due(self.cadence.val, self.step)
        saving = self.stopped or self.validation_due or _due(self.cadence.save, self.step)
        if saving or _due(self.cadence.log, self.step):
            self.driver.log(self.step)
        if saving:
            self.driver.save(self.step)
            self.stopped = self.stopped or self.driver.stop_requested()  # a signal may arrive while saving

    def state_dict(self) -> dict[str, Any]:
        """Return the number of optimizer steps taken, and whether the last one is still to be validated."""
        return {"step": self.step, "validation_due": self.validation_due}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the given number of optimizer steps; a validation that is due comes first."""
        self.step = int(state["step"])
        self.validation_due = bool(state.get("validation_due"))
        self.stopped = False


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


class Driver(Protocol):
    """Executes what the loop decides."""

    def train_step(self) -> None:
        """Take one optimizer step: forward and backward passes, clipping, update, learning-rate schedule."""

    def validate(self) -> bool:
        """Measure the model on the validation data; return whether this was completed."""

    def log(self, step: int) -> None:
        """Report the figures collected since the last report."""

    def save(self, step: int) -> None:
        """Write a checkpoint of everything that the next step depends on."""

    def stop_requested(self) -> bool:
        """Whether a signal or a callback asks the loop to end before the next step."""


@dataclass(frozen=True)
class Cadence:
    """How often the loop validates, reports and saves, in optimizer steps; 0 means only at the end.

    Attributes:
        val: steps between two validations.
        log: steps between two reports.
        save: steps between two checkpoints.

    Raises:
        UserError: a number is negative.
    """

    val: int = 0
    log: int = 0
    save: int = 0

    def __post_init__(self) -> None:
        for name, steps in vars(self).items():
            if steps < 0:
                raise UserError(f"{name}_every_n_steps is {steps}: give a number of steps, or 0 for the end only")


OPEN = 1 << 60  # optimizer steps; more than any training takes


@dataclass(frozen=True)
class Budget:
    """The length of a training in optimizer steps.

    Example:
        >>> Budget.of(max_tokens=1_000_000, tokens_per_step=4096)
        Budget(max_steps=245)
    """

    max_steps: int

    @property
    def is_open(self) -> bool:
        """Whether the number of steps is still to be fixed."""
        return self.max_steps >= OPEN

    @classmethod
    def of(cls, *, max_steps: int | None = None, max_tokens: int | None = None, max_minutes: float | None = None,
           tokens_per_step: int = 1, steps_done: int = 0, tokens_seen: int = 0) -> Budget:
        """Make a budget from steps, or from tokens, rounded up to whole steps, or an open one from minutes.

        Args:
            max_steps: number of optimizer steps.
            max_tokens: number of training tokens.
            max_minutes: minutes; with max_steps, these are the steps that were found to fit into them.
            tokens_per_step: tokens of one optimizer step, in all micro-batches and processes together.
            steps_done: steps of a resumed run that were taken before.
            tokens_seen: tokens of these steps, whose size may have been different.

        Raises:
            UserError: none or several of them are given, or the given one is too small.
        """
        if (max_tokens is None) == (max_steps is None and max_minutes is None):
            raise UserError(
                f"max_steps is {max_steps}, max_tokens is {max_tokens} and max_minutes is {max_minutes}, but the "
                "budget is exactly one of them: give --trainer.max_steps, --trainer.max_tokens or --trainer.max_minutes"
            )
        if max_minutes is not None and not 0 < max_minutes < math.inf:
            raise UserError(f"max_minutes is {max_minutes:g}: give a --trainer.max_minutes above 0")
        if max_minutes is not None and max_steps is None:
            return cls(OPEN)
        name, amount = ("max_steps", max_steps) if max_steps is not None else ("max_tokens", max_tokens)
        assert amount is not None
        if amount < 1:
            raise UserError(f"{name} is {amount}, but it must be at least 1: give a positive --trainer.{name}")
        if max_steps is not None:
            return cls(max_steps)
        return cls(steps_done + -(-(amount - tokens_seen) // tokens_per_step))


class TokenCount(int):
    """A number of tokens, also written as 2e6 or 2M; k, M, B (or G) and T stand for thousands to trillions.

    Example:
        >>> TokenCount("2M"), TokenCount("1.5e3"), TokenCount(7)
        (2000000, 1500, 7)

    Raises:
        UserError: it is no whole number.
    """

    def __new__(cls, value: object) -> TokenCount:
        """Convert a number or a text."""
        if isinstance(value, int) and not isinstance(value, bool):
            return super().__new__(cls, value)
        text = str(value).replace("_", "").strip()
        factor = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}.get(text[-1:].lower(), 1)
        try:
            number = Decimal(text[:-1] if factor > 1 else text) * factor
        except InvalidOperation:
            raise UserError(f"{value!r} is no number of tokens: give one such as 2000000, 2e6 or 2M") from None
        if not number.is_finite() or number != number.to_integral_value() or abs(number) >= 2**63:
            raise UserError(f"{value!r} is no whole number of tokens: give one such as 2000000, 2e6 or 2M")
        return super().__new__(cls, int(number))
