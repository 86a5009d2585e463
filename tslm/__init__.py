"""tslm trains a Transformer language model from raw text, every part of the method written from scratch.

    text ─ tokenizer/ ─ ids ─ data/ ─ windows ─ model/ ─ logits ─ objective.py ─ optim/ ─ loops/ ─ training/
                                                                                                      │
    stories ─ generation/ ─ run directory (checkpoints/, tokenizer/, config.yaml, metrics, summary) ──┘

    fast/ holds faster substitutes for single functions; each is used only where it agrees with the function

The public names below are imported from `tslm` itself. Their modules load at the first use of a name, so that
`import tslm` takes milliseconds and the tokenizer does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the names that `__getattr__` finds, for type checkers and editors
    from tslm.data.windows import get_batch
    from tslm.generation import complete, generate
    from tslm.model import TransformerConfig, TransformerLM, softmax
    from tslm.objective import cross_entropy, perplexity
    from tslm.optim import SGD, AdamW, clip_gradients, lr_cosine_schedule
    from tslm.tokenizer import TokenFile, Tokenizer, count_pretokens, encode_files, merge_pretokens, train_bpe
    from tslm.training.checkpoint import load_checkpoint, save_checkpoint
    from tslm.training.load_run import Run, load_run
    from tslm.training.scoring import Scores, score

__version__ = "0.1.0"

_HOME = {name: package for package, names in {
    "tslm.tokenizer": ["train_bpe", "count_pretokens", "merge_pretokens", "Tokenizer", "encode_files", "TokenFile"],
    "tslm.model": ["TransformerConfig", "TransformerLM", "softmax"],
    "tslm.objective": ["cross_entropy", "perplexity"],
    "tslm.optim": ["AdamW", "SGD", "lr_cosine_schedule", "clip_gradients"],
    "tslm.data.windows": ["get_batch"],
    "tslm.training.checkpoint": ["save_checkpoint", "load_checkpoint"],
    "tslm.training.load_run": ["load_run", "Run"],
    "tslm.training.scoring": ["score", "Scores"],
    "tslm.generation": ["generate", "complete"],
}.items() for name in names}

__all__ = [
    "SGD", "AdamW", "Run", "Scores", "TokenFile", "Tokenizer", "TransformerConfig", "TransformerLM", "__version__",
    "clip_gradients", "complete", "count_pretokens", "cross_entropy", "encode_files", "generate", "get_batch",
    "load_checkpoint", "load_run", "lr_cosine_schedule", "merge_pretokens", "perplexity", "save_checkpoint", "score",
    "softmax", "train_bpe",
]


def __getattr__(name: str) -> object:
    """Import a public name from its package at its first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'tslm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """List the public names, including those that are not imported yet."""
    return sorted(__all__)
