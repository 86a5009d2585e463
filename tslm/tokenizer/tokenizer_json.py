r"""Reads and writes tokenizer.json, the form of a tokenizer in `tokenizers` and transformers.

Other programs split text with regular expressions of other engines: Oniguruma here, Rust's fancy-regex in tiktoken. So
a pattern of one's own is written or read only if it consists of parts that mean the same in all of them. The tables of
Unicode belong to the engines, and those of two versions may differ for new characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tslm.errors import UserError
from tslm.tokenizer.pretokenize import CL100K, GPT2, NONE, compiled
from tslm.tokenizer.serialization import (
    CONFIG,
    MALFORMED,
    TOKENIZER_JSON,
    bytes_to_text,
    check_merges,
    parse_vocab,
    read_text,
    text_to_bytes,
)
from tslm.tokenizer.tokenizer import Tokenizer

_NO_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False}
# The pattern of GPT-4 for Oniguruma, in which {1,3}+ repeats the repetition and $ matches at the end of every line.
_CL100K = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]|"
           r"\s+(?!\S)|\s")
# GPT-2's own spelling of its pattern, and tiktoken's.
_GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
         r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s")
# Parts of a pattern that mean the same in `regex`, Oniguruma and fancy-regex.
_CLASS = r"\\[pP]\{\w+\}|\\[sSrnt]|\\[^\w\s]"
_SET = rf"\[\^?(?:{_CLASS}|[^\\\[\]&^-](?:-[^\\\[\]&^-])?)+\]"
_PORTABLE = re.compile(rf"(?:{_CLASS}|{_SET}|\((?:\?(?:[:=!>]|<[=!]|i:)|(?!\?))|[)|]|[?*+][?+]?"
                       r"|\{\d+(?:,\d*)?\}(?![?+])|[^\\\[\](){}?*+^$])*")


def token_names(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of all tokens by their names in `tokenizers` and llama.cpp.

    A special token has its own spelling as its name, every other token its bytes in GPT-2's characters. An ordinary
    token with the bytes of a special one never results from a text, and is left out.

    Raises:
        UserError: two tokens would have one name, for example the special token `é` and the byte 0xE9.
    """
    names = dict(tokenizer.special_ids)
    specials = {token.encode(): id_ for token, id_ in names.items()}
    for id_, token in sorted(tokenizer.vocab.items()):
        name = bytes_to_text(token)
        if token not in specials and names.setdefault(name, id_) != id_:
            raise UserError(f"the tokens with the ids {names[name]} and {id_} both have the name {name!r} in "
                            f"{TOKENIZER_JSON} and in GGUF files, where a special token is named by its spelling and a "
                            "byte by a character: train a tokenizer whose special tokens have other names")
    return names


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """Return the text of tokenizer.json, for `tokenizers.Tokenizer.from_file` and transformers.

    Raises:
        UserError: the form cannot express the tokenizer: see `token_names`, and the pattern of `portable_pattern`.
    """
    names, ids = token_names(tokenizer), {token.encode(): id_ for token, id_ in tokenizer.special_ids.items()}
    for token in (token for left, right in tokenizer.merges for token in (left, right, left + right)):
        if token in ids:  # merges have to name tokens of the vocabulary, also those that no text needs
            names.setdefault(bytes_to_text(token), ids[token])
    byte_level: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    splitter = byte_level | {"use_regex": tokenizer.pattern == GPT2}
    if tokenizer.pattern not in (GPT2, NONE):
        pattern = _CL100K if tokenizer.pattern == CL100K else portable_pattern(tokenizer.pattern)
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        splitter = {"type": "Sequence", "pretokenizers": [split, splitter]}
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": id_, "content": token, **_NO_FLAGS, "normalized": False, "special": True}
                         for token, id_ in tokenizer.special_ids.items()],
        "normalizer": None, "pre_tokenizer": splitter, "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": dict(sorted(names.items(), key=lambda item: item[1])),
            "merges": [f"{bytes_to_text(left)} {bytes_to_text(right)}" for left, right in tokenizer.merges],
        },
    }, ensure_ascii=False, indent=1) + "\n"


def portable_pattern(pattern: str) -> str:
    """Return a pattern of one's own.

    Raises:
        UserError: a part of it has another meaning in other engines, or may have one.
    """
    part = _PORTABLE.match(pattern)
    end = part.end() if part else 0
    if end < len(pattern):
        raise UserError(f"the pattern {pattern[:200]!r} contains {pattern[end : end + 20]!r}, which may have another "
                        r"meaning in other programs: only \p{…}, \s, \S, \r, \n, \t, sets, groups, lookaround and "
                        "repetitions mean the same in all of them")
    return pattern


def read_tokenizer_json(path: Path) -> Tokenizer:
    """Read a tokenizer.json of byte-level BPE.

    Added tokens become special ones. If a tokenizer_config.json beside it names an `eos_token`, this is the first.

    Raises:
        UserError: the file is damaged, or has a part that a `Tokenizer` cannot express; the message names it.
    """
    try:
        spec = json.loads(read_text(path))
        model, special_ids = spec["model"], {}
        for part, needed in {"type": ("BPE", None), "byte_fallback": (False, None), "ignore_merges": (False, None),
                             "dropout": (None, 0), "continuing_subword_prefix": (None, ""),
                             "end_of_word_suffix": (None, "")}.items():
            _check(path, f"model.{part}", model.get(part), *needed)
        _check(path, "normalizer", spec.get("normalizer"), None)
        for token in spec.get("added_tokens") or []:
            for flag, value in _NO_FLAGS.items():
                _check(path, f"the flag {flag} of the added token {token['content']!r}", token.get(flag), value, None)
            special_ids[str(token["content"])] = int(token["id"])
        entries = {name: id_ for name, id_ in model["vocab"].items() if special_ids.get(name) != id_}
        vocab = parse_vocab(entries, str(path)) | {id_: token.encode() for token, id_ in special_ids.items()}
        merges = [_merge(pair, special_ids, path) for pair in model["merges"]]
        pattern = _pattern_of(spec.get("pre_tokenizer"), path)
    except UserError:
        raise
    except (*MALFORMED, KeyError) as error:
        raise UserError(f"{path} is not in the form of `tokenizers` ({error!r}): give another tokenizer") from None
    config = _read_config(path.with_name(CONFIG))
    for name, id_ in config["shadowed_tokens"].items():
        vocab.setdefault(id_, text_to_bytes(name))
    specials = sorted(special_ids, key=lambda token: token != config["eos_token"])
    return checked(Tokenizer(vocab, merges, specials, pattern=pattern), special_ids, path)


def _merge(pair: str | list[str], special_tokens: Collection[str], path: Path) -> tuple[bytes, bytes]:
    """Return a merge of two tokens; `tokenizers` names one that is also special by the spelling."""
    names = pair.split(" ") if isinstance(pair, str) else pair
    if len(names) != 2 or not all(names):
        raise UserError(f"{path} has the merge {pair!r}; it should be two tokens")
    left, right = (name.encode() if len(name) > 1 and name in special_tokens else text_to_bytes(name) for name in names)
    return left, right


def checked(tokenizer: Tokenizer, special_ids: dict[str, int], path: Path) -> Tokenizer:
    """Return a tokenizer whose merges fit its vocabulary, and whose special tokens have the ids that a file gives them.

    Raises:
        UserError: they do not.
    """
    check_merges(tokenizer, str(path))
    for token, id_ in special_ids.items():
        if (lower := tokenizer.special_ids[token]) != id_:
            raise UserError(f"{path} gives the special token {token!r} the id {id_}, and its bytes have the lower id "
                            f"{lower}, which tslm would take: give a tokenizer where a special token has the lower one")
    return tokenizer


def _read_config(path: Path) -> dict[str, Any]:
    """Return the end-of-text token and the tokens without a name of a tokenizer_config.json, if there is one."""
    try:
        config = json.loads(read_text(path)) if path.is_file() else {}
        end, shadowed = config.get("eos_token"), config.get("shadowed_tokens", {})
        return {"eos_token": end.get("content") if isinstance(end, dict) else end,
                "shadowed_tokens": {str(name): int(id_) for name, id_ in shadowed.items()}}
    except MALFORMED as error:
        raise UserError(f"{path} is not in the form of transformers ({error!r}): save the tokenizer again") from None


def _check(path: Path, part: str, value: object, *allowed: object) -> None:
    if not any(value == each and type(value) is type(each) for each in allowed):
        raise UserError(f"{path}: {part} is {json.dumps(value, ensure_ascii=False)[:60]}, which a byte-level BPE of "
                        f"tslm cannot express; it must be {json.dumps(allowed[0])}")


def _pattern_of(splitter: Any, path: Path) -> str:  # noqa: ANN401 - JSON
    """Return the pattern of a `pre_tokenizer`: ByteLevel, or one Split before ByteLevel."""
    steps = splitter["pretokenizers"] if splitter and splitter["type"] == "Sequence" else [splitter]
    kinds = [step and step["type"] for step in steps]
    if kinds not in (["ByteLevel"], ["Split", "ByteLevel"]):
        _check(path, "pre_tokenizer", kinds, ["ByteLevel"], ["Split", "ByteLevel"])
    _check(path, "pre_tokenizer.add_prefix_space", steps[-1].get("add_prefix_space"), False)
    by_regex = steps[-1].get("use_regex", True)
    if len(steps) == 1:
        return GPT2 if by_regex else NONE
    _check(path, "pre_tokenizer.use_regex", by_regex, False)
    ways = (["Isolated", False], ["Removed", True])  # of a pattern that matches all of a text, these are the same
    _check(path, "pre_tokenizer.behavior", [steps[0].get("behavior"), steps[0].get("invert", False)], *ways)
    return named_pattern(steps[0]["pattern"]["Regex"], path)


def named_pattern(pattern: str, path: Path) -> str:
    """Return the name of a pattern that a file holds, or the pattern itself.

    Raises:
        UserError: as `portable_pattern` does, or it is no regular expression.
    """
    for name in (GPT2, CL100K, NONE):
        if pattern in (compiled(name).pattern, *(_GPT2 if name == GPT2 else (_CL100K,) if name == CL100K else ())):
            return name
    try:
        compiled(pattern)  # checks it
        return portable_pattern(pattern)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
