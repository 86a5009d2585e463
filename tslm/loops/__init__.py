"""The training loop. Its unit is the optimizer step, because random windows have no epochs.

`base` defines a loop, and `step` defines what happens between two optimizer steps. Two drivers execute the steps:
`bare` in plain PyTorch and `lightning` inside a `lightning.Trainer`.
"""

from tslm.loops.base import Loop
from tslm.loops.step import Budget, Cadence, Driver, StepLoop

__all__ = ["Budget", "Cadence", "Driver", "Loop", "StepLoop"]
