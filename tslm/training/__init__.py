"""From windows to a run directory: the LightningModule, its trainer, callbacks and checkpoints.

Names are imported at their first use: the checkpoint functions need torch only, and a command that generates text
should not wait for lightning.
"""

from __future__ import annotations

import importlib

_HOME = {
    "save_checkpoint": "tslm.training.checkpoint",
    "load_checkpoint": "tslm.training.checkpoint",
    "GenerationSettings": "tslm.training.settings",
    "OptimizerSettings": "tslm.training.settings",
    "LanguageModule": "tslm.training.module",
    "StepTrainer": "tslm.training.trainer",
    "LoadedModel": "tslm.training.runs",
    "load_model": "tslm.training.runs",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'tslm.training' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
