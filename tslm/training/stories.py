"""The stories that `generate` and `predict` show: printed token by token, as a table, and in predictions.jsonl."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from tslm.generation import Completion, stream_text
from tslm.training.checkpoint import replace_atomically
from tslm.training.runs import find_checkpoint, load_model
from tslm.training.settings import GenerationSettings


def print_story(
    prompt: str, settings: GenerationSettings, ckpt_path: str | None = None, *, allow_special: bool = False
) -> None:
    """Print a prompt and the model's continuation, token by token as it is generated.

    Args:
        prompt: beginning of the story; may be empty.
        settings: how the tokens are drawn.
        ckpt_path: a checkpoint file, a run directory, or `last` or `best` of the newest run; unless given, the
            newest run's best, with a notice.
        allow_special: whether special tokens are recognized in the prompt.

    Raises:
        MissingFileError: there is no such checkpoint.
        UserError: the checkpoint is damaged, or a setting is out of range.
    """
    settings.check()
    path, notices = find_checkpoint(ckpt_path, prefer="best")
    for notice in notices:
        print(notice, flush=True)
    model, tokenizer, _, _, prefix = load_model(path)
    pieces = stream_text(
        model, tokenizer, prompt, settings.max_new_tokens, temperature=settings.temperature, top_p=settings.top_p,
        top_k=settings.top_k, seed=settings.seed, prefix=prefix, allow_special=allow_special,
    )
    first = next(pieces, "")  # raises the errors of the generation before anything is printed
    print(prompt + first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def write_predictions(completions: Sequence[Completion], folder: Path) -> Path:
    """Write predictions.jsonl, one JSON object a line: prompt, text, stop_reason, tokens. Return the file's path."""
    lines = [json.dumps(completion._asdict(), ensure_ascii=False) + "\n" for completion in completions]
    path = folder / "predictions.jsonl"
    replace_atomically(path, lambda file: file.write("".join(lines).encode()))
    return path


def print_predictions(completions: Sequence[Completion]) -> None:
    """Print each prompt with its story, wrapped to the width of the terminal."""
    width = min(shutil.get_terminal_size().columns, 100)
    for number, completion in enumerate(completions, 1):
        ending = "ended by itself" if completion.stop_reason == "stop_token" else "cut at the longest length"
        print(f"\n{number:>3}  {completion.prompt!r}: {completion.tokens} tokens, {ending}")
        for paragraph in (completion.prompt + completion.text).splitlines():
            print(textwrap.fill(paragraph, width, initial_indent="     ", subsequent_indent="     "))
