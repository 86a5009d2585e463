"""What a checkpoint decides on the command line: the architecture always, other settings where none is stated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tslm.commands.options import get_key, is_stated, put_key
from tslm.errors import UserError
from tslm.tokenizer import Tokenizer
from tslm.training.runs import find_checkpoint, load_model
from tslm.training.saved_settings import PlainSettings, plain_settings

PROMPTS = {"data.prompts", "data.prompts_file"}  # two ways to give them, of which one is used
LINKED = {"vocab_size": "data.vocab_size", "context_length": "data.context_length"}  # the model takes the data's values


def take_architecture(values: dict[str, Any], architecture: dict[str, Any], path: Path, stated: set[str]) -> set[str]:
    """Put the sizes of the trained model in place of the options', and return the keys of those options.

    Raises:
        UserError: the user states another size.
    """
    for name, trained in architecture.items():
        key = LINKED.get(name, f"model.{name}")
        if is_stated(key, stated) and get_key(values, key) != trained:
            raise UserError(f"{key} is {get_key(values, key)}, but {path} was trained with {trained}: leave --{key} "
                            "out, or train a new model without --ckpt_path and --init_from")
        put_key(values, key, trained)
    return {LINKED.get(name, f"model.{name}") for name in architecture}


def take_settings(values: dict[str, Any], settings: PlainSettings, decided: set[str], stated: set[str], *,
                  report: bool) -> None:
    """Put the settings of a checkpoint in place of options that the user has not stated.

    Only plain settings reach the parser, which would import the classes that others name; the keys in `decided` are not
    replaced. With `report`, what differs and what is not taken is printed.
    """
    if {"data.train_files", "data.valid_files"} & stated:
        decided = decided | {"data.corpus"}  # it follows from the files
    elif is_stated("data.corpus", stated) and get_key(values, "data.corpus") != "files":
        decided = decided | {"data.train_files", "data.valid_files"}
    if any(is_stated(key, stated) for key in PROMPTS):
        decided = decided | PROMPTS
    before = settings.allowed.get("optimizer.class_path")
    if is_stated("optimizer.class_path", stated) and get_key(values, "optimizer.class_path") != before is not None:
        decided = decided | {"optimizer.init_args"}  # they are of the other class
    plain = plain_settings(values).allowed
    for key, saved in settings.allowed.items():
        if key in decided:
            continue
        now = plain.get(key, get_key(values, key))
        if not is_stated(key, stated):
            put_key(values, key, saved)
        elif now != saved and report:
            print(f"Changed: {key} is {now}; the checkpoint was trained with {saved}.")
    left_out = [key for key in settings.left_out if not is_stated(key, stated)]
    if left_out and report:
        pronoun = "it" if len(left_out) == 1 else "them"
        print(f"Not taken from the checkpoint: {', '.join(left_out)}; state {pronoun} again if you want {pronoun}.")


def other_prompts(sources: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return which of `PROMPTS` a stronger source replaces by the other one.

    Args:
        sources: the stated options and their values, the strongest source first.

    Raises:
        UserError: the strongest source, which is the command line, has both.
    """
    given = [{key for key in PROMPTS if each.get(key) is not None} for each in sources]
    if given[0] == PROMPTS:
        raise UserError("--data.prompts and --data.prompts_file both give the prompts: leave one of them out")
    return PROMPTS - next(filter(None, given), PROMPTS)


class Start(NamedTuple):
    """What `fit --init_from` takes of a checkpoint."""

    architecture: dict[str, Any]
    weights: dict[str, torch.Tensor]
    tokenizer: Tokenizer
    path: Path


def load_start(wanted: str, root: Path, ffn: str | None = None) -> tuple[Start, list[str]]:
    """Load what a new run starts from, and return notices for the user.

    Raises:
        MissingFileError: there is no such file.
        UserError: the file is damaged, is not a checkpoint of `fit`, or has weights that are not finite.
    """
    path, notices = find_checkpoint(wanted, prefer="best", root=root)
    model, tokenizer, *_ = load_model(path, ffn=ffn)
    return Start(asdict(model.config), model.state_dict(), tokenizer, path), notices
