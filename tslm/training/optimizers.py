"""Makes the optimizer that the settings name: one of tslm's, or a class of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from tslm.errors import UserError
from tslm.model import TransformerLM
from tslm.model.own_classes import import_named
from tslm.optim import SGD, AdamW, Muon

OPTIMIZERS: dict[str, type[Optimizer]] = {"AdamW": AdamW, "SGD": SGD, "Muon": Muon}
COMMON = ("betas", "eps", "weight_decay")  # settings that a class receives if its constructor has such a parameter


def optimizer_class(name: str) -> Callable[..., Any]:
    """Return the class of a name in `OPTIMIZERS`, or of a dotted name, which is imported.

    Raises:
        UserError: it is neither.
    """
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    if "." not in name:
        raise UserError(f"optimizer.class_path is {name!r}: give one of {', '.join(OPTIMIZERS)}, or a class of your "
                        "own as module.Class")
    return import_named(name, "optimizer.class_path")


def parameter_names(name: str) -> set[str]:
    """Return the names of the arguments of an optimizer's class, without that of the parameters."""
    try:
        return set([*inspect.signature(optimizer_class(name)).parameters][1:])
    except (TypeError, ValueError):  # a class without a signature
        return set()


def parameter_groups(make: Callable[..., Any], model: TransformerLM) -> list[dict[str, Any]]:
    """Return the groups into which an optimizer divides a model, by its function `groups`, or all parameters as one."""
    divide = getattr(make, "groups", None)
    return [{"params": [*model.parameters()]}] if divide is None else divide(model)


def make_optimizer(name: str, model: TransformerLM, arguments: dict[str, Any]) -> Optimizer:
    """Make an optimizer for the parameters of a model.

    Raises:
        UserError: the class cannot be made with the arguments, or is no optimizer.
    """
    make = optimizer_class(name)
    try:
        groups = parameter_groups(make, model)
        optimizer = make([group for group in groups if group["params"]], **arguments)
    except (Exception, SystemExit) as error:  # whatever the user's class raises
        raise UserError(f"optimizer.class_path is {name}, which cannot be made with {arguments}: "
                        f"{type(error).__name__}: {error}") from error
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"optimizer.class_path is {name}, which makes no optimizer: name a subclass of Optimizer")
    return optimizer


def ordered_parameters(name: str, model: TransformerLM) -> list[torch.Tensor]:
    """Return a model's parameters in the order in which the state of one of `OPTIMIZERS` numbers them."""
    return [each for group in parameter_groups(OPTIMIZERS[name], model) for each in group["params"]]
