"""Measure what accounting.py counts: one training step on one sequence, without substitutes."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch.utils.flop_counter import FlopCounterMode

from tslm.fast import shut
from tslm.model import TransformerLM
from tslm.objective import cross_entropy
from tslm.optim import AdamW
from tslm.studies.accounting import GIGA, Account, Form
from tslm.training.forecast import free_bytes

MOST_FLOPS = 2e12  # of the forward pass of a step that is taken for real; a minute on two cores


class Measured(NamedTuple):
    """The figures of one step; bytes are None where the step is too large for this machine.

    Attributes:
        form: the feed-forward layer of the model.
        forward_flops: operations of the matmuls in the forward pass.
        backward_flops: those in the backward pass.
        parameter_bytes: bytes of the parameters.
        gradient_bytes: bytes of their gradients.
        optimizer_bytes: bytes of AdamW's moments after the step.
        activation_bytes: bytes of the tensors that the forward pass keeps for the backward pass.
        reason: why bytes were not measured.
    """

    form: Form
    forward_flops: int
    backward_flops: int
    parameter_bytes: int | None = None
    gradient_bytes: int | None = None
    optimizer_bytes: int | None = None
    activation_bytes: int | None = None
    reason: str = ""


def measure(account: Account) -> Measured:
    """Count operations with torch's counter on the device `meta`, and bytes in a real step if it fits here."""
    with shut():
        form = cast(Form, account.config.ffn)
        forward, backward = _flops(account)
        needed, free = 3 * account.memory_bytes(1), free_bytes(torch.device("cpu"))  # autograd keeps thrice the list
        if free is not None and needed > free:
            return Measured(form, forward, backward, reason=f"a step takes about {needed / GIGA:.1f} GB, and "
                            f"{free / GIGA:.1f} GB are free here")
        if account.forward_flops > MOST_FLOPS:
            return Measured(form, forward, backward, reason=f"a step of {3 * account.forward_flops:.1e} operations "
                            "takes minutes on this processor")
        return Measured(form, forward, backward, *_bytes(account))


def _flops(account: Account) -> tuple[int, int]:
    with torch.device("meta"):
        model = TransformerLM(account.config)
        ids = torch.zeros(1, account.config.context_length, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            loss = cross_entropy(model(ids), ids)
            forward = counter.get_total_flops()
            loss.backward()
        return forward, counter.get_total_flops() - forward


def _bytes(account: Account) -> tuple[int, int, int, int]:
    model = TransformerLM(account.config)
    optimizer = AdamW(model.parameters(), lr=1e-3)
    ids = torch.zeros(1, account.config.context_length, dtype=torch.int64)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Any] = {}  # storages by address; the reference keeps an address from being used again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        """Remember the storage of a tensor that the backward pass needs, unless it is a weight's."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = cross_entropy(model(ids), ids)
    activations = sum(storage.nbytes() for storage in kept.values())
    loss.backward()
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    parameters = [*model.parameters()]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return _nbytes(parameters), _nbytes(gradients), _nbytes(moments), activations


def _nbytes(tensors: list[Any]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
