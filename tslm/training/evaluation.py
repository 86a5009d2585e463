"""The figures of an evaluation, from the totals of the module."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch

from tslm.data.datamodule import text_data
from tslm.errors import DivergedError
from tslm.objective import bits_per_byte, perplexity

if TYPE_CHECKING:
    from tslm.training.module import LanguageModule


def validation_figures(trainer: pl.Trainer, module: LanguageModule) -> dict[str, float]:
    """Return loss, perplexity and, if the text's size is known, bits per byte, over the tokens of all processes."""
    totals = torch.stack([module.valid_nats, torch.tensor(float(module.valid_tokens), dtype=torch.float64)])
    if trainer.world_size > 1:
        totals = trainer.strategy.reduce(totals.to(trainer.strategy.root_device), reduce_op="sum").cpu()
    nats, tokens = totals.tolist()
    if not tokens:
        return {}
    figures = {"loss": nats / tokens, "perplexity": perplexity(nats / tokens)}
    if (data := text_data(trainer)) is not None:
        figures["bits_per_byte"] = bits_per_byte(nats, round(tokens * data.valid_bytes_per_token))
    return figures


def check_loss(loss: float, module: torch.nn.Module, precision: str) -> None:
    """Raise a DivergedError that says why the loss of an evaluation is not finite, if it is not."""
    if math.isfinite(loss):
        return
    bad = [name for name, weight in module.named_parameters() if not weight.isfinite().all()]
    if bad:
        raise DivergedError(f"the loss is {loss}, because the weights in {bad[0]} are not finite: give an "
                        "earlier checkpoint with --ckpt_path")
    raise DivergedError(f"the loss is {loss}, although all weights are finite: they are too large for the precision "
                    f"{precision}; give --trainer.precision 32-true, or an earlier checkpoint with --ckpt_path")
