"""The training loop, whose unit is the optimizer step: what a step is surrounded by, apart from who executes it.

`base` says what a loop is, `step` what happens after each optimizer step; `bare` and `lightning` are the two
drivers that execute the steps, one in plain PyTorch and one inside a `lightning.Trainer`.
"""

from tslm.loops.base import Loop
from tslm.loops.step import Budget, Cadence, Driver, StepLoop

__all__ = ["Budget", "Cadence", "Driver", "Loop", "StepLoop"]
