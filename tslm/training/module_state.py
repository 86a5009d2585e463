"""What a LanguageModule adds to a checkpoint, and what it takes from one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tslm.errors import UserError
from tslm.loops.lightning import fit_loop_state
from tslm.tokenizer.serialization import tokenizer_from_texts, tokenizer_texts
from tslm.training.checkpoint import CHECKPOINT_KEY, check_shapes, fit_part, read_checkpoint
from tslm.training.optimizers import make_optimizer, parameter_names
from tslm.training.parts import check_loops, check_optimizer
from tslm.training.provenance import check_inputs, provenance
from tslm.training.runs import LoadedModel, load_model
from tslm.training.saved_settings import read_architecture, read_settings, saved_form
from tslm.training.settings import GenerationSettings, OptimizerSettings

if TYPE_CHECKING:
    from tslm.training.module import LanguageModule


def own_part(module: LanguageModule, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return what makes a checkpoint self-contained: architecture, tokenizer, settings, random number generators."""
    settings = {"optimizer": asdict(module.optimizer_settings), "generation": asdict(module.generation_settings)}
    return {
        "architecture": asdict(module.model.config),
        "optimizer": None if module.has_own_optimizer else module.optimizer_settings.class_path,
        **saved_form(module.run_config or settings),  # a stock Trainer has no configuration
        "tokenizer": tokenizer_texts(module.tokenizer) if module.tokenizer is not None else None,
        "document_prefix": module.document_prefix,
        "fingerprints": module.fingerprints,
        "provenance": provenance(module, checkpoint),
        "rng": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
    }


def restore(module: LanguageModule, checkpoint: dict[str, Any]) -> None:
    """Restore tokenizer and generators from a checkpoint, and put the present settings into the optimizer's state.

    Raises:
        UserError: a part of the checkpoint is missing or has another form, or a run is resumed on another text.
    """
    trainer = module._trainer
    path, resume = (trainer.ckpt_path, trainer.training) if trainer is not None else ("the checkpoint", False)
    if module.is_sharded:  # the trainer has checked the file, and its strategy has loaded weights and optimizer
        own = checkpoint[CHECKPOINT_KEY]
    else:
        own = fit_part(checkpoint, path, resume=resume)
        weights = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items()}
        check_shapes(weights, module.model.state_dict(), str(path))
    with_data = trainer is not None and trainer.state.fn != "predict"
    if with_data:
        check_inputs(module, own, path)
    if own["tokenizer"] is not None and not (with_data and "tokenizer" in module.fingerprints):
        module.tokenizer = tokenizer_from_texts(own["tokenizer"], str(path))
    if module.document_prefix is None:
        module.document_prefix = own.get("document_prefix")
    module._rng = own["rng"] if resume else None
    if trainer is None or not resume:
        return
    check_loops(checkpoint["loops"]["fit_loop"], fit_loop_state(trainer), path)
    module.tokens_seen = checkpoint["callbacks"].get("StepMetrics", {}).get("tokens_seen")
    if module.has_own_optimizer:
        return
    settings, step = module.optimizer_settings, checkpoint["global_step"]
    if (before := own.get("optimizer", "AdamW")) != settings.class_path:
        raise UserError(f"{path} holds the state of an optimizer that a subclass of the module made: resume with that "
                        "class, or start a new run from its weights with --init_from" if before is None else
                        f"{path} holds the state of the optimizer {before}, but optimizer.class_path is "
                        f"{settings.class_path}: give --optimizer.class_path {before}, or start a new run from its "
                        "weights with --init_from")
    check_optimizer(checkpoint["optimizer_states"][0], before, module.model, path)
    rate = module._schedule(module._total_steps() or 1)(step)
    before_lr = read_settings(own).allowed.get("optimizer.lr")
    now = make_optimizer(before, module.model, settings.arguments()).param_groups
    names = parameter_names(before) | set(settings.arguments())
    # An optimizer of the user's own may give each group a share of the rate.
    shares = [base / before_lr if before_lr else 1.0 for base in checkpoint["lr_schedulers"][0]["base_lrs"]]
    states = checkpoint["optimizer_states"]
    if module.is_sharded:
        states = [{"param_groups": optimizer.param_groups} for optimizer in trainer.optimizers]
    for state in states:
        for group, values in zip(state["param_groups"], now, strict=False):  # torch checks their number
            group.update({name: value for name, value in values.items() if name in names and name in group})
        for group, share in zip(state["param_groups"], shares, strict=True):
            group.update(lr=share * rate, initial_lr=share * settings.lr)
    for state in checkpoint["lr_schedulers"]:
        state.update(base_lrs=[share * settings.lr for share in shares], _last_lr=[share * rate for share in shares])


def saved_arguments(path: str | Path, ffn: str | None) -> tuple[dict[str, Any], LoadedModel]:
    """Return the arguments with which the module of a checkpoint was made, and what it holds."""
    own = fit_part(read_checkpoint(path, mmap=True), path)
    saved = read_settings(own).allowed
    arguments: dict[str, Any] = read_architecture(own, path, ffn=ffn)
    for group, kind in (("optimizer", OptimizerSettings), ("generation", GenerationSettings)):
        values: dict[str, Any] = {
            name.removeprefix(f"{group}."): tuple(value) if isinstance(value, list) else value
            for name, value in saved.items() if name.startswith(f"{group}.")
        }
        arguments[group] = kind(**values)
    return arguments, load_model(path, ffn=ffn)
