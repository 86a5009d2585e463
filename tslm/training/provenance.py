"""Records the versions, seed and settings of a checkpoint, and compares them when the checkpoint is loaded."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch

import tslm
from tslm.data.datamodule import text_data
from tslm.errors import UserError
from tslm.loops.step import OPEN
from tslm.tokenizer.pretokenize import unicode_hash
from tslm.training.settings import PROVISIONAL_STEPS

if TYPE_CHECKING:
    from tslm.training.module import LanguageModule


def versions() -> dict[str, str]:
    """Return the versions that results depend on; `unicode` is a hash of the Unicode tables of `regex`."""
    return {
        "tslm": tslm.__version__,
        "torch": str(torch.__version__),  # a class of its own, which `weights_only` would refuse to load
        "lightning": lightning.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "regex": metadata.version("regex"),
        "unicode": unicode_hash()[:12],
    }


def provenance(module: LanguageModule, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance of a checkpoint: versions, seed, tokens seen, and resolved settings.

    `resolved` has the values that replaced `auto` and null in the configuration.

    `state` is what Lightning has collected for the checkpoint so far.
    """
    trainer, resolved = module._trainer, {}
    if trainer is not None:
        is_open = trainer.max_steps >= OPEN
        warmup_steps, cosine_steps = module.optimizer_settings.lengths(
            PROVISIONAL_STEPS if is_open else module.total_steps or 1)
        resolved = {
            "precision": str(trainer.precision), "device": trainer.strategy.root_device.type,
            "processes": trainer.world_size, "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "max_steps": None if is_open else trainer.max_steps,
            "warmup_steps": warmup_steps, "cosine_steps": cosine_steps, "compiled": module.compiled,
        }
        if (data := text_data(trainer)) is not None:
            resolved |= {"batch_size": data.batch_size, "context_length": data.context_length, "data_seed": data.seed}
    return {
        "versions": versions(),
        "seed": torch.initial_seed(),
        "tokens_seen": state.get("callbacks", {}).get("StepMetrics", {}).get("tokens_seen"),
        "resolved": resolved,
    }


def check_inputs(module: LanguageModule, own: Mapping[str, Any], path: object) -> None:
    """Print which versions differ from those of a checkpoint, and refuse another text or tokenizer.

    To resume a training, the texts and the tokenizer must be those of its earlier part; to evaluate a checkpoint, only
    the tokenizer must be the same.

    Without fingerprints or versions in the checkpoint, nothing is compared.

    Raises:
        UserError: a text or the tokenizer is another one, and the user has not allowed it.
    """
    trainer = module.trainer
    say = print if trainer.is_global_zero else lambda *_, **__: None
    line = changed_versions(own.get("provenance", {}).get("versions", {}), path)
    if line is not None:
        say(line, flush=True)
    saved = own.get("fingerprints", {})
    changes = [
        f"the {name} has the fingerprint {now[:12]}, but {path} was trained with {saved[name][:12]}"
        for name, now in module.fingerprints.items()
        if saved.get(name, now) != now and (trainer.training or name == "tokenizer")
    ]
    if changes and not module.allow_changed_text:
        raise UserError(f"{'; '.join(changes)}: restore it, or allow the change with --data.allow_changed_text true")
    for change in changes:
        say(f"Changed: {change}.", flush=True)
    now = module.fingerprints.get("validation text")
    is_held_out = "training text" in module.fingerprints  # it is not read if there are files for validation
    if is_held_out and not trainer.training and saved.get("validation text", now) != now:
        say(f"Changed: the held-out text is not that of {path}, so the model may have been trained on a part of it.",
            flush=True)


def changed_versions(saved: Mapping[str, str], path: object) -> str | None:
    """Return one line about the versions that differ from those of a checkpoint; None if none is known to differ."""
    changed = {name: now for name, now in versions().items() if saved.get(name, now) != now}
    if not changed:
        return None
    reason = "results may differ in rounding"
    if changed.pop("unicode", None):
        reason = "the Unicode tables of regex differ, so a text with new characters may have other ids"
    now = ", ".join(f"{name} {version} (was {saved[name]})" for name, version in changed.items())
    return f"Other versions than those of {path}: {now or 'Unicode tables'}; {reason}."
