"""Writes a checkpoint in the forms of other programs: a folder for transformers, a GGUF file, a tokenizer's files."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Literal

from tslm.errors import UserError
from tslm.files import atomic_write, check_absent, new_output
from tslm.generation.text import default_prefix
from tslm.model import TransformerConfig
from tslm.tokenizer import Tokenizer, tokenizer_from_texts, tokenizer_texts
from tslm.tokenizer.serialization import CONFIG, TOKENIZER_JSON
from tslm.tokenizer.tiktoken_file import tiktoken_texts
from tslm.tokenizer.tokenizer_json import tokenizer_json
from tslm.training.checkpoint import fit_part, read_checkpoint
from tslm.training.runs import load_model
from tslm.training.saved_settings import read_architecture

Format = Literal["hf", "gguf", "tokenizer"]
# What a Llama has; the other fields of `TransformerConfig` are free.
LLAMA = {"norm": "pre", "position": "rope", "ffn": "swiglu", "qk_norm": False}


def export(kind: Format, checkpoint: Path, output: Path) -> list[str]:
    """Write the model or the tokenizer of a checkpoint, completely or not at all, and return notices for the user.

    Args:
        kind: `hf`, a folder that transformers opens as `LlamaForCausalLM`; `gguf`, a file for llama.cpp; `tokenizer`, a
            folder with tokenizer.json and, if tiktoken can express the tokenizer, tokenizer.tiktoken.
        checkpoint: a file or folder, as `find_checkpoint` returns it.
        output: the folder or file, which must not exist.

    Raises:
        UserError: the output exists, a package is missing, or the form cannot express the model or the tokenizer.
        OSError: the output cannot be written.
    """
    check_absent(output)
    own = fit_part(read_checkpoint(checkpoint, mmap=True), checkpoint)
    if kind == "tokenizer":
        if own.get("tokenizer") is None:
            raise UserError(f"{checkpoint} holds no tokenizer, because it was not trained on text: give another "
                            "--ckpt_path")
        return write_tokenizer(tokenizer_from_texts(own["tokenizer"], str(checkpoint)), output)
    check_is_llama(TransformerConfig(**read_architecture(own, checkpoint, for_sizes=True)), checkpoint)
    from tslm.export.gguf_file import write_gguf  # imported here because the tokenizer needs neither
    from tslm.export.huggingface import write_huggingface

    loaded = load_model(checkpoint)
    (write_huggingface if kind == "hf" else write_gguf)(loaded, output)
    ids = default_prefix(loaded.tokenizer) if loaded.prefix is None else loaded.prefix
    prefix = loaded.tokenizer.decode(ids)
    return [f"In training {prefix!r} preceded every text: begin prompts with it in other programs."] if prefix else []


def check_is_llama(config: TransformerConfig, place: object) -> None:
    """Check that a model is a Llama.

    Raises:
        UserError: one of its parts is another; the message names the setting.
    """
    for name, needed in LLAMA.items():
        if (value := getattr(config, name)) != needed:
            value, needed = (str(each).lower() if isinstance(each, bool) else each for each in (value, needed))
            raise UserError(f"{place} was trained with model.{name} {value}, and other programs know such a "
                            f"model only with {needed}: train one with --model.{name} {needed}")


def write_tokenizer(tokenizer: Tokenizer, output: Path) -> list[str]:
    """Write tokenizer.json, tokenizer_config.json, tokenizer.tiktoken and tokenizer.tiktoken.json into a new folder.

    Returns:
        Notices, if tiktoken cannot express the tokenizer, so that its files are left out, or may read it otherwise.

    Raises:
        UserError: the folder exists, or `tokenizers` cannot express the tokenizer.
    """
    texts, notices = tokenizer_files(tokenizer), []
    try:
        texts |= {f"tokenizer{ending}": text for ending, text in tiktoken_texts(tokenizer).items()}
    except UserError as error:
        notices.append(f"tokenizer.tiktoken is left out: {error}.")
    else:
        pairs = pairwise(sorted(tokenizer.special_ids))  # neighbours, if one begins another
        notices += [f"The special token {shorter!r} begins {longer!r}: where the second is meant, tiktoken may take "
                    "the first." for shorter, longer in pairs if longer.startswith(shorter)]
    with new_output(output) as folder:
        write_texts(texts, folder)
    return notices


def tokenizer_files(tokenizer: Tokenizer, **settings: object) -> dict[str, str]:
    """Return the texts of tokenizer.json and of a tokenizer_config.json for transformers, with further settings."""
    end = next(iter(tokenizer.special_tokens), None)
    shadowed = json.loads(tokenizer_texts(tokenizer)[CONFIG])["shadowed_tokens"]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end,
              "clean_up_tokenization_spaces": False, **({"shadowed_tokens": shadowed} if shadowed else {}), **settings}
    return {TOKENIZER_JSON: tokenizer_json(tokenizer),
            CONFIG: json.dumps(config, ensure_ascii=False, indent=2) + "\n"}


def write_texts(texts: dict[str, str], folder: Path) -> None:
    """Write files of text into a new folder."""
    folder.mkdir()
    for name, text in texts.items():
        with atomic_write(folder / name) as file:
            file.write(text.encode())
