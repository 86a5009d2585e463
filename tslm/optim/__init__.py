"""Optimization: SGD, AdamW, Muon, the schedules of the learning rate and gradient clipping.

Read sgd.py first (an optimizer in its smallest form), then adamw.py, muon.py, schedule.py and clipping.py.
"""

from tslm.optim.adamw import AdamW
from tslm.optim.clipping import clip_gradients
from tslm.optim.muon import Muon
from tslm.optim.schedule import (
    SCHEDULES,
    Schedule,
    check_schedule,
    lr_constant_schedule,
    lr_cosine_schedule,
    lr_linear_schedule,
    lr_wsd_schedule,
)
from tslm.optim.sgd import SGD

__all__ = [
    "SCHEDULES", "SGD", "AdamW", "Muon", "Schedule", "check_schedule", "clip_gradients", "lr_constant_schedule",
    "lr_cosine_schedule", "lr_linear_schedule", "lr_wsd_schedule",
]
