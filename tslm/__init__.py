"""tslm trains a Transformer language model from raw text, every part of the method written from scratch.

    text ─ tokenizer/ ─ ids ─ data/ ─ windows ─ model/ ─ logits ─ objective.py ─ optim/ ─ loops/ ─ training/
                                                                                                      │
    stories ─ generation/ ─ run directory (checkpoints/, tokenizer/, config.yaml, metrics, summary) ──┘

Every name below can be imported from `tslm` itself. Nothing heavy is imported until a name is used, so that
`import tslm` costs milliseconds and the tokenizer never waits for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what `__getattr__` finds, for type checkers and editors
    from tslm.data.windows import get_batch
    from tslm.generation import generate
    from tslm.model import TransformerConfig, TransformerLM, softmax
    from tslm.objective import cross_entropy, perplexity
    from tslm.optim import SGD, AdamW, clip_gradients, lr_cosine_schedule
    from tslm.tokenizer import TokenFile, Tokenizer, count_pretokens, encode_files, merge_pretokens, train_bpe
    from tslm.training import load_checkpoint, save_checkpoint

__version__ = "0.1.0"

_HOME = {
    "train_bpe": "tslm.tokenizer",
    "count_pretokens": "tslm.tokenizer",
    "merge_pretokens": "tslm.tokenizer",
    "Tokenizer": "tslm.tokenizer",
    "encode_files": "tslm.tokenizer",
    "TokenFile": "tslm.tokenizer",
    "TransformerConfig": "tslm.model",
    "TransformerLM": "tslm.model",
    "softmax": "tslm.model",
    "cross_entropy": "tslm.objective",
    "perplexity": "tslm.objective",
    "AdamW": "tslm.optim",
    "SGD": "tslm.optim",
    "lr_cosine_schedule": "tslm.optim",
    "clip_gradients": "tslm.optim",
    "get_batch": "tslm.data.windows",
    "save_checkpoint": "tslm.training",
    "load_checkpoint": "tslm.training",
    "generate": "tslm.generation",
}

__all__ = [
    "SGD", "AdamW", "TokenFile", "Tokenizer", "TransformerConfig", "TransformerLM", "__version__", "clip_gradients",
    "count_pretokens", "cross_entropy", "encode_files", "generate", "get_batch", "load_checkpoint",
    "lr_cosine_schedule", "merge_pretokens", "perplexity", "save_checkpoint", "softmax", "train_bpe",
]


def __getattr__(name: str) -> object:
    """Import a public name from its room at its first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'tslm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """List the public names although none of them is imported yet."""
    return sorted(__all__)
