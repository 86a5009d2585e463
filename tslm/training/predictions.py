"""What `predict` leaves: predictions.jsonl for programs, a table for people."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from tslm.generation import Completion
from tslm.training.checkpoint import replace_atomically


def write_predictions(completions: Sequence[Completion], folder: Path) -> Path:
    """Write one JSON object per line with the keys prompt, text, stop_reason and tokens; return the file's path."""
    lines = [json.dumps(completion._asdict(), ensure_ascii=False) + "\n" for completion in completions]
    path = folder / "predictions.jsonl"
    replace_atomically(path, lambda file: file.write("".join(lines).encode()))
    return path


def print_predictions(completions: Sequence[Completion]) -> None:
    """Print each prompt with its story, wrapped to the terminal."""
    width = min(shutil.get_terminal_size().columns, 100)
    for number, completion in enumerate(completions, 1):
        ending = "ended by itself" if completion.stop_reason == "stop_token" else "cut at the longest length"
        print(f"\n{number:>3}  {completion.prompt!r}: {completion.tokens} tokens, {ending}")
        for paragraph in (completion.prompt + completion.text).splitlines():
            print(textwrap.fill(paragraph, width, initial_indent="     ", subsequent_indent="     "))
