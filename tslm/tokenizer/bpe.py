"""The Tokenizer: text to token ids and back, with any byte-level BPE vocabulary.

A vocabulary, its merges and special tokens come in, from training or from files. Short texts go through a cache of
words, long ones and streams through the tables of `blocks`; both give the same ids.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain

from tslm.tokenizer.blocks import BlockEncoder
from tslm.tokenizer.cuts import cut_blocks
from tslm.tokenizer.pieces import PieceEncoder
from tslm.tokenizer.pretokenize import encode_specials, find_pretokens

END_OF_TEXT = "<|endoftext|>"  # what GPT-2 and TinyStories put between documents

_LONG = 1 << 12  # characters from which the fixed cost of the arrays, 0.1 ms a block, is less than what they save
_STREAM_BYTES = 1 << 14  # blocks of a stream: about 0.6 MB with all arrays
_STREAM_CAPACITY = 1 << 14
_FILE_CAPACITY = 1 << 18


class Tokenizer:
    """Byte-level BPE with GPT-2's pre-tokens.

    Args:
        vocab: bytes of each id. Not all 256 bytes need be there; encoding one that is missing is an error.
        merges: pairs of tokens in the order in which they take precedence.
        special_tokens: strings that become one token each, before anything else is cut; where several match, the one
            that begins first wins, then the longest. Those that the vocabulary lacks are appended to it.

    Attributes:
        vocab: as given, with the special tokens.
        merges: as given.
        special_ids: the id of each special token, in the order given.

    Raises:
        ValueError: a special token is empty.

    Example:
        >>> vocab = dict(enumerate([b" ", b"a", b"c", b"e", b"h", b"t", b"th", b" c", b" a", b"the", b" at"]))
        >>> merges = [(b"t", b"h"), (b" ", b"c"), (b" ", b"a"), (b"th", b"e"), (b" a", b"t")]
        >>> Tokenizer(vocab, merges).encode("the cat ate")
        [9, 7, 1, 5, 10, 3]
    """

    def __init__(
        self,
        vocab: Mapping[int, bytes],
        merges: Iterable[tuple[bytes, bytes]],
        special_tokens: Sequence[str] | None = None,
    ) -> None:
        self.vocab = dict(vocab)
        self.merges = [(left, right) for left, right in merges]
        # In descending order, so that a token that stands under two ids keeps the lower.
        ids = {token: id_ for id_, token in sorted(self.vocab.items(), reverse=True)}
        self.special_ids: dict[str, int] = {}
        for token in encode_specials(special_tokens or []):
            if token not in ids:
                ids[token] = max(self.vocab, default=-1) + 1
                self.vocab[ids[token]] = token
            self.special_ids[token.decode()] = ids[token]
        self._special_bytes = {token.encode(): id_ for token, id_ in self.special_ids.items()}
        self._pieces = PieceEncoder(ids, self.merges, self._special_bytes)
        self._words = _WordCache(lambda word: self._pieces.encode(word.encode()))
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        self._special_split = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
        # Made now, so that encode_iterable allocates little.
        self._stream = self._block_encoder(_STREAM_CAPACITY, frugal=True)

    @classmethod
    def from_files(
        cls,
        vocab_filepath: str | os.PathLike[str],
        merges_filepath: str | os.PathLike[str],
        special_tokens: Sequence[str] | None = None,
    ) -> Tokenizer:
        """Read `vocab.json` and `merges.txt` in GPT-2's byte-to-unicode form.

        Raises:
            FileNotFoundError: one of them does not exist.
            ValueError: one of them is not in that form.
        """
        from tslm.tokenizer import files  # imported late: it makes tokenizers itself

        return files.read_files(vocab_filepath, merges_filepath, special_tokens)

    @classmethod
    def from_dir(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read what `save` wrote; without a `tokenizer_config.json` there are no special tokens.

        Raises:
            FileNotFoundError: the folder, `vocab.json` or `merges.txt` does not exist.
            ValueError: one of the files is not in the form that `save` writes.
        """
        from tslm.tokenizer import files

        return files.read_dir(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `vocab.json`, `merges.txt` and `tokenizer_config.json` into a folder.

        A new folder appears complete or not at all; in one that holds something each file is replaced whole.

        Raises:
            ValueError: the vocabulary has one token under two ids, which `vocab.json` cannot express.
        """
        from tslm.tokenizer import files

        files.write_dir(self, path)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: the number of rows that an embedding needs."""
        return max(self.vocab, default=-1) + 1

    @property
    def special_tokens(self) -> list[str]:
        """The special tokens, in the order given."""
        return list(self.special_ids)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of vocabulary, merges and special tokens, in hexadecimal: equal for tokenizers that encode alike."""
        digest = hashlib.sha256()
        for part in (
            [(str(id_).encode(), token) for id_, token in sorted(self.vocab.items())],
            self.merges,
            sorted((token, str(id_).encode()) for token, id_ in self._special_bytes.items()),
        ):
            digest.update(b"%d:" % len(part))
            for pair in part:
                for field in pair:
                    digest.update(b"%d:" % len(field) + field)
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the ids of the tokens of a text.

        Raises:
            ValueError: the text holds a lone surrogate, or a byte that the vocabulary lacks.
        """
        if len(text) >= _LONG:
            return list(chain.from_iterable(self._encode_stream([text])))
        ids: list[int] = []
        try:
            for piece in self._special_split.split(text) if self._special_split else (text,):
                if piece in self.special_ids:
                    ids.append(self.special_ids[piece])
                else:
                    ids.extend(chain.from_iterable(map(self._words.__getitem__, find_pretokens(piece))))
        except UnicodeEncodeError:
            _to_utf8(text)
            raise
        return ids

    def encode_iterable(self, iterable: Iterable[str]) -> Iterator[int]:
        """Yield, lazily, the ids of a text that arrives in parts of any kind, such as the lines of an open file.

        They equal `encode` of the parts put together. Memory stays below 1 MB beyond the largest part, as long as the
        text has a place where it can be cut every few thousand characters; a run of one letter is held until it ends.

        Raises:
            ValueError: a part holds a lone surrogate, or a byte that the vocabulary lacks.
        """
        return chain.from_iterable(self._encode_stream(iterable))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        try:
            return b"".join(map(self.vocab.__getitem__, ids)).decode(errors="replace")
        except KeyError as error:
            raise ValueError(
                f"id {error.args[0]} is not in the vocabulary, whose ids go up to {self.vocab_size - 1}; "
                "the ids were made with another tokenizer"
            ) from None

    @cached_property
    def file_blocks(self) -> BlockEncoder:
        """The encoder behind `encode_files`, with room for the words of a large text."""
        return self._block_encoder(_FILE_CAPACITY)

    def _encode_stream(self, parts: Iterable[str]) -> Iterator[list[int]]:
        for block in cut_blocks(map(_to_utf8, parts), list(self._special_bytes), _STREAM_BYTES, first=64):
            yield self._stream.encode(block).tolist()

    def _block_encoder(self, capacity: int, frugal: bool = False) -> BlockEncoder:
        return BlockEncoder(self._pieces, list(self._special_bytes), capacity, frugal)

    def __reduce__(self) -> tuple[Callable[..., Tokenizer], tuple[object, ...]]:
        return _restore, (self.hash, self._pickled)

    @cached_property
    def _pickled(self) -> bytes:
        return pickle.dumps((self.vocab, self.merges, self.special_tokens))


class _WordCache(dict[str, tuple[int, ...]]):
    """The ids of short words; looking up a new one encodes it."""

    _CAPACITY = 1 << 16
    _LONGEST = 64

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = tuple(self._encode(word))
        if len(word) <= self._LONGEST:
            if len(self) >= self._CAPACITY:
                self.clear()
            self[word] = ids
        return ids


_restored: dict[str, Tokenizer] = {}


def _restore(hash_: str, pickled: bytes) -> Tokenizer:
    """Unpickle a tokenizer: in a worker process the same one for all its tasks, so that its tables stay warm."""
    if hash_ not in _restored:
        _restored.clear()
        _restored[hash_] = Tokenizer(*pickle.loads(pickled))
    return _restored[hash_]


def _to_utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds the lone surrogate U+{ord(text[error.start]):04X} at position {error.start}, which UTF-8 "
            "cannot express; read it with the right encoding or replace that character"
        ) from None
