"""Reads and writes tokenizers as text: vocab.json and merges.txt in GPT-2's form, and a small tokenizer_config.json.

The texts are stored as files in a folder, or together in a checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path

from tslm.errors import MissingFileError, UserError
from tslm.files import atomic_write, check_outputs, sync_folder
from tslm.tokenizer.pretokenize import GPT2, find_pretokens
from tslm.tokenizer.tokenizer import Tokenizer

VOCAB, MERGES, CONFIG = "vocab.json", "merges.txt", "tokenizer_config.json"
TOKENIZER_JSON, TIKTOKEN = "tokenizer.json", ".tiktoken"  # of other programs
MALFORMED = (ValueError, TypeError, AttributeError, OverflowError, RecursionError)  # JSON of another form


def tokenizer_texts(tokenizer: Tokenizer) -> dict[str, str]:
    """Return the texts of vocab.json, merges.txt and tokenizer_config.json.

    Special tokens are in the vocabulary, and with their ids under `added_tokens_decoder` in the config. An ordinary
    token that is also a special one, such as a line feed, never results from a text; its id is in the config alone.

    Raises:
        UserError: the vocabulary has one token under two ids.
    """
    specials = {token.encode(): id_ for token, id_ in tokenizer.special_ids.items()}
    vocab: dict[str, int] = {}
    shadowed: dict[str, int] = {}
    for id_, token in sorted(tokenizer.vocab.items()):
        name = bytes_to_text(token)
        group = vocab if specials.get(token, id_) == id_ else shadowed
        if name in group:
            raise UserError(
                f"the vocabulary has the token {token!r} under the ids {group[name]} and {id_}; keep one of them"
            )
        group[name] = id_
    merges = [f"{bytes_to_text(left)} {bytes_to_text(right)}" for left, right in tokenizer.merges]
    config = {
        # Without a tokenizer.json the second class is an error in transformers, not a tokenizer of another pattern.
        "tokenizer_class": "GPT2Tokenizer" if tokenizer.pattern == GPT2 else "PreTrainedTokenizerFast",
        **({} if tokenizer.pattern == GPT2 else {"pattern": tokenizer.pattern}),
        "added_tokens_decoder": {
            str(id_): {"content": token, "special": True, "normalized": False, "lstrip": False, "rstrip": False,
                       "single_word": False}
            for token, id_ in tokenizer.special_ids.items()
        },
        "shadowed_tokens": shadowed,
        "tokenizer_hash": tokenizer.hash,
    }
    return {
        VOCAB: json.dumps(vocab, ensure_ascii=False, indent=0) + "\n",
        MERGES: "\n".join(["#version: 0.2", *merges]) + "\n",
        CONFIG: json.dumps(config, ensure_ascii=False, indent=2) + "\n",
    }


def tokenizer_from_texts(texts: Mapping[str, str], place: str = "the tokenizer") -> Tokenizer:
    """Build a tokenizer from the texts that `tokenizer_texts` returns.

    Args:
        texts: the text of each file, by its name. Without a tokenizer_config.json there are no special tokens.
        place: the source of the texts, for error messages.

    Raises:
        UserError: one of the texts is not in the form that `tokenizer_texts` returns, vocabulary and merges contradict
            each other, or the hash in tokenizer_config.json is that of another tokenizer.
    """
    vocab = parse_vocab(texts[VOCAB], f"{VOCAB} of {place}")
    merges = parse_merges(texts[MERGES], f"{MERGES} of {place}")
    special_tokens, stated_hash, pattern = [], None, GPT2
    if CONFIG in texts:
        try:
            config = json.loads(texts[CONFIG])
            for id_, token in config.get("added_tokens_decoder", {}).items():
                vocab[int(id_)] = token["content"].encode()
                special_tokens.append(token["content"])
            vocab |= {int(id_): text_to_bytes(name) for name, id_ in config.get("shadowed_tokens", {}).items()}
            stated_hash, pattern = config.get("tokenizer_hash"), config.get("pattern", GPT2)
        except (*MALFORMED, KeyError) as error:
            raise UserError(
                f"{CONFIG} of {place} is not in the expected form ({error!r}); save the tokenizer again"
            ) from None
    tokenizer = Tokenizer(vocab, merges, special_tokens, pattern=pattern)
    check_merges(tokenizer, place)
    if stated_hash not in (None, tokenizer.hash):
        raise UserError(
            f"the files of {place} do not belong together: their hash is {tokenizer.hash[:12]}, but {CONFIG} states "
            f"{str(stated_hash)[:12]}; one of them was changed or damaged: save the tokenizer again, or remove "
            f"tokenizer_hash from {CONFIG} if the change is intended"
        )
    return tokenizer


def check_merges(tokenizer: Tokenizer, place: str) -> None:
    """Check that each merge makes an entry of the vocabulary from two others, and that a merge makes each entry.

    Single bytes and special tokens need no merge. Neither does an entry of several pre-tokens, such as `<|endoftext|>`
    where the caller names no special tokens: no merge could make it.

    Raises:
        UserError: they contradict each other, as after one of the files was cut; the message names the token.
    """
    tokens, made = set(tokenizer.vocab.values()), {left + right for left, right in tokenizer.merges}
    remedy = f"{VOCAB} or {MERGES} is damaged, or they belong to different tokenizers"
    for left, right in tokenizer.merges:
        for token in (left, right, left + right):
            if token not in tokens:
                raise UserError(
                    f"the vocabulary of {place} lacks the token {token!r} of the merge {left!r} + {right!r}; {remedy}"
                )
    specials = {token.encode() for token in tokenizer.special_tokens}
    for id_, token in tokenizer.vocab.items():
        if len(token) < 2 or token in made or token in specials:
            continue
        if _is_within_pretoken(token, tokenizer.pattern):
            raise UserError(
                f"no merge of {place} makes the token {token!r} (id {id_}) of its vocabulary; {remedy}, or the token "
                "is a special one that must be named as such"
            )


def _is_within_pretoken(token: bytes, pattern: str) -> bool:
    try:
        return len(find_pretokens(token.decode(), pattern)) == 1
    except UnicodeDecodeError:  # a part of a character
        return True


def read_files(
    vocab_path: str | os.PathLike[str],
    merges_path: str | os.PathLike[str],
    special_tokens: Sequence[str] | None,
    pattern: str = GPT2,
) -> Tokenizer:
    """Read a vocabulary and merges from two files; `Tokenizer.from_files` documents it."""
    vocab = parse_vocab(read_text(vocab_path), str(vocab_path), special_tokens or ())
    merges = parse_merges(read_text(merges_path), str(merges_path))
    tokenizer = Tokenizer(vocab, merges, special_tokens, pattern=pattern)
    check_merges(tokenizer, f"{vocab_path} and {merges_path}")
    return tokenizer


def read_dir(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a tokenizer from a folder or a file; `Tokenizer.from_dir` documents it."""
    from tslm.tokenizer.tiktoken_file import read_tiktoken  # imported late: they import this file
    from tslm.tokenizer.tokenizer_json import read_tokenizer_json

    paths = input_paths(path)
    for each in paths:
        if each.exists() and not each.is_file():  # to open a named pipe would wait for its writer
            raise UserError(f"{each} is not a regular file; save the tokenizer again")
    if paths[0].name == VOCAB:
        return tokenizer_from_texts({each.name: read_text(each) for each in paths}, str(path))
    return (read_tiktoken if paths[0].suffix == TIKTOKEN else read_tokenizer_json)(paths[0])


def input_paths(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files that `read_dir` reads of a tokenizer.

    They are a .tiktoken file, a tokenizer.json, or those of `write_dir`. Of a folder with vocab.json and tokenizer.json
    the second is taken, because only it names the special tokens; unless `write_dir` has written the folder.
    """
    folder = Path(path)
    if folder.is_file():
        if folder.name == VOCAB or folder.suffix not in (".json", TIKTOKEN):
            raise UserError(f"the tokenizer {folder} is a file of another kind: give a folder with {VOCAB} and "
                            f"{MERGES}, a {TOKENIZER_JSON} of byte-level BPE, or a {TIKTOKEN} file")
        return [folder]
    vocab, config, ranks = folder / VOCAB, folder / CONFIG, sorted(folder.glob(f"*{TIKTOKEN}"))
    is_ours = vocab.exists() and config.is_file() and '"tokenizer_hash"' in read_text(config)
    if (folder / TOKENIZER_JSON).is_file() and not is_ours:
        return [folder / TOKENIZER_JSON]
    if len(ranks) == 1 and not vocab.exists():
        return ranks
    return [vocab, folder / MERGES, *([config] if os.path.lexists(config) else [])]


def write_dir(tokenizer: Tokenizer, path: str | os.PathLike[str]) -> None:
    """Write a tokenizer into a folder; `Tokenizer.save` documents it."""
    texts = tokenizer_texts(tokenizer)
    folder = Path(path)
    check_outputs(output_paths(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(".tmp", f".{folder.name}.", folder.parent))
    try:
        for name, text in texts.items():
            with atomic_write(unfinished / name) as file:
                file.write(text.encode())
        unfinished.chmod(0o755)  # mkdtemp permits only the owner
        try:
            unfinished.replace(folder)
        except OSError:  # the folder exists and holds something: replace the files one by one
            folder.mkdir(exist_ok=True)
            for name in texts:
                (unfinished / name).replace(folder / name)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def output_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the paths of the files that `write_dir` writes into a folder.

    Raises:
        UserError: the path exists and is no folder.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"the output {folder} is a file; give a folder for {VOCAB} and {MERGES}")
    return [Path(folder) / name for name in (VOCAB, MERGES, CONFIG)]


@cache
def byte_to_unicode() -> dict[int, str]:
    """Return GPT-2's printable character for each byte.

    Bytes that are printable Latin-1 characters keep their character. The other 68 become, in order, U+0100, U+0101 and
    so on: the space is Ġ and the line feed Ċ.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + n) for n, byte in enumerate(others)}


def bytes_to_text(token: bytes) -> str:
    """Return the name of a token in GPT-2's characters."""
    return "".join(map(byte_to_unicode().__getitem__, token))


@cache
def _unicode_to_byte() -> dict[str, int]:
    return {character: byte for byte, character in byte_to_unicode().items()}


def text_to_bytes(text: str) -> bytes:
    """Return the bytes of a token's name."""
    try:
        return bytes(map(_unicode_to_byte().__getitem__, text))
    except KeyError:  # other programs write special tokens as they are, spaces included
        return text.encode()


def parse_vocab(
    names: str | Mapping[str, int], place: str, special_tokens: Collection[str] = ()
) -> dict[int, bytes]:
    """Return the tokens by their ids, from a JSON object or its text.

    A special token may be named by its spelling, as `tokenizers` does, or by GPT-2's characters for its bytes. The name
    of one character of GPT-2's stands for a byte.
    """
    vocab: dict[int, bytes] = {}
    try:
        entries = json.loads(names) if isinstance(names, str) else names
        for name, id_ in entries.items():
            spelled = len(name) > 1 and name in special_tokens and bytes_to_text(name.encode()) not in entries
            token = name.encode() if spelled else text_to_bytes(name)
            if vocab.setdefault(int(id_), token) != token:
                raise ValueError(f"the tokens {vocab[int(id_)]!r} and {token!r} have the same id {id_}")
    except MALFORMED as error:
        raise UserError(f"{place} is not a JSON object of tokens and their ids: {error}") from None
    return vocab


def parse_merges(text: str, place: str) -> list[tuple[bytes, bytes]]:
    """Return the merges of a merges.txt."""
    merges = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise UserError(
                f"line {number} of {place} is {line!r}; it should hold two tokens with one space between them"
            )
        merges.append((text_to_bytes(left), text_to_bytes(right)))
    return merges


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a file of a tokenizer."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")  # some editors begin a file with U+FEFF
    except FileNotFoundError:
        raise MissingFileError(
            f"{path} does not exist; a tokenizer's folder holds {VOCAB} and {MERGES}, as `train-tokenizer` writes them"
        ) from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(f"{path} is not UTF-8: byte 0x{byte:02x} at offset {error.start}; save it again") from None
