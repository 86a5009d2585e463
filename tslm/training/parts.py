"""The parts of a checkpoint: a table of what `fit` writes, and a check that names the part that is missing or wrong.

A checkpoint may come from anywhere. The check runs before any part is used, so that no other code has to expect a part
of another type.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from tslm.errors import UserError
from tslm.model import TransformerConfig, TransformerLM
from tslm.training.checks import ABSENT, LARGEST, Check, either, list_of, look_up, number, one_of, optional, whole
from tslm.training.optimizers import OPTIMIZERS, ordered_parameters
from tslm.training.saved_settings import own_class, read_architecture

LARGEST_TABLE = 1 << 28  # bytes of cosines and sines that any checkpoint may ask for


def mapping(value: object) -> bool:
    """Accept a dictionary."""
    return isinstance(value, dict)


def weights(value: object) -> bool:
    """Accept a dictionary of dense tensors of floating-point numbers."""
    return isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(each, torch.Tensor) and each.layout is torch.strided
        and each.is_floating_point() and each.device.type == "cpu"
        for key, each in value.items()
    )


def texts(value: object) -> bool:
    """Accept the files of a tokenizer: a dictionary of strings with at least the vocabulary and the merges."""
    return isinstance(value, dict) and strings(value) and {"vocab.json", "merges.txt"} <= set(value)


def strings(value: object) -> bool:
    """Accept a dictionary of strings."""
    return isinstance(value, dict) and all(isinstance(each, str) for item in value.items() for each in item)


def provenance(value: object) -> bool:
    """Accept what `tslm.training.provenance` returns; the versions are printed, so they are short and printable."""
    return isinstance(value, dict) and strings(value.get("versions")) and all(
        len(each) <= 100 and each.isprintable() for item in value["versions"].items() for each in item
    ) and optional(whole())(value.get("tokens_seen"))


def generator_state(value: object) -> bool:
    """Accept the state of a GPU's random number generator: a flat tensor of bytes."""
    return isinstance(value, torch.Tensor) and value.dtype is torch.uint8 and value.dim() == 1


def cpu_generator_state(value: object) -> bool:
    """Accept the state of the processor's random number generator."""
    try:
        return generator_state(value) and torch.Generator().set_state(value) is not None  # type: ignore[arg-type]
    except RuntimeError:
        return False


def step(value: object) -> bool:
    """Accept the number of a step, also as a scalar tensor."""
    if isinstance(value, torch.Tensor) and value.dim() == 0:
        number = float(value)
        return math.isfinite(number) and whole()(int(number))
    return whole()(value)


def optimizer_state(value: object) -> bool:
    """Accept what an optimizer saves: groups of parameters, and for each parameter numbers and dense tensors."""
    return isinstance(value, dict) and own_optimizer_state(value) and all(
        isinstance(state, dict)
        and step(state.get("step", 0))
        and all(isinstance(name, str) and (each is None or isinstance(each, bool) or number(-math.inf)(each)
                                           or weights({name: each}) or step(each)) for name, each in state.items())
        for state in value["state"].values()
    )


def own_optimizer_state(value: object) -> bool:
    """Accept what an optimizer of the user's own saves: groups of parameters, and anything beside them."""
    return isinstance(value, dict) and isinstance(value.get("state"), dict) and list_of(
        lambda group: isinstance(group, dict) and list_of(whole())(group.get("params")))(value.get("param_groups"))


def schedule_state(value: object) -> bool:
    """Accept what LambdaLR saves."""
    rates = list_of(number(), least=1, most=64)
    return isinstance(value, dict) and whole()(value.get("last_epoch")) and all(
        rates(value.get(name)) for name in ("base_lrs", "_last_lr")
    )


def one(check: Check) -> Check:
    """Return a check that accepts a list of one value that `check` accepts."""
    return lambda value: isinstance(value, list) and len(value) == 1 and check(value[0])


# The parts that every command reads, and those that only resuming reads, by dotted keys.
PARTS: dict[str, Check] = {
    "global_step": whole(),
    "state_dict": weights,
    "tslm.architecture": mapping,  # `read_architecture` checks the sizes
    "tslm.tokenizer": optional(texts),
}
RESUMED: dict[str, Check] = {
    "epoch": whole(),
    "loops.fit_loop": mapping,
    "callbacks": lambda value: isinstance(value, dict) and all(map(mapping, value.values())),
    "tslm.rng.cpu": cpu_generator_state,
    "tslm.rng.cuda": lambda value: isinstance(value, list) and all(map(generator_state, value)),
}
# The states of our callbacks, where a checkpoint has them.
CALLBACKS: dict[str, dict[str, Check]] = {
    "StepMetrics": {"tokens_seen": whole()},
    "Checkpoints": {
        "best_loss": lambda value: type(value) is float,
        "best_step": optional(whole(0, LARGEST)),
        "folder": lambda value: type(value) is str and "\0" not in value,
    },
}
# What our optimizers keep for a parameter.
_ADAMW = {"step", "exp_avg", "exp_avg_sq"}
STATES: dict[str, list[set[str]]] = {"AdamW": [_ADAMW], "SGD": [{"step"}], "Muon": [{"momentum_buffer"}, _ADAMW]}
OPTIONAL_FIGURES: dict[str, Check] = {"train_loss": number(), "skipped_steps": whole()}  # of StepMetrics


def check_parts(state: Mapping[str, Any], path: object, *, resume: bool = False) -> None:
    """Check the parts of a checkpoint of `fit`.

    With `resume`, the parts that only resuming reads are checked, too.

    Raises:
        UserError: a part is missing, or is not in the form that `fit` writes.
    """
    for key, check in _table(state, resume):
        if (value := look_up(state, key)) is ABSENT:
            raise UserError(f"{path} lacks the part {key}: give another checkpoint")
        if not check(value):
            raise UserError(f"{path} holds the part {key} in another form than fit writes: give another checkpoint")
    _check_sizes(state, path)
    if resume and state["tslm"].get("optimizer", "AdamW") is not None and any(
        len(state["lr_schedulers"][0][name]) != len(state["optimizer_states"][0]["param_groups"])
        for name in ("base_lrs", "_last_lr")
    ):
        raise UserError(f"{path} holds the part lr_schedulers of another optimizer: give another --ckpt_path")


def _check_sizes(state: Mapping[str, Any], path: object) -> None:
    """Check that the file has at least a byte for each parameter of the model, before memory for it is allocated."""
    config = TransformerConfig(**read_architecture(state["tslm"], path, for_sizes=True))
    storages = [each.untyped_storage() for each in state["state_dict"].values()]
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    table = 4 * config.context_length * config.head_dim
    if held < config.num_parameters or table > max(held, LARGEST_TABLE):
        raise UserError(f"{path} holds {held:,} bytes of weights, which do not suffice for the sizes of its "
                        "architecture: give another checkpoint")


def check_loops(saved: object, expected: object, path: object, name: str = "loops.fit_loop") -> None:
    """Check the position of Lightning's loops against the form that they have now.

    Raises:
        UserError: a part is missing or has another type.
    """
    if type(saved) is not type(expected):
        raise UserError(f"{path} holds the part {name} in another form than fit writes: give another checkpoint")
    if isinstance(saved, dict) and isinstance(expected, dict):
        for key, value in expected.items():
            if key in saved:
                check_loops(saved[key], value, path, f"{name}.{key}")
            elif key != "validation_due":  # early checkpoints lack it
                raise UserError(f"{path} lacks the part {name}.{key}: give another checkpoint")


def check_optimizer(saved: Mapping[str, Any], name: str, model: TransformerLM, path: object) -> None:
    """Check that the state of an optimizer has the shapes of a model's parameters, and possible numbers.

    An optimizer of the user's own checks its state itself, because it may hold other things and may leave parameters
    out.

    Raises:
        UserError: it belongs to another model or optimizer, or holds a number that is not finite or a negative square.
    """
    if name not in OPTIMIZERS:
        return
    ordered = ordered_parameters(name, model)
    of_groups = [index for group in saved["param_groups"] for index in group["params"]]
    fits = sorted(of_groups) == list(range(len(ordered))) and set(saved["state"]) <= set(of_groups)
    if fits:  # fsdp2 numbers the parameters in the order of the model; the place in a group is the same
        shapes = {index: parameter.shape for index, parameter in zip(of_groups, ordered, strict=True)}
        fits = all(set(state) in STATES[name] and all(getattr(state[each], "shape", None) == shapes[index]
                                                      for each in set(state) - {"step"})
                   for index, state in saved["state"].items())
    if not fits:
        raise UserError(f"{path} holds the part optimizer_states of another model: give another checkpoint")
    for state in saved["state"].values():
        tensors = {name: each for name, each in state.items() if isinstance(each, torch.Tensor)}
        if not all(each.isfinite().all() and (name != "exp_avg_sq" or (each >= 0).all())
                   for name, each in tensors.items()):
            raise UserError(f"{path} holds averages of gradients in the part optimizer_states that are not finite, or "
                            "squares that are negative: give another checkpoint")


def _table(state: Mapping[str, Any], resume: bool) -> Iterator[tuple[str, Check]]:
    yield from PARTS.items()
    early = {"optimizer": optional(either(one_of(*OPTIMIZERS), own_class)), "provenance": provenance,
             "document_prefix": optional(list_of(whole(), most=64))}
    yield from ((f"tslm.{name}", check) for name, check in early.items() if name in state["tslm"])
    if resume:
        optimizer = state["tslm"].get("optimizer", "AdamW")
        yield from RESUMED.items()
        if optimizer is not None:  # else a subclass of the module made it, with or without a schedule
            yield "optimizer_states", one(optimizer_state if optimizer in OPTIMIZERS else own_optimizer_state)
            yield "lr_schedulers", one(schedule_state)
        if "fingerprints" in state["tslm"]:  # early checkpoints lack them
            yield "tslm.fingerprints", strings
        for callback, checks in CALLBACKS.items():
            if callback in state["callbacks"]:
                yield from ((f"callbacks.{callback}.{name}", check) for name, check in checks.items())
        for name, check in OPTIONAL_FIGURES.items():
            if name in state["callbacks"].get("StepMetrics", {}):
                yield f"callbacks.StepMetrics.{name}", check
