"""From windows to a run directory: the LightningModule, its trainer, callbacks and checkpoints.

Names are imported at their first use: the checkpoint functions need torch only, and a command that generates text
should not wait for lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tslm.training.checkpoint import load_checkpoint, save_checkpoint
    from tslm.training.module import LanguageModule
    from tslm.training.runs import LoadedModel, load_model
    from tslm.training.settings import GenerationSettings, OptimizerSettings
    from tslm.training.trainer import StepTrainer

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

__all__ = [
    "GenerationSettings", "LanguageModule", "LoadedModel", "OptimizerSettings", "StepTrainer", "load_checkpoint",
    "load_model", "save_checkpoint",
]


def __getattr__(name: str) -> object:
    """Import a public name from its file at its first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'tslm.training' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """List the public names although none of them is imported yet."""
    return sorted(__all__)
