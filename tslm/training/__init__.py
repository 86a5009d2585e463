"""Training with Lightning: the module, the trainer, its callbacks, checkpoints and run directories.

Read `module` and `trainer` first. Names are imported at their first use, because importing lightning takes seconds, and
the checkpoint functions and the `generate` command do not need it.
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
    """List the public names, including those that are not imported yet."""
    return sorted(__all__)
