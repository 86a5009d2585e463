"""Reads and writes .tiktoken files, the form of a vocabulary in tiktoken: the merges follow from the ids.

Each line holds the bytes of a token in base64, and its id, which is its rank: `IHRoZQ== 262`
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from tslm.errors import MissingFileError, UserError
from tslm.tokenizer.pretokenize import CL100K, GPT2, NONE, compiled
from tslm.tokenizer.serialization import MALFORMED, TIKTOKEN, read_text
from tslm.tokenizer.tokenizer import Tokenizer
from tslm.tokenizer.tokenizer_json import checked, named_pattern, portable_pattern


def tiktoken_texts(tokenizer: Tokenizer) -> dict[str, str]:
    """Return the texts of a .tiktoken file, and of the file .tiktoken.json beside it, by these endings.

    The second one holds the arguments `pat_str` and `special_tokens` of `tiktoken.Encoding`, because special tokens and
    the pattern have no place in the first.

    Raises:
        UserError: tiktoken would not make the same merges, because it derives them from the ids; or a byte is missing.
    """
    specials = {token.encode(): id_ for token, id_ in tokenizer.special_ids.items()}
    needed = {left + right for left, right in tokenizer.merges} | {bytes([byte]) for byte in range(256)}
    ranks: dict[bytes, int] = {}
    for id_, token in sorted(tokenizer.vocab.items()):
        if token not in specials or (token in needed and (token not in ranks or id_ != specials[token])):
            ranks[token] = id_
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise UserError(f"the vocabulary lacks the byte 0x{missing[0]:02x}, and tiktoken needs all 256")
    if merges_of_ranks(ranks, "the vocabulary") != tokenizer.merges:
        raise UserError("tiktoken derives merges from ids, and those of this vocabulary are not numbered in the order "
                        "of its merges")
    by_rank = sorted(ranks.items(), key=lambda item: item[1])
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in by_rank]
    named = tokenizer.pattern in (GPT2, CL100K, NONE)
    pattern = compiled(tokenizer.pattern).pattern if named else portable_pattern(tokenizer.pattern)
    beside = {"pat_str": pattern, "special_tokens": tokenizer.special_ids}
    return {TIKTOKEN: "".join(lines), f"{TIKTOKEN}.json": json.dumps(beside, ensure_ascii=False, indent=1) + "\n"}


def merges_of_ranks(ranks: Mapping[bytes, int], place: str) -> list[tuple[bytes, bytes]]:
    """Return the merges that make the tokens, in the order of their ranks.

    The rule: of the neighbours within a token, tiktoken merges those first whose joined bytes have the lowest rank. The
    two parts that are left when only the token's own rank remains are its merge.

    Raises:
        UserError: a token is not made of tokens of lower ranks.

    Example:
        >>> merges_of_ranks({b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"abc": 4}, "the vocabulary")
        [(b'b', b'c'), (b'a', b'bc')]
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[at : at + 1] for at in range(len(token))]
        while len(parts) > 2:
            ranked = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
            at = ranked.index(min(ranked))
            if ranked[at] >= rank:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) > 2:
            raise UserError(f"no two tokens of lower ranks make the token {token!r} of rank {rank} of {place}: it is "
                            "damaged, or no byte-pair encoding")
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def read_tiktoken(path: Path) -> Tokenizer:
    """Read a .tiktoken file; merges are recovered from the ranks.

    The pattern and the special tokens come from the file NAME.tiktoken.json beside it, see `tiktoken_texts`.

    Raises:
        MissingFileError: one of the two files does not exist.
        UserError: one of them is damaged, or is no byte-pair encoding.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            token, rank = line.split(" ") if line else ("", "-1")
            if line and ranks.setdefault(base64.b64decode(token, validate=True), int(rank)) != int(rank):
                raise ValueError
        except ValueError:
            raise UserError(f"line {number} of {path} is {line[:60]!r}; it should hold a new token in base64, a space "
                            "and a rank") from None
    vocab = {rank: token for token, rank in ranks.items()}
    if len(vocab) < len(ranks) or b"" in ranks:
        raise UserError(f"{path} gives one rank to two tokens, or has an empty token: it is damaged")
    beside = path.with_name(path.name + ".json")
    if not beside.is_file():
        raise MissingFileError(f"{path} does not say how text is split, so it needs {beside.name} beside it, such as "
                        r'{"pat_str": "…", "special_tokens": {"<|endoftext|>": 50256}}, with the arguments of '
                        "tiktoken.Encoding")
    try:
        given = json.loads(read_text(beside))
        special_ids = {str(token): int(id_) for token, id_ in given.get("special_tokens", {}).items()}
        pattern = named_pattern(given["pat_str"], beside)
        vocab |= {id_: token.encode() for token, id_ in special_ids.items()}
    except UserError:
        raise
    except (*MALFORMED, KeyError) as error:
        raise UserError(f'{beside} should hold {{"pat_str": "…", "special_tokens": {{…}}}} ({error!r})') from None
    tokenizer = Tokenizer(vocab, merges_of_ranks(ranks, str(path)), list(special_ids), pattern=pattern)
    return checked(tokenizer, special_ids, path)
