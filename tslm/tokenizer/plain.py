"""Makes plain copies of files that are compressed, Parquet, or not quite UTF-8."""

from __future__ import annotations

import codecs
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from tqdm import tqdm

from tslm.errors import UserError
from tslm.files import atomic_write, check_unchanged, file_stamp
from tslm.tokenizer.sources import PACKINGS, PARQUET, PathLike, check_form, is_jsonl
from tslm.tokenizer.surrogates import repair_surrogates

Errors: TypeAlias = Literal["strict", "replace"]

_CHUNK = 1 << 20
_PACKED_CHUNK = 1 << 12  # a few bytes of a hostile file may expand to thousands of times as many
_REPLACEMENT = "\ufffd"


def plain_copy(
    path: PathLike, folder: Callable[[], Path], text_field: str, errors: Errors, progress: bool = False
) -> tuple[PathLike, int]:
    """Return a file in plain form, and how many of its bytes and characters were replaced.

    A file that is plain already is returned itself. Otherwise a copy is written, if it is not there yet.

    Args:
        path: the file.
        folder: returns the folder for the copy; it is called only if there is one.
        text_field: the field of a JSONL record, or the column of a Parquet file, that holds the document.
        errors: what to do with bytes that are not UTF-8: "strict" leaves them, so that reading them is an error with
            their place; "replace" replaces each by U+FFFD, and lone surrogates in JSONL too.
        progress: whether to show a progress bar on stderr.

    Raises:
        UserError: the file is damaged or cut, lacks the column, or changes while it is read; or a library is missing.
    """
    plain, stamp = path, file_stamp(path)
    for ending, copy in ((PACKINGS, _unpack), ((PARQUET,), _parquet_to_jsonl)):
        name = os.path.basename(plain)
        if name.lower().endswith(ending):
            stem = os.path.splitext(name)[0]
            target = folder() / (stem if ending is PACKINGS else f"{stem}.jsonl")
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                copy(plain, target, str(path), text_field, progress)
                check_unchanged({path: stamp})
            plain = target
    check_form(plain, path)
    if errors == "strict":
        return plain, 0
    replaced = sum(number for _, number in _cleaned(plain, text_field))
    if replaced:
        target = folder() / f"{replaced}-replaced-{os.path.basename(plain)}"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as file:
                file.writelines(text.encode() for text, _ in _cleaned(plain, text_field))
            check_unchanged({path: stamp})
        plain = target
    return plain, replaced


def _unpack(path: PathLike, target: Path, name: str, text_field: str, progress: bool) -> None:
    import zstandard  # late: most inputs are not compressed

    decoders: dict[str, Callable[[], Any]] = {
        ".gz": lambda: zlib.decompressobj(zlib.MAX_WBITS | 16), ".xz": lzma.LZMADecompressor,
        ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
    }  # fmt: skip
    new_decoder = decoders[os.path.splitext(os.fspath(path))[1].lower()]
    try:
        with (
            open(path, "rb") as packed,
            tqdm(total=os.path.getsize(path), desc=f"unpacking {os.path.basename(path)}", unit="B", unit_scale=True,
                 disable=not progress) as bar,
            atomic_write(target) as file,
        ):
            for chunk in _unpacked(packed, new_decoder):
                file.write(chunk)
                bar.update(packed.tell() - bar.n)
    except (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise UserError(f"{name} cannot be unpacked ({error}); it is damaged, cut or has another form") from None


def _unpacked(packed: IO[bytes], new_decoder: Callable[[], Any]) -> Iterator[bytes]:
    """Yield the text of a compressed file, which may hold several streams, with zeros after each.

    The readers of gzip, lzma and zstandard are not used: that of zstandard takes a file that is cut for complete, and
    that of lzma a damaged second stream for the end.

    Raises:
        EOFError: the file ends within a stream.
    """
    decoder, rest = new_decoder(), b""
    while chunk := rest or packed.read(_PACKED_CHUNK):
        rest = b""
        if decoder.eof:
            rest = chunk.lstrip(b"\0")
            if rest:
                decoder = new_decoder()
            continue
        yield decoder.decompress(chunk)
        rest = decoder.unused_data if decoder.eof else b""
    if not decoder.eof:
        raise EOFError("it ends within a compressed stream")


def _parquet_to_jsonl(path: PathLike, target: Path, name: str, text_field: str, progress: bool) -> None:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{name} needs pyarrow to be read; install it with `pip install 'tslm[parquet]'`") from None
    row = 0
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as table, atomic_write(target) as file:
            if text_field not in table.schema_arrow.names:
                names = ", ".join(map(repr, table.schema_arrow.names[:5]))
                raise UserError(f"{name} has no column {text_field!r} but {names}; name the column that holds the text")
            bar = tqdm(total=table.metadata.num_rows, desc=f"reading {os.path.basename(path)}", unit=" rows",
                       disable=not progress)
            with bar:
                for batch in table.iter_batches(1024, columns=[text_field]):
                    for text in batch.column(0).to_pylist():
                        row += 1
                        if not isinstance(text, str):
                            raise UserError(f"{name}, row {row}, has {text!r:.40} in the column {text_field!r}, not a "
                                            "string; remove the row, or name another column")
                        file.write(json.dumps({text_field: text}, ensure_ascii=False).encode() + b"\n")
                    bar.update(len(batch))
    except (pyarrow.ArrowException, UnicodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the file system, such as a full disk
            raise
        raise UserError(f"{name} cannot be read as Parquet ({' '.join(str(error).split())[:200]})") from None


def _cleaned(path: PathLike, text_field: str) -> Iterator[tuple[str, int]]:
    """Yield the text of a file in parts, repaired, with how many bytes or characters of the part were replaced."""
    with open(path, "rb") as file:
        if is_jsonl(path):
            for line in file:
                text = line.decode(errors="replace")
                replaced = text.count(_REPLACEMENT) - line.count(_REPLACEMENT.encode())
                text, more = _clean_record(text, text_field)
                yield text, replaced + more
            return
        decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), b""
        while True:
            chunk = file.read(_CHUNK)
            text = decoder.decode(chunk, final=not chunk)
            yield text, text.count(_REPLACEMENT) - (rest + chunk).count(_REPLACEMENT.encode())
            rest = (rest + chunk)[-2:]
            if not chunk:
                return


def _clean_record(line: str, text_field: str) -> tuple[str, int]:
    """Replace the lone surrogates in the document of a record, as tiktoken does in a string."""
    if "\\u" not in line:
        return line, 0
    try:
        record = json.loads(line)
        text = record[text_field]
        repaired = repair_surrogates(text)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # reading the line reports it
        return line, 0
    if text == repaired:
        return line, 0
    lone = repaired.count(_REPLACEMENT) - text.count(_REPLACEMENT)
    return json.dumps({text_field: repaired}, ensure_ascii=False) + "\n", lone
