"""Points inside a function at which a process kills itself."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import sys
from typing import Any, BinaryIO

# The functions written in C whose effect outlives a process.
SYSTEM = {"write", "writelines", "flush", "fsync", "replace", "rename", "link", "unlink", "remove", "rmdir", "mkdir",
          "open", "close", "flock", "__exit__"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Point:
    """A point inside a function at which the process kills itself.

    Attributes:
        function: module and qualified name, as in `tslm.cli:main`.
        entry: which call of the function is killed, counted from 1.
        kind: what is counted inside the function: all Python `calls`, `system` calls, or `bytes` of a file of the run.
        number: the count at which the process dies. If the function returns earlier, the process dies there.
    """

    function: str
    entry: int
    kind: str
    number: int


def count_in(function: str, point: Point | None = None) -> None:
    """Make a function count what happens in it; kill the process at a point, or print the counts at each return."""
    from tslm import files

    module, _, path = function.partition(":")
    *outer, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for each in outer:
        owner = getattr(owner, each)
    inner, open_locked = getattr(owner, name), files._open_locked
    counts = {"calls": 0, "system": 0, "bytes": 0}
    entries = 0

    def count(what: str, more: int = 1) -> None:
        counts[what] += more
        if point is not None and what == point.kind and counts[what] >= point.number:
            os.kill(os.getpid(), signal.SIGKILL)

    def profile(frame: object, event: str, argument: Any) -> None:
        count("calls")
        if event.startswith("c_") and argument.__name__ in SYSTEM:
            count("system")

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal entries
        entries += 1
        if point is not None and entries != point.entry:
            return inner(*arguments, **named)
        counts.update(dict.fromkeys(counts, 0))
        files._open_locked = lambda path: _Counted(open_locked(path), count)  # type: ignore[assignment,return-value]
        if point is None or point.kind != "bytes":
            sys.setprofile(profile)
        try:
            return inner(*arguments, **named)
        finally:
            sys.setprofile(None)
            files._open_locked = open_locked
            if point is not None:
                os.kill(os.getpid(), signal.SIGKILL)
            print("measured", json.dumps(counts), flush=True)

    setattr(owner, name, counted)


class _Counted:
    """A file whose bytes are counted as they are written; a process that dies leaves each byte that was counted."""

    def __init__(self, file: BinaryIO, count: Any) -> None:
        self._file, self._count = file, count

    def write(self, data: Any) -> int:
        """Write in four parts, so that the file may end anywhere."""
        data = bytes(data)
        size = max(1, len(data) // 4)
        for start in range(0, len(data), size):
            part = data[start : start + size]
            self._file.write(part)
            self._file.flush()
            self._count("bytes", len(part))
        return len(data)

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
