"""`load_run`: a past run as an object."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tslm.model import TransformerLM
from tslm.tokenizer import Tokenizer
from tslm.training.checkpoint import fit_part, read_checkpoint
from tslm.training.runs import find_checkpoint, load_model, summary_of
from tslm.training.saved_settings import read_settings


@dataclass(frozen=True)
class Run:
    """A trained model with what belongs to it.

    Attributes:
        model: the model, in evaluation mode on the CPU.
        tokenizer: the tokenizer that it was trained with.
        config: the settings of the training, by their dotted names, such as `optimizer.lr`.
        step: the optimizer steps that the model was trained for.
        summary: the content of `summary.json`; empty if the run has none.
        prefix: the ids that preceded documents in training; None if the checkpoint does not say.
        path: the checkpoint.
    """

    model: TransformerLM
    tokenizer: Tokenizer
    config: dict[str, Any]
    step: int
    summary: dict[str, Any]
    prefix: list[int] | None
    path: Path


def load_run(path: str | Path, *, ffn: str | None = None) -> Run:
    """Load a past run; nothing in its files is executed.

    Args:
        path: a checkpoint; a run directory, of which the best checkpoint is taken; or "last" or "best" of the newest
            run in the working folder; or a folder with a Llama of Hugging Face (see `llama`).
        ffn: the class of the model's own feed-forward layer, as module.Class; it is imported.

    Warns:
        UserWarning: a damaged checkpoint is skipped, so an earlier one is loaded.

    Raises:
        MissingFileError: there is no such checkpoint.
        UserError: the checkpoint is damaged, or is not one of `fit`; or a Llama has a part that our model has not.

    Example:
        >>> run = tslm.load_run("best")
        >>> tslm.complete(run.model, run.tokenizer, ["Once upon a time"], 50, prefix=run.prefix)
    """
    checkpoint, notices = find_checkpoint(str(path), prefer="best")
    for notice in notices[:-1]:  # about skipped files; the last names the checkpoint
        warnings.warn(notice, stacklevel=2)
    model, tokenizer, _, step, prefix = load_model(checkpoint, ffn=ffn)
    settings = read_settings(fit_part(read_checkpoint(checkpoint, mmap=True), checkpoint)).allowed
    return Run(model, tokenizer, settings, step, summary_of(checkpoint), prefix, checkpoint)
