"""The Tokenizer: text to token ids and back, with any byte-level BPE vocabulary."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain

from tslm.errors import UserError
from tslm.tokenizer.bpe import Ids, Pair, Vocabulary, encode_block, encode_pretokens, rank_merges
from tslm.tokenizer.chunking import Block, overlapping_blocks
from tslm.tokenizer.joining import join_blocks
from tslm.tokenizer.jsonl import DOCUMENT_END
from tslm.tokenizer.pretokenize import GPT2, compiled, encode_specials, find_pretokens
from tslm.tokenizer.surrogates import to_utf8, utf8_pieces

END_OF_TEXT = "<|endoftext|>"  # the separator between documents in GPT-2's data and in TinyStories

_LARGEST_ID = (1 << 32) - 2  # token files have 32 bits for an id, and `DOCUMENT_END` has the id after the largest
_LONG_TEXT = 1 << 12  # characters; from here on encoding by blocks is faster than encoding by pre-tokens
_STREAM_BYTES = 1 << 14  # the size of a stream's blocks; a block and its arrays take about 0.6 MB
_STREAM_OVERLAP = 1 << 10  # so that overlapping blocks are not much larger than the others
_CACHED_PRETOKENS = 1 << 16
_LONGEST_CACHED = 64  # characters; longer pre-tokens are rare


class Tokenizer:
    """Byte-level BPE.

    Args:
        vocab: the bytes of each id. It may lack some of the 256 bytes; encoding a text that needs one is an error.
        merges: pairs of tokens; the first of them is merged first.
        special_tokens: strings that become one token each, before the text is split into pre-tokens. Of overlapping
            ones the leftmost is taken, and of several that start at one position the longest. Those that the vocabulary
            lacks are appended to it.
        pattern: how text is split into pre-tokens: "gpt2", "cl100k" (GPT-4's), "none", or a regular expression (see
            `pretokenize.find_pretokens`); the one that the merges were trained with.

    Attributes:
        vocab: as given, with the special tokens.
        merges: as given.
        special_ids: the id of each special token, in the order given.
        pattern: as given.

    Raises:
        UserError: a special token is empty, an id is negative or above 4,294,967,294, or the pattern is invalid.

    Example:
        >>> vocab = dict(enumerate([b" ", b"a", b"c", b"e", b"h", b"t", b"th", b" c", b" a", b"the", b" at"]))
        >>> merges = [(b"t", b"h"), (b" ", b"c"), (b" ", b"a"), (b"th", b"e"), (b" a", b"t")]
        >>> Tokenizer(vocab, merges).encode("the cat ate")
        [9, 7, 1, 5, 10, 3]
    """

    def __init__(
        self,
        vocab: Mapping[int, bytes],
        merges: Iterable[Pair],
        special_tokens: Sequence[str] | None = None,
        *,
        pattern: str = GPT2,
    ) -> None:
        compiled(pattern)  # checks it
        self.pattern = pattern
        self.vocab = dict(vocab)
        self.merges = [(left, right) for left, right in merges]
        # In descending order, so that a token that has two ids keeps the lower one.
        ids = {token: id_ for id_, token in sorted(self.vocab.items(), reverse=True)}
        self.special_ids: dict[str, int] = {}
        for token in encode_specials(special_tokens or []):
            if token not in ids:
                ids[token] = max(self.vocab, default=-1) + 1
                self.vocab[ids[token]] = token
            self.special_ids[token.decode()] = ids[token]
        for id_ in (min(self.vocab, default=0), max(self.vocab, default=0)):
            if not 0 <= id_ <= _LARGEST_ID:
                raise UserError(
                    f"the vocabulary has the id {id_} for the token {self.vocab[id_]!r}; ids are 0 to {_LARGEST_ID}, "
                    "so that a token file can hold them: number the tokens again"
                )
        self._special_bytes = [token.encode() for token in self.special_ids]
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        self._special_split = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
        # `DOCUMENT_END` is a special token for `encode_bytes`. Its id is not part of the vocabulary.
        special_ids = dict(zip(self._special_bytes, self.special_ids.values(), strict=True))
        document_end = {DOCUMENT_END: self.vocab_size}
        self._vocabulary = Vocabulary(ids, rank_merges(self.merges), special_ids | document_end, pattern)
        self._without_specials = replace(self._vocabulary, special_ids=document_end)
        self._known: dict[str, Sequence[int]] = {}  # the ids of pre-tokens
        # The first calls build tables. They are made now, so that `encode_iterable` needs little memory.
        encode_pretokens([], self._vocabulary)
        encode_block(b"", self._vocabulary)

    @classmethod
    def from_files(
        cls,
        vocab_filepath: str | os.PathLike[str],
        merges_filepath: str | os.PathLike[str],
        special_tokens: Sequence[str] | None = None,
        *,
        pattern: str = GPT2,
    ) -> Tokenizer:
        """Read `vocab.json` and `merges.txt` in GPT-2's byte-to-unicode form.

        A special token that the vocabulary names, by its bytes in this form or by its spelling, keeps its id.

        Raises:
            MissingFileError: one of them does not exist.
            UserError: one of them is not in that form, or vocabulary and merges contradict each other.
        """
        from tslm.tokenizer import serialization  # imported late: it imports this file

        return serialization.read_files(vocab_filepath, merges_filepath, special_tokens, pattern)

    @classmethod
    def from_dir(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read what `save` wrote; without a `tokenizer_config.json` there are no special tokens.

        Args:
            path: the folder; or, of other programs, a `tokenizer.json` of byte-level BPE, a `.tiktoken` file with its
                `.tiktoken.json` (see `tiktoken_file`), or a folder that holds one of them.

        Raises:
            MissingFileError: the folder, `vocab.json` or `merges.txt` does not exist.
            UserError: one of the files is not in the form that `save` writes, or they do not belong together; or a
                part of a `tokenizer.json` cannot be expressed.
        """
        from tslm.tokenizer import serialization

        return serialization.read_dir(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `vocab.json`, `merges.txt` and `tokenizer_config.json` into a folder.

        A new folder appears complete or not at all. In a folder that is not empty each file is replaced atomically.

        Raises:
            UserError: the vocabulary has one token under two ids, which `vocab.json` cannot express; or the path
                is a file, or one of the three files is a folder or a device.
        """
        from tslm.tokenizer import serialization

        serialization.write_dir(self, path)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id: the number of rows that an embedding needs."""
        return max(self.vocab, default=-1) + 1

    @property
    def special_tokens(self) -> list[str]:
        """The special tokens, in the order given."""
        return list(self.special_ids)

    @property
    def separator(self) -> int | None:
        """The id of the first special token, which separates documents; None without special tokens."""
        return next(iter(self.special_ids.values()), None)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of vocabulary, merges, special tokens and pattern in hexadecimal; equal for equal tokenizers."""
        digest = hashlib.sha256()
        for part in (
            [(str(id_).encode(), token) for id_, token in sorted(self.vocab.items())],
            self.merges,
            sorted((token.encode(), str(id_).encode()) for token, id_ in self.special_ids.items()),
        ):
            digest.update(b"%d:" % len(part))
            for pair in part:
                for field in pair:
                    digest.update(b"%d:" % len(field) + field)
        if self.pattern != GPT2:  # the hashes of earlier versions, which had no other pattern, stay valid
            digest.update(self.pattern.encode())
        return digest.hexdigest()

    def encode(self, text: str, *, allow_special: bool = True) -> list[int]:
        """Return the ids of the tokens of a text.

        Args:
            text: the text. A pair of surrogates is the character that the pair expresses, as in tiktoken.
            allow_special: whether special tokens are recognized; else their spelling is text.

        Raises:
            UserError: the text holds a lone surrogate, or a byte that the vocabulary lacks.
        """
        if len(text) >= _LONG_TEXT:
            return list(self.encode_iterable([text], allow_special=allow_special))
        pieces = self._special_split.split(text) if allow_special and self._special_split is not None else [text]
        ids: list[int] = []
        for index, piece in enumerate(pieces):
            if index % 2:  # a special token; the other pieces are the text between special tokens
                ids.append(self.special_ids[piece])
            else:
                ids += chain.from_iterable(self._encode_pretokens(find_pretokens(piece, self.pattern)))
        return ids

    def _encode_pretokens(self, pretokens: Sequence[str]) -> list[Sequence[int]]:
        """Return the ids of each pre-token of a text, and add new pre-tokens to the cache."""
        known, lookup = self._known, self._known.get
        new: dict[str, list[int]] = defaultdict(list)  # the lists are filled below
        found = [lookup(each) or new[each] for each in pretokens]
        if new:
            try:
                encoded = encode_pretokens([*map(str.encode, new)], self._vocabulary)
            except KeyError as error:
                raise _missing_token(error.args[0]) from None
            except UnicodeEncodeError:  # surrogates
                return self._encode_pretokens(find_pretokens(to_utf8("".join(pretokens)).decode(), self.pattern))
            for ids, tokens in zip(new.values(), encoded, strict=True):
                ids += tokens
            if len(known) + len(new) > _CACHED_PRETOKENS:
                self._known = known = {}
            for long in [each for each in new if len(each) > _LONGEST_CACHED]:
                del new[long]
            known.update(new)
        return found

    def encode_iterable(self, iterable: Iterable[str], *, allow_special: bool = True) -> Iterator[int]:
        """Yield, lazily, the ids of a text that arrives in parts of any size, such as the lines of an open file.

        The ids equal those of `encode` for the joined parts. Memory stays below 1 MB beyond the largest part, provided
        the text can be cut every few thousand characters; else it stays below 5 MB. The plain form (`TSLM_FAST=0`)
        needs about 2 MB for such a text; this does not grow with the text, either.

        Args:
            iterable: the parts of the text.
            allow_special: whether special tokens are recognized; else their spelling is text.

        Raises:
            UserError: a part holds a lone surrogate, or a byte that the vocabulary lacks.
        """
        blocks = overlapping_blocks(
            utf8_pieces(iterable), self._special_bytes if allow_special else [], _STREAM_BYTES, first=64,
            overlap=_STREAM_OVERLAP, pattern=self.pattern,
        )
        return chain.from_iterable(ids.tolist() for ids in self.encode_blocks(blocks, allow_special=allow_special))

    def encode_blocks(self, blocks: Iterable[Block], *, allow_special: bool = True) -> Iterator[Ids]:
        """Yield the ids of the tokens of a text that arrives in blocks, which may overlap inside a pre-token.

        Args:
            blocks: the blocks in the order of the text.
            allow_special: whether special tokens are recognized; else their spelling is text.

        Raises:
            UserError: the text holds a byte that the vocabulary lacks, or `join_blocks` fails.
        """
        margin = max(map(len, self._special_bytes), default=0)
        return join_blocks(blocks, partial(self.encode_bytes, allow_special=allow_special), self.vocab, margin)

    def encode_bytes(self, text: bytes, *, allow_special: bool = True) -> Ids:
        """Return the ids of the tokens of a text in UTF-8. `jsonl.DOCUMENT_END` becomes the id `vocab_size`.

        Args:
            text: the text.
            allow_special: whether special tokens are recognized; else their spelling is text.

        Raises:
            UserError: the text holds a byte that the vocabulary lacks.
        """
        try:
            return encode_block(text, self._vocabulary if allow_special else self._without_specials)
        except KeyError as error:
            raise _missing_token(error.args[0]) from None

    def count_tokens(self, pretokens: Sequence[bytes]) -> list[int]:
        """Return the number of tokens of each pre-token.

        Raises:
            UserError: a pre-token holds a byte that the vocabulary lacks.
        """
        try:
            return [*map(len, encode_pretokens(pretokens, self._vocabulary))]
        except KeyError as error:
            raise _missing_token(error.args[0]) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
            UserError: an id is not in the vocabulary.
        """
        try:
            return b"".join(map(self.vocab.__getitem__, ids)).decode(errors="replace")
        except KeyError as error:
            raise UserError(
                f"id {error.args[0]} is not in the vocabulary, whose ids go up to {self.vocab_size - 1}; "
                "the ids were made with another tokenizer"
            ) from None

    def __reduce__(self) -> tuple[Callable[..., Tokenizer], tuple[object, ...]]:
        return _restore, (self.hash, self._pickled)

    @cached_property
    def _pickled(self) -> bytes:
        return pickle.dumps((self.vocab, self.merges, self.special_tokens, self.pattern))


_restored: dict[str, Tokenizer] = {}


def _restore(hash_: str, pickled: bytes) -> Tokenizer:
    """Unpickle a tokenizer. A worker process restores one object for all its tasks, so that its tables are kept."""
    if hash_ not in _restored:
        _restored.clear()
        *parts, pattern = pickle.loads(pickled)
        _restored[hash_] = Tokenizer(*parts, pattern=pattern)
    return _restored[hash_]


def _missing_token(token: bytes) -> UserError:
    name = f"byte 0x{token.hex()}" if len(token) == 1 else "token"
    return UserError(
        f"the vocabulary lacks the {name} ({token!r}), which the text needs; "
        "add it to the vocabulary or remove it from the text"
    )
