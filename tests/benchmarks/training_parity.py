"""Compare validation losses: tslm against transformers' Llama with torch's AdamW, after the same tokens.

Both sides start from the same weights and read the same windows in the same order. Their optimizers differ as the
documentation of `tslm.optim.AdamW` says: in the place of ε and in the order of step and decay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tests.benchmarks import training_peers
from tests.benchmarks.measure import Figure, Run, Target, run_alone
from tests.benchmarks.training_jobs import OURS, SHAPES

if TYPE_CHECKING:
    from torch import Tensor

    from tslm.data.batches import ValidBatches
    from tslm.training.module import LanguageModule

_TOY_STORIES = 4000
_HELD_OUT = 10  # the last 1/10 of the text is for validation


def figure(name: str, precision: str, seeds: range, run: Callable[..., Run] = run_alone, **options: Any) -> Figure:
    """Return the difference of the mean validation losses over seeds; the peer trains in float32.

    Args:
        name: Name of the figure.
        precision: Precision of tslm, "fp32" or "bf16".
        seeds: Seeds. Each side trains once per seed.
        run: Runs `train`, as a rule in a new process.
        options: Other arguments of `train`.
    """
    losses = [
        {"seed": seed, "ours": _trained(run, OURS, precision, seed, **options),
         "peer": _trained(run, "transformers", "fp32", seed, **options)}
        for seed in seeds
    ]
    difference = fmean(pair["ours"]["valid"] - pair["peer"]["valid"] for pair in losses)
    details = {
        "difference": difference, "ours_loss": fmean(pair["ours"]["valid"] for pair in losses),
        "peer_loss": fmean(pair["peer"]["valid"] for pair in losses), "losses": losses,
    }
    return Figure(name, "nats", abs(difference), None, None, Target("ours", "<=", 0.005), len(losses), None, details)


@cache  # both precisions use the same trainings of the peer
def _trained(run: Callable[..., Run], side: str, precision: str, seed: int, **options: Any) -> dict[str, Any]:
    result: dict[str, Any] = run(train, side=side, precision=precision, seed=seed, **options).result
    return result


def token_ids(text: Path | None, vocab_size: int, folder: Path, seed: int) -> Path:
    """Train a vocabulary on a text (the embedded corpus for None) and return a file with the ids of the text."""
    import numpy as np

    from tslm.data.toy import write_corpus
    from tslm.tokenizer import END_OF_TEXT, Tokenizer, train_bpe

    path = folder / f"parity-{vocab_size}.npy"
    if not path.exists():
        if text is None:
            text = folder / "parity.txt"
            write_corpus(text, _TOY_STORIES, seed)
        tokenizer = Tokenizer(*train_bpe(text, vocab_size, [END_OF_TEXT]), [END_OF_TEXT])
        np.save(path, np.array(tokenizer.encode(text.read_text(encoding="utf-8")), dtype=np.uint16))
    return path


def train(
    side: str, precision: str, seed: int, ids: str, shape: str, batch_size: int, tokens: int
) -> dict[str, Any]:
    """Train one side with tslm's initial weights and default settings, then validate it.

    Args:
        side: `OURS` or "transformers".
        precision: "fp32", or "bf16" for the matmuls of tslm.
        seed: Seed of weights and windows.
        ids: File of token ids; the last 1/10 is for validation.
        shape: Key of `SHAPES`.
        batch_size: Windows in a step.
        tokens: Training tokens, rounded up to whole steps.

    Returns:
        `valid`: mean validation loss at the end. `train`: mean training loss of each 1/20 of the steps. In nats per
        token.
    """
    import torch

    from tslm.training.module import LanguageModule

    sizes = SHAPES[shape]
    steps = -(-tokens // (batch_size * sizes["context_length"]))
    torch.manual_seed(seed)
    module = LanguageModule(**sizes)
    batches, held_out = windows(Path(ids), sizes["context_length"], batch_size, seed)
    if side == OURS:
        losses, valid = train_ours(module, batches, held_out, steps, precision)
    else:
        losses, valid = _train_llama(module, batches, held_out, steps)
    return {"valid": valid, "train": twentieths(losses)}


def twentieths(losses: list[float]) -> list[float]:
    """Return the mean of each 1/20 of a list of losses, in order."""
    parts = min(20, len(losses))
    boundaries = [number * len(losses) // parts for number in range(parts + 1)]
    return [fmean(losses[start:end]) for start, end in pairwise(boundaries)]


def windows(
    ids: Path, context: int, batch_size: int, seed: int
) -> tuple[Iterator[tuple[Tensor, Tensor]], ValidBatches]:
    """Return endless batches of random windows of the first 9/10 of a text, and all windows of the last 1/10."""
    import numpy as np

    from tslm.data.batches import TrainBatches, valid_batches
    from tslm.data.windows import WindowStream

    tokens = np.load(ids)
    split = len(tokens) - len(tokens) // _HELD_OUT
    stream = WindowStream(tokens[:split], context, seed)
    return iter(TrainBatches(stream, batch_size, lambda: 0, 0, 1)), valid_batches(tokens[split:], context, batch_size)


def train_ours(
    module: LanguageModule, batches: Iterator[tuple[Tensor, Tensor]], held_out: ValidBatches, steps: int,
    precision: str,
) -> tuple[list[float], float]:
    """Train a module through the bare loop; return the loss of each step and the validation loss at the end."""
    import torch

    from tslm.loops.bare import BareDriver, train
    from tslm.loops.step import Cadence

    losses: list[float] = []
    made = module.make_optimizer(steps)
    driver = BareDriver(
        module, made["optimizer"], made["lr_scheduler"]["scheduler"], batches, max_norm=training_peers.MAX_NORM,
        autocast=lambda: torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        on_log=lambda step, loss: losses.append(loss.item()), valid_batches=list(held_out),
    )
    train(driver, steps, Cadence(log=1))
    return losses, float(module.valid_nats) / module.valid_tokens


def _train_llama(
    module: LanguageModule, batches: Iterator[tuple[Tensor, Tensor]], held_out: ValidBatches, steps: int
) -> tuple[list[float], float]:
    """Train transformers' Llama with torch's AdamW and clipping in float32; return what `train_ours` returns."""
    import torch
    from torch.nn.functional import cross_entropy

    settings = module.optimizer_settings
    rate = settings.schedule(steps)
    llama = training_peers.llama_of(module.model)
    optimizer = torch.optim.AdamW(llama.parameters(), settings.lr, settings.betas, settings.eps, settings.weight_decay)

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(llama(input_ids=inputs).logits.flatten(0, 1), targets.flatten())

    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        loss = loss_of(*next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llama.parameters(), training_peers.MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with torch.no_grad():
        nats = sum(float(loss_of(inputs, targets)) * targets.numel() for inputs, targets in held_out)
    return losses, nats / sum(targets.numel() for _, targets in held_out)
