"""`export`: a trained model or its tokenizer for other people's programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tslm.commands.arguments import Parser


def main(argv: list[str]) -> None:
    """Write a checkpoint in the form of another program."""
    parser = Parser(prog="python -m tslm export", description="Write a trained model for other programs.")
    parser.add_argument("--format", type=Literal["hf", "gguf", "tokenizer"], required=True,
                        help="hf, a folder for transformers; gguf, a file for llama.cpp; tokenizer, a folder with "
                        "tokenizer.json and tokenizer.tiktoken")
    parser.add_argument("--ckpt_path", type=str | None, default=None,
                        help="a checkpoint, a run directory, or 'last' or 'best' of the newest run; 'best' if left out")
    parser.add_argument("--output", type=str, required=True, help="the folder or file to write; it must not exist")
    options = parser.parse_args(argv)

    from tslm.export.formats import export  # imported here because they need torch
    from tslm.training.runs import find_checkpoint

    path, notices = find_checkpoint(options.ckpt_path, prefer="best")
    print(*notices, sep="\n", end="\n" * bool(notices), flush=True)
    notices = export(options.format, path, Path(options.output))
    print(f"Written: {options.output}", *notices, sep="\n")
