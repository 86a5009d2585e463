"""Optimization: SGD, AdamW, the cosine schedule and gradient clipping.

Read sgd.py first (an optimizer in its smallest form), then adamw.py, schedule.py and clipping.py.
"""

from tslm.optim.adamw import AdamW
from tslm.optim.clipping import clip_gradients
from tslm.optim.schedule import check_schedule, lr_cosine_schedule
from tslm.optim.sgd import SGD

__all__ = ["SGD", "AdamW", "check_schedule", "clip_gradients", "lr_cosine_schedule"]
