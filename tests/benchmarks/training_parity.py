"""Whether a model learns as much from the same tokens as transformers' Llama with torch's AdamW: validation losses.

A text and a seed come in; both sides start from the same weights and read the same windows in the same order. Their
optimizers differ where `tslm.optim.AdamW` says: in the place of ε and in the order of step and decay.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tests.benchmarks import training_peers
from tests.benchmarks.measure import Figure, Target, run_alone
from tests.benchmarks.training_jobs import OURS, SHAPES

if TYPE_CHECKING:
    from torch import Tensor

    from tslm.data.batches import ValidBatches
    from tslm.training import LanguageModule

_TOY_STORIES = 4000
_HELD_OUT = 10  # the last tenth of the text is for validation


def figure(name: str, precision: str, seeds: range, **options: Any) -> Figure:
    """Return the difference of the mean validation losses over seeds, ours in a precision and the peer's in fp32.

    Args:
        name: of the figure.
        precision: of our side, fp32 or bf16.
        seeds: one training on each side for each of them.
        options: of `train`.
    """
    losses = [
        {"seed": seed, "ours": _trained(OURS, precision, seed, **options),
         "peer": _trained("transformers", "fp32", seed, **options)}
        for seed in seeds
    ]
    difference = fmean(pair["ours"]["valid"] - pair["peer"]["valid"] for pair in losses)
    details = {
        "difference": difference, "ours_loss": fmean(pair["ours"]["valid"] for pair in losses),
        "peer_loss": fmean(pair["peer"]["valid"] for pair in losses), "losses": losses,
    }
    return Figure(name, "nats", abs(difference), None, None, Target("ours", "<=", 0.005), len(losses), None, details)


@cache  # the peer's trainings serve both precisions
def _trained(side: str, precision: str, seed: int, **options: Any) -> dict[str, Any]:
    result: dict[str, Any] = run_alone(train, side=side, precision=precision, seed=seed, **options).result
    return result


def token_ids(text: Path | None, vocab_size: int, folder: Path, seed: int) -> Path:
    """Train a vocabulary on a text (the embedded corpus for None), and return a file with the text's ids."""
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
    """Train one side from the weights that tslm draws for a seed, with its default settings, and validate.

    Args:
        side: `OURS` or transformers.
        precision: fp32, or bf16 for the matmuls of our side.
        seed: of weights and windows.
        ids: a file of token ids, whose last tenth is for validation.
        shape: of `SHAPES`.
        batch_size: windows in a step.
        tokens: trained on, rounded up to whole steps.

    Returns:
        `valid`, the mean loss of the validation tokens at the end, and `train`, means over the steps of each twentieth
        of the training, all in nats.
    """
    import torch

    from tslm.training import LanguageModule

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
    """Return the mean of each twentieth of a list of losses."""
    parts = min(20, len(losses))
    cuts = [number * len(losses) // parts for number in range(parts + 1)]
    return [fmean(losses[start:end]) for start, end in pairwise(cuts)]


def windows(
    ids: Path, context: int, batch_size: int, seed: int
) -> tuple[Iterator[tuple[Tensor, Tensor]], ValidBatches]:
    """Return random windows of all but the last tenth of a text without end, and all windows of the last tenth."""
    import numpy as np

    from tslm.data.batches import TrainBatches, valid_batches
    from tslm.data.windows import WindowStream

    tokens = np.load(ids)
    cut = len(tokens) - len(tokens) // _HELD_OUT
    stream = WindowStream(tokens[:cut], context, seed)
    return iter(TrainBatches(stream, batch_size, 0, 0, 1)), valid_batches(tokens[cut:], context, batch_size)


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
    """Do the same with transformers' Llama, torch's AdamW and torch's clipping, in fp32."""
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
