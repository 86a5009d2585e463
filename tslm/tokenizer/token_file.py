"""Token files: the ids of a text as a plain array on disk, and a JSON sidecar that describes them.

`TokenFileWriter` writes one. `TokenFile.open` checks that its content is what was written, and maps it into memory.
Loading a token file never runs code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from tslm.errors import MissingFileError, UserError
from tslm.files import atomic_write, check_outputs, file_stamp

FORMAT = 1
_FIELDS = {
    "format": int,
    "dtype": str,
    "count": int,
    "vocab_size": int,
    "tokenizer_hash": str,
    "source_bytes": int,
    "special_ids": dict,
    "sha256": str,
    "mtime_ns": int,
}
_ALWAYS_READ = 1 << 26  # bytes; hashing so many takes about 40 ms
_CHUNK = 1 << 22  # ids per step of a scan, so that large files need little memory


class TokenFile:
    """A file of token ids; `open` returns one.

    Attributes:
        path: the file of ids; the sidecar is `<path>.json`.
        vocab_size: every id is smaller.
        dtype: uint16 for vocabularies of up to 65,536 entries, else uint32, little-endian.
        tokenizer_hash: `Tokenizer.hash` of the tokenizer that produced the ids.
        source_bytes: the size of the text. For JSONL it is the size of the documents, without the separators.
        document_bytes: the size of the documents, without separators and the line breaks that follow them in a text
            file. Files of earlier versions state only `source_bytes`, which is taken instead.
        special_ids: the id of each special token.
    """

    def __init__(self, path: Path, sidecar: dict[str, Any]) -> None:
        self.path = path
        self.vocab_size: int = sidecar["vocab_size"]
        self.dtype: np.dtype[Any] = np.dtype(sidecar["dtype"])
        self.tokenizer_hash: str = sidecar["tokenizer_hash"]
        self.source_bytes: int = sidecar["source_bytes"]
        self.document_bytes: int = sidecar.get("document_bytes", sidecar["source_bytes"])
        self.special_ids: dict[str, int] = sidecar["special_ids"]
        self._count: int = sidecar["count"]
        self._sha256: str = sidecar["sha256"]

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], tokenizer_hash: str | None = None, *, always_read: int = _ALWAYS_READ
    ) -> TokenFile:
        """Open a token file after checking it against its sidecar.

        Size and type are always checked. The SHA-256 of the content is checked in files of up to 64 MiB, and in larger
        ones whose modification time or change time differs from the sidecar's. So a large file that was just encoded,
        or opened before, opens at once; one that was copied or changed is read in full. `verify` always reads it in
        full.

        Args:
            path: the file of ids.
            tokenizer_hash: `Tokenizer.hash` of the tokenizer that must have produced the ids; None accepts any.
            always_read: files of up to so many bytes are read in full whatever their times are.

        Raises:
            MissingFileError: the file or its sidecar does not exist.
            UserError: the two do not match, the sidecar is not valid, or the tokenizer is a different one.
        """
        path = Path(path)
        description = sidecar_path(path)
        for needed, what in ((path, "token file"), (description, "sidecar of a token file")):
            if not needed.is_file():
                raise MissingFileError(f"{needed}, a {what}, does not exist; encode the text again with `tokenize`")
        try:
            sidecar = json.loads(description.read_text(encoding="utf-8"))
            if sidecar["format"] != FORMAT:
                raise ValueError(f"its format is {sidecar['format']}, this program reads format {FORMAT}")
            optional = {"document_bytes": int} if "document_bytes" in sidecar else {}
            for name, kind in (_FIELDS | optional).items():
                if not isinstance(sidecar[name], kind) or (kind is int and not 0 <= sidecar[name] < 1 << 63):
                    raise ValueError(f"its {name} is {sidecar[name]!r}")
            if sidecar["dtype"] != dtype_for(sidecar["vocab_size"]).str:
                raise ValueError(f"its dtype {sidecar['dtype']} does not go with {sidecar['vocab_size']} entries")
            if sidecar.get("sidecar_sha256") not in (None, _digest(sidecar)):  # None: of a version without this field
                raise ValueError("its SHA-256 differs from the one it states")
            file = cls(path, sidecar)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{description} is no valid sidecar of a token file ({error}); encode the text again"
            ) from None
        stat = path.stat()
        if stat.st_size != len(file) * file.dtype.itemsize:
            raise UserError(
                f"{path} has {stat.st_size:,} bytes, but its sidecar names {len(file):,} ids of {file.dtype.itemsize} "
                "bytes; the file is damaged, encode the text again"
            )
        if tokenizer_hash not in (None, file.tokenizer_hash):
            raise UserError(
                f"{path} was made with another tokenizer (hash {file.tokenizer_hash[:12]}, not {tokenizer_hash[:12]}); "
                "encode the text again with this one"
            )
        times = {"mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}
        changed = not times.items() <= sidecar.items()
        if changed or stat.st_size <= always_read:
            file.verify()
        if changed:
            with contextlib.suppress(OSError):  # a read-only folder: the content is read again next time
                _write_sidecar(path, sidecar | times)
        return file

    @property
    def sha256(self) -> str:
        """The SHA-256 of the ids, in hexadecimal digits."""
        return self._sha256

    def __len__(self) -> int:
        return self._count

    @cached_property
    def ids(self) -> npt.NDArray[np.unsignedinteger[Any]]:
        """The ids, as a read-only memory map; the first use checks that all are in the vocabulary.

        Raises:
            UserError: an id is not below `vocab_size`; the message names the id and its position.
        """
        ids = self._map()
        for start in range(0, len(ids), _CHUNK):
            chunk = ids[start : start + _CHUNK]
            if chunk.max() >= self.vocab_size:
                position = int(np.argmax(chunk >= self.vocab_size))
                raise UserError(
                    f"{self.path} holds the id {chunk[position]} at position {start + position:,}, but its vocabulary "
                    f"has {self.vocab_size} entries; encode the text again"
                )
        return ids

    def verify(self) -> None:
        """Read the whole file and compare its SHA-256 with the sidecar's.

        Raises:
            UserError: they differ.
        """
        digest = hashlib.sha256()
        ids = self._map()
        for start in range(0, len(ids), _CHUNK):
            digest.update(ids[start : start + _CHUNK].data)
        if digest.hexdigest() != self._sha256:
            raise UserError(
                f"{self.path} was changed since it was written (its SHA-256 differs); encode the text again"
            )

    def _map(self) -> npt.NDArray[np.unsignedinteger[Any]]:
        if len(self) == 0:
            return np.empty(0, self.dtype)  # an empty file cannot be mapped
        return np.memmap(self.path, self.dtype, "r")


class TokenFileWriter:
    """Writes a token file part by part; the file and its sidecar appear when the `with` block ends without an error.

    Example:
        >>> with TokenFileWriter("story.bin", vocab_size=10_000, tokenizer_hash=tokenizer.hash) as writer:
        ...     writer.append(np.array(tokenizer.encode("Once upon a time")))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        vocab_size: int,
        tokenizer_hash: str,
        special_ids: dict[str, int] | None = None,
    ) -> None:
        self._path, self._vocab_size = Path(path), vocab_size
        self._dtype = dtype_for(vocab_size)
        self._sidecar: dict[str, Any] = {
            "format": FORMAT,
            "dtype": self._dtype.str,
            "vocab_size": vocab_size,
            "tokenizer_hash": tokenizer_hash,
            "source_bytes": 0,
            "document_bytes": 0,
            "special_ids": special_ids or {},
        }
        self._count = 0
        self._digest = hashlib.sha256()

    def __enter__(self) -> TokenFileWriter:
        check_outputs([self._path, sidecar_path(self._path)])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._write = atomic_write(self._path)
        self._file = self._write.__enter__()
        return self

    def append(
        self, ids: npt.NDArray[np.integer[Any]], source_bytes: int = 0, document_bytes: int | None = None
    ) -> None:
        """Append ids, and add the sizes of their text and of its documents in bytes; by default, the two are the same.

        Raises:
            UserError: an id is negative or not below `vocab_size`.
        """
        if len(ids) and not (ids.min() >= 0 and ids.max() < self._vocab_size):
            raise UserError(
                f"ids for {self._path} must be 0 to {self._vocab_size - 1}, but they are {ids.min()} to {ids.max()}"
            )
        data = np.ascontiguousarray(ids, self._dtype).data
        self._file.write(data)
        self._digest.update(data)
        self._count += len(data)
        self._sidecar["source_bytes"] += source_bytes
        self._sidecar["document_bytes"] += source_bytes if document_bytes is None else document_bytes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write.__exit__(kind, error, trace)
        if kind is None:  # until the sidecar is replaced as well, `open` refuses the file: the old hash differs
            described = {"count": self._count, "sha256": self._digest.hexdigest()}
            _, mtime_ns, ctime_ns = file_stamp(self._path)
            _write_sidecar(self._path, self._sidecar | described | {"mtime_ns": mtime_ns, "ctime_ns": ctime_ns})


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """Return the integer type for the ids of a vocabulary: uint16 for up to 65,536 entries, else uint32.

    Raises:
        UserError: the ids need more than 32 bits.
    """
    if vocab_size > 1 << 32:
        raise UserError(f"a token file holds ids below 2^32, but the vocabulary has {vocab_size:,}; number them again")
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def sidecar_path(path: Path) -> Path:
    """Return the path of a token file's sidecar."""
    return path.with_name(path.name + ".json")


def _digest(sidecar: dict[str, Any]) -> str:
    """Return the SHA-256 of the fields of a sidecar, without its own."""
    fields = {name: value for name, value in sidecar.items() if name != "sidecar_sha256"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _write_sidecar(path: Path, sidecar: dict[str, Any]) -> None:
    sidecar = sidecar | {"sidecar_sha256": _digest(sidecar)}
    with atomic_write(sidecar_path(path)) as file:
        file.write((json.dumps(sidecar, indent=2) + "\n").encode())
