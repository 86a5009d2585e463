"""The stories that `generate` and `predict` show: printed token by token, as a table, and in predictions.jsonl."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tslm.errors import UserError
from tslm.generation import Completion, SamplingRule, stream_text
from tslm.generation.text import cut_at
from tslm.training.runs import find_checkpoint, load_model
from tslm.training.settings import GenerationSettings
from tslm.training.writing import replace_atomically


class StoryTeller:
    """A trained model that continues prompts and prints the text while it is generated.

    The arguments that are not listed are the options of `generate`.

    Args:
        settings: how the tokens are drawn. The n-th story has the seed `settings.seed` + n, counted from 0, so each can
            be told again alone.
        stop: texts that end a story; see `generation.text.cut_at`.

    Raises:
        MissingFileError: there is no such checkpoint.
        UserError: the checkpoint is damaged, or a setting is out of range.
    """

    def __init__(self, settings: GenerationSettings, ckpt_path: str | None = None, *, num_samples: int = 1,
                 stop: Sequence[str] = (), allow_special: bool = False, ffn: str | None = None) -> None:
        settings.check()
        if num_samples < 1:
            raise UserError(f"num_samples is {num_samples}: give 1 or more")
        if num_samples > 1 and SamplingRule(settings.temperature, settings.top_p, settings.top_k).greedy:
            raise UserError(f"num_samples is {num_samples}, but with temperature {settings.temperature:g} and top_k "
                            f"{settings.top_k} all samples are the same: give a --temperature above 0 and no --top_k 1")
        cut_at([], stop)  # raises its error before the model is loaded
        path, notices = find_checkpoint(ckpt_path, prefer="best")
        for notice in notices:
            print(notice, flush=True)
        self._settings, self._num_samples, self._stop = settings, num_samples, stop
        self._model, self._tokenizer, _, _, self._prefix = load_model(path, ffn=ffn)
        self._allow_special, self._told = allow_special, 0

    def tell(self, prompt: str) -> None:
        """Print a prompt, which may be empty, and its continuation; of several, each below a line with its seed.

        Raises:
            UserError: the prompt is empty, and nothing preceded the texts of the training; or it cannot be encoded.
        """
        for _ in range(self._num_samples):
            seed = self._settings.seed + self._told
            pieces = stream_text(self._model, self._tokenizer, prompt, self._settings.max_new_tokens, seed=seed,
                                 temperature=self._settings.temperature, top_p=self._settings.top_p,
                                 top_k=self._settings.top_k, prefix=self._prefix, allow_special=self._allow_special,
                                 stop=self._stop)
            first = next(pieces, "")  # raises the errors of the generation before anything is printed
            title = f"--- seed {seed}\n" if self._num_samples > 1 else ""
            print(title + prompt + first, end="", flush=True)
            for piece in pieces:
                print(piece, end="", flush=True)
            print()
            self._told += 1

    def converse(self) -> None:
        """Read prompts line by line and continue each, until Ctrl-D or Ctrl-C; no prompt knows the ones before it.

        Raises:
            UserError: the standard input is closed.
        """
        if sys.stdin is None:
            raise UserError("--interactive reads the standard input, which is closed: give --prompt")
        with suppress(ImportError):
            importlib.import_module("readline")  # gives `input` its line editing and its history
        print("Type how a text begins, and the model continues it. Ctrl-D ends.")
        with suppress(KeyboardInterrupt):
            while True:
                try:
                    self.tell(input("> "))
                except EOFError:
                    break
                except UnicodeDecodeError:
                    print("tslm: this line is not UTF-8: type another one", file=sys.stderr)
                except UserError as error:
                    print(f"tslm: {error}", file=sys.stderr)
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
        ending = "cut at the longest length" if completion.stop_reason == "length" else "ended by itself"
        print(f"\n{number:>3}  {completion.prompt!r}: {completion.tokens} tokens, {ending}")
        for paragraph in (completion.prompt + completion.text).splitlines():
            print(textwrap.fill(paragraph, width, initial_indent="     ", subsequent_indent="     "))
