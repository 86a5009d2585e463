"""Token ids on disk in, batches of windows out.

windows.py draws windows from a token array; toy.py writes the embedded corpus and tinystories.py fetches the real one;
datamodule.py prepares what is missing and serves batches to the Trainer.

Names are loaded at their first use, because datamodule.py needs lightning, whose import takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tslm.data.datamodule import TextDataModule
    from tslm.data.tinystories import fetch_tinystories
    from tslm.data.windows import WindowStream, get_batch, sequential_windows

_HOME = {
    "get_batch": "tslm.data.windows",
    "WindowStream": "tslm.data.windows",
    "sequential_windows": "tslm.data.windows",
    "fetch_tinystories": "tslm.data.tinystories",
    "TextDataModule": "tslm.data.datamodule",
}

__all__ = ["TextDataModule", "WindowStream", "fetch_tinystories", "get_batch", "sequential_windows"]


def __getattr__(name: str) -> object:
    """Import a public name from its file at its first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'tslm.data' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """List the public names although none of them is imported yet."""
    return sorted(__all__)
