"""Which settings of a checkpoint are used: plain values of a fixed list of options, checked before the parser runs.

A checkpoint may come from anybody. The option parser imports and instantiates every class that a setting names, and
loads every file that is named in place of a group of options. So a setting of a checkpoint reaches the parser only if
`ALLOWED` lists its option and its value passes the check of that option. No check accepts the name of a class, a
callable, or a path to write to.
"""

from __future__ import annotations

import os
import re
from dataclasses import MISSING, asdict, fields
from typing import Any, NamedTuple, get_args

from tslm.errors import UserError
from tslm.model import TransformerConfig
from tslm.model.config import FFNS, Norm, Position
from tslm.optim import SCHEDULES
from tslm.training.checks import (
    ABSENT,
    LARGEST,
    LONGEST_TEXT,
    Check,
    either,
    list_of,
    look_up,
    max_time,
    number,
    numbers,
    one_of,
    optional,
    path_to_read,
    switch,
    text,
    whole,
)
from tslm.training.optimizers import OPTIMIZERS
from tslm.training.settings import translate_batch_settings

LARGEST_SIZE = 2**24  # of one dimension of the model
LARGEST_CORPUS = 10_000_000  # stories, which take 5 GB and ten minutes
PRECISIONS = ("auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true")


class PlainSettings(NamedTuple):
    """The settings of a checkpoint, divided.

    Attributes:
        allowed: Dotted key and value of every setting that may be used.
        left_out: Dotted keys of the options that had another value than the default and are not used.
    """

    allowed: dict[str, Any]
    left_out: list[str]


# Each device is a process, and a process waits for those of the other nodes.
_processors = max(8, os.cpu_count() or 1)
_devices = either(whole(-1, _processors), list_of(whole(0, 63), least=1, most=_processors), one_of("auto"))
_batches = optional(either(whole(), number()))

# Every option whose value is taken from a checkpoint, with the check of the value. All of them are ours, or are scalars
# of Lightning's Trainer. The only paths are those of texts, which are read. A string stands only where the option's
# type is a text, a list of texts, or a fixed set of names.
ALLOWED: dict[str, Check] = {
    "seed_everything": either(switch, whole(0, 2**32 - 1)),
    "trainer.max_steps": optional(whole(1)),
    "trainer.max_tokens": optional(whole(1)),
    "trainer.max_minutes": optional(number()),
    "trainer.val_every_n_steps": whole(),
    "trainer.log_every_n_steps": whole(),
    "trainer.save_every_n_steps": whole(),
    "trainer.accelerator": one_of("auto", "cpu", "gpu", "cuda"),
    "trainer.precision": one_of(*PRECISIONS),
    "trainer.compile": either(switch, one_of("auto")),
    "trainer.gradient_clip_val": optional(number()),
    "trainer.gradient_clip_algorithm": optional(one_of("norm")),
    "trainer.enable_progress_bar": switch,
    "trainer.devices": _devices,
    "trainer.fast_dev_run": either(switch, whole()),
    "trainer.min_steps": optional(whole()),
    "trainer.num_sanity_val_steps": whole(-1),
    "trainer.enable_model_summary": switch,
    "trainer.max_time": optional(max_time),
    "trainer.limit_val_batches": _batches,
    "trainer.limit_test_batches": _batches,
    "trainer.limit_predict_batches": _batches,
    "trainer.overfit_batches": either(whole(), number()),
    "trainer.accumulate_grad_batches": whole(1),
    "trainer.deterministic": optional(either(switch, one_of("warn"))),
    "trainer.benchmark": optional(switch),
    "trainer.inference_mode": switch,
    "trainer.detect_anomaly": switch,
    "model.d_model": whole(1, LARGEST_SIZE),
    "model.num_layers": whole(1, LARGEST_SIZE),
    "model.num_heads": whole(1, LARGEST_SIZE),
    "model.d_ff": whole(1, LARGEST_SIZE),
    "model.rope_theta": number(),
    "model.norm": one_of(*get_args(Norm)),
    "model.position": one_of(*get_args(Position)),
    "model.ffn": one_of(*FFNS),
    "model.tie_embeddings": switch,
    "model.qk_norm": switch,
    "model.loss_chunk_size": optional(whole(1)),
    "model.recompute": switch,
    "data.corpus": optional(one_of("toy", "tinystories", "files")),
    "data.train_files": optional(list_of(path_to_read)),
    "data.valid_files": optional(list_of(path_to_read)),
    "data.text_field": text,
    "data.errors": one_of("strict", "replace"),
    "data.join_files": switch,
    "data.allow_special": switch,
    "data.vocab_size": whole(1, LARGEST_SIZE),
    "data.context_length": whole(1, LARGEST_SIZE),
    "data.batch_size": whole(1),
    "data.micro_batch_size": optional(whole(1)),
    "data.seed": whole(-LARGEST),
    "data.align_documents": switch,
    "data.on_device": optional(switch),
    "data.special_tokens": list_of(text),
    "data.pattern": optional(text),
    "data.num_workers": optional(whole(1, 1024)),
    "data.toy_stories": whole(1, LARGEST_CORPUS),
    "data.toy_seed": whole(-LARGEST),
    "data.prompts": optional(list_of(text)),
    "data.prompts_file": optional(path_to_read),
    "optimizer.class_path": one_of(*OPTIMIZERS),
    "optimizer.init_args": optional(numbers),
    "optimizer.schedule": one_of(*SCHEDULES),
    "optimizer.lr": number(),
    "optimizer.lr_min": number(),
    "optimizer.warmup_steps": optional(whole()),
    "optimizer.cosine_steps": optional(whole()),
    "optimizer.betas": list_of(number(), least=2, most=2),
    "optimizer.eps": number(),
    "optimizer.weight_decay": number(),
    "optimizer.measured_steps": optional(whole(1)),
    "optimizer.max_skipped": whole(1),
    "generation.max_new_tokens": whole(0, LONGEST_TEXT),
    "generation.temperature": number(),
    "generation.top_p": number(),
    "generation.top_k": optional(whole(1)),
    "generation.seed": whole(-LARGEST),
    "checkpoint.keep": whole(1),
}

# Options of earlier versions, which `translate_batch_settings` expresses by today's.
FORMER: dict[str, Check] = {"model.micro_batch_size": optional(whole(1))}

# The options that are left out, with their defaults. The value may name a class, a plugin or a place to write to,
# make the command wait for other machines, or switch parts of Lightning off. A notice names those not at the default.
# Five more options are never looked up: `config`, `ckpt_path`, `init_from`, `name`, and `data.tokenizer`, because a
# checkpoint holds the tokenizer itself.
NOT_TAKEN: dict[str, object] = {
    "trainer.default_root_dir": ".",
    "trainer.callbacks": None,
    "trainer.logger": None,
    "trainer.plugins": None,
    "trainer.strategy": "auto",
    "trainer.num_nodes": 1,
    "trainer.profiler": None,
    "trainer.enable_checkpointing": None,
    # Those that `lightning_features` refuses; earlier versions ignored them.
    "trainer.max_epochs": None,
    "trainer.min_epochs": None,
    "trainer.limit_train_batches": None,
    "trainer.val_check_interval": None,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.reload_dataloaders_every_n_epochs": 0,
    "trainer.use_distributed_sampler": True,
    "trainer.enable_autolog_hparams": True,
    "trainer.sync_batchnorm": False,
    "trainer.model_registry": None,
    "trainer.barebones": False,
    "data.cache_dir": ".cache/tslm",
    "data.allow_changed_text": False,
    "checkpoint.dirpath": None,
}
KNOWN = (*ALLOWED, *NOT_TAKEN)


def plain_settings(config: object) -> PlainSettings:
    """Divide the settings of a checkpoint into those that may be used and those that are left out.

    Only the keys of `ALLOWED` and `NOT_TAKEN` are looked up. Whatever else the settings hold is never touched.

    Args:
        config: nested settings, as `fit` saves them; anything else holds no settings.
    """
    allowed: dict[str, Any] = {}
    left_out = []
    for key, check in ALLOWED.items():
        value = _plain_form(key, look_up(config, key))
        if value is ABSENT:
            continue
        if check(value):
            allowed[key] = list(value) if isinstance(value, list | tuple) else value
        else:
            left_out.append(key)
    if "optimizer.class_path" in left_out and allowed.get("optimizer.init_args"):  # they belong to that class
        del allowed["optimizer.init_args"]
        left_out.append("optimizer.init_args")
    for key, default in NOT_TAKEN.items():
        value = look_up(config, key)
        if value is not ABSENT and not (type(value) is type(default) and value == default):
            left_out.append(key)
    return PlainSettings(allowed, left_out)


def saved_form(config: object) -> dict[str, Any]:
    """Return what a checkpoint holds of the settings: `config`, the nested allowed ones, and `left_out`, only names."""
    allowed, left_out = plain_settings(config)
    nested: dict[str, Any] = {}
    for key, value in allowed.items():
        group, _, name = key.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[name] = value
    return {"config": nested, "left_out": left_out}


def read_settings(part: dict[str, Any]) -> PlainSettings:
    """Return the settings that `fit` saved in a checkpoint, in the options of today's version.

    Whatever else the file holds in place of settings is ignored.
    """
    config = part.get("config")
    allowed, left_out = plain_settings(config)
    if "data.micro_batch_size" not in allowed:
        former = {key: value for key, check in FORMER.items() if check(value := look_up(config, key))}
        allowed = translate_batch_settings(allowed | former)
    names = part.get("left_out")
    named = {name for name in names if type(name) is str} if type(names) is list else set()
    return PlainSettings(allowed, [key for key in KNOWN if key in named or key in left_out])


def read_architecture(part: dict[str, Any], path: object, *, ffn: str | None = None,
                      for_sizes: bool = False) -> dict[str, Any]:
    """Return the architecture of the model that a checkpoint holds, as the arguments of `TransformerConfig`.

    A model with a feed-forward layer of the user's own imports its class, so the user must state it as `ffn`, except
    where only sizes are needed and no model is made (`for_sizes`).

    Raises:
        UserError: the architecture is missing, incomplete or impossible, or names a class that the user does not state.
    """
    found, known = part.get("architecture"), fields(TransformerConfig)
    needed = {field.name for field in known if field.default is MISSING} | {"rope_theta"}
    if type(found) is not dict or not needed <= set(found) <= {field.name for field in known}:
        names = ", ".join(field.name for field in known)
        raise UserError(f"{path} does not hold the architecture, which is {names}: give another checkpoint")
    for name, value in found.items():
        check = ALLOWED.get(f"model.{name}") or ALLOWED[f"data.{name}"]
        if name == "ffn" and own_class(value):
            if not (for_sizes or value == ffn):
                raise UserError(f"{path} was trained with a layer of its own, {value}, and a checkpoint may not name "
                                f"code: if it is yours, state --model.ffn {value}, or --ffn for generate, score and "
                                "compare")
        elif not check(value):
            raise UserError(f"{path} holds an architecture with an impossible {name}: give another checkpoint")
    return asdict(TransformerConfig(**found))


def own_class(value: object) -> bool:
    """Whether a setting names a class of the user's own, as module.Class."""
    return type(value) is str and len(value) < 256 and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", value) is not None


def _plain_form(key: str, value: object) -> object:
    """Return a number of devices that the command line left as a string as the int that it means."""
    if key == "trainer.devices" and type(value) is str and re.fullmatch(r"-1|[0-9]{1,4}", value):
        return int(value)
    return value
