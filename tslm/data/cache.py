"""The folder that keeps prepared data: its lock, the hashes of texts, and the keys of what is made from them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from tslm.errors import UserError
from tslm.files import atomic_write, check_unchanged, file_stamp
from tslm.tokenizer import Span
from tslm.tokenizer.plain import Errors, plain_copy
from tslm.tokenizer.pretokenize import unicode_hash
from tslm.tokenizer.sources import PathLike, is_jsonl

_FORMAT = 2  # of the prepared data; increased when the same text and settings give other data
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)  # the errors of a folder that may not be written to


class Cache:
    """A folder of prepared data."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    @contextlib.contextmanager
    def lock(self, notice_after: float = 1.0) -> Iterator[None]:
        """Hold the folder's lock, so that one process prepares at a time; create the folder first.

        A folder that this process may not write to is used without a lock: a complete cache is only read.

        Args:
            notice_after: seconds of waiting for another process after which a notice is printed.

        Raises:
            UserError: a file of the cache cannot be read or written, for whatever reason, or is a symbolic link; the
                message names it.
        """
        lock = FileLock(self.folder / "lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_links()
            try:
                lock.acquire(timeout=notice_after)
            except Timeout:
                print(f"Another process prepares data in {self.folder}; waiting for it.", flush=True)
                lock.acquire()
            except OSError as error:
                if error.errno not in _READ_ONLY:
                    raise
            if lock.is_locked:
                self._remove_leftovers()
            yield
        except OSError as error:
            path = str(error.filename or "")
            if isinstance(error, UserError) or not path.startswith(str(self.folder)):
                raise
            raise UserError(f"prepared data cannot be kept in {path} ({error.strerror}): make room or allow access "
                            "there, or give --data.cache_dir another folder") from error
        finally:
            lock.release()

    def _check_links(self) -> None:
        """Refuse symbolic links in the folder: a downloaded cache could use them to write anywhere."""
        for path in self.folder.rglob("*"):
            if path.is_symlink():
                raise UserError(f"{path} is a symbolic link, by which prepared data could be written elsewhere: remove "
                                f"it; only the whole folder {self.folder} may be a link")

    def _remove_leftovers(self) -> None:
        """Remove temporary files of writers that were killed: only the process that has the lock prepares data."""
        for path in [*self.folder.rglob(".*.tmp"), *self.folder.rglob(".*.new")]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def content_hash(self, path: Path) -> str:
        """Return a file's SHA-256, remembered as long as its path, size, modification time and change time are equal.

        Raises:
            UserError: the file was changed while it was read.
        """
        hashes_file = self.folder / "hashes.json"
        try:
            content = hashes_file.read_bytes() if hashes_file.is_file() else b"{}"  # a pipe would block
            hashes = {str(key): str(value) for key, value in json.loads(content).items()}
        except (OSError, ValueError, AttributeError, RecursionError):  # absent or damaged: it is made again
            hashes = {}
        stamp = file_stamp(path)
        key = f"{path.resolve()}|{'|'.join(map(str, stamp))}"
        if key not in hashes:
            with path.open("rb") as file:
                hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
            check_unchanged({path: stamp})
            with contextlib.suppress(OSError), atomic_write(hashes_file) as file:  # a read-only cache remembers nothing
                file.write(json.dumps(hashes, indent=1).encode())
        return hashes[key]

    def is_intact(self, path: Path) -> bool:
        """Return whether a text of the cache has the SHA-256 in the file beside it; the first call writes that file."""
        record, content_hash = path.with_name(f"{path.name}.sha256"), self.content_hash(path).encode()
        if not record.is_file():
            with contextlib.suppress(OSError), atomic_write(record) as file:
                file.write(content_hash)
            return True
        return record.read_bytes() == content_hash

    def key(self, spans: Sequence[Span], **settings: object) -> str:
        """Return the cache key of data made from this text with these settings and this version's Unicode tables."""
        # The form belongs to the key: a .txt and a .jsonl file with the same bytes hold different documents.
        parts = [
            [self.content_hash(Path(span.path)), span.start, span.stop, span.ends,
             *(["jsonl", span.field] if is_jsonl(span.path) else [])]
            for span in spans
        ]
        text = json.dumps([_FORMAT, parts, settings, unicode_hash()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def plain(self, path: PathLike, text_field: str, errors: Errors) -> tuple[PathLike, int]:
        """Return a file in plain form, and how much of it was replaced (see `plain_copy`); copies are kept here."""
        def folder() -> Path:
            """Return the folder for this content, which may change while it is read."""
            key = json.dumps([_FORMAT, self.content_hash(Path(path)), text_field, errors])
            return self.folder / "unpacked" / hashlib.sha256(key.encode()).hexdigest()[:20]

        while True:
            copy, replaced = plain_copy(path, folder, text_field, errors, progress=True)
            if copy == path or self.is_intact(Path(copy)):
                return copy, replaced
            print(f"{path} is unpacked again, because its copy {copy} was changed or damaged.", flush=True)
            shutil.rmtree(folder())
