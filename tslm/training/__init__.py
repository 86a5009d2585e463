"""Training with Lightning: the module, the trainer, its callbacks, checkpoints and run directories.

Read `module` and `trainer` first. The names below are imported at their first use, because lightning takes seconds to
import, and the checkpoint functions and the `generate` command do not need it.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "LanguageModule": "module", "StepTrainer": "trainer", "OptimizerSettings": "settings",
    "GenerationSettings": "settings", "LoadedModel": "runs", "load_model": "runs", "save_checkpoint": "checkpoint",
    "load_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import a name from its file at its first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'tslm.training' has no attribute {name!r}")
    return getattr(import_module(f"tslm.training.{_HOME[name]}"), name)
