"""The strategy `fsdp2`: each process holds a part of every weight, and the checkpoint is one file of whole weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy

from tslm.model import TransformerLM


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, for optimizers with several parameter groups too.

    A state of an optimizer names parameters by numbers. An optimizer numbers them in the order of its groups, and
    Lightning in the order of the module. What holds in both is the place in the list of a group, so it decides here, as
    in `torch.optim.Optimizer.load_state_dict`.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Restore weights and optimizers; return the other parts of the checkpoint, and the optimizers' states."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        optimizers, self.optimizers = self.optimizers, []
        try:
            checkpoint = super().load_checkpoint(checkpoint_path, weights_only=weights_only)
        finally:
            self.optimizers = optimizers
        assert self.model is not None
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for optimizer, state in zip(optimizers, checkpoint["optimizer_states"], strict=bool(optimizers)):
            here = [names[id(each)] for group in optimizer.param_groups for each in group["params"]]
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=renamed(state, here),
                                     options=StateDictOptions(broadcast_from_rank0=True, full_state_dict=True))
        return checkpoint


def divide_weights(model: TransformerLM, mesh: Any) -> None:
    """Let each process of a mesh keep a part of every weight."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # slow to import, and rarely needed

    for module in (*model.layers, model):
        fully_shard(module, mesh=mesh)
    register_fsdp_forward_method(model, "hidden")


def gather_weights(model: TransformerLM, on: bool) -> None:
    """Let each process keep all divided weights, because processes may have different numbers of batches; or not."""
    sharded: list[Any] = [model, *model.layers]
    for module in sharded:
        # The outermost keeps embedding and head after its forward pass anyway: the loss reads the head.
        module.set_reshard_after_forward(not on and module is not model, recurse=False)
        if on:
            module.unshard()
        else:
            module.reshard()


def renamed(state: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Replace the numbers of the parameters in a state by names, which are in the order of the groups."""
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    name_of = dict(zip(numbers, names, strict=True))
    return {
        "state": {name_of[number]: values for number, values in state["state"].items()},
        "param_groups": [group | {"params": [name_of[number] for number in group["params"]]}
                         for group in state["param_groups"]],
    }
