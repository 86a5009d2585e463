"""Damages files at random: their bytes, a value in them, or the file itself.

Times are kept, and sizes where possible: such a change is the hardest to notice for code that caches what it has read.
"""

import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

WRONG_TYPES = (b"null", b"true", b"[]", b"{}", b'"x"', b"1e999", b"-1")


def damage(rng: random.Random, path: Path, others: list[Path]) -> str:
    """Damage a file, and return how.

    Args:
        rng: decides about everything.
        path: a file; all its hard links are damaged, or this name alone.
        others: files of the same kind, whose content may take its place.
    """
    times = path.stat()
    if rng.random() < 0.2:
        kind = rng.choice([to_folder, to_dangling_link, to_fifo, remove, *([] if os.geteuid() == 0 else [forbid])])
        name = kind.__name__
        kind(path)
    else:
        data = path.read_bytes()
        if others and rng.random() < 0.1:
            name, spoiled = "swapped", rng.choice(others).read_bytes()
        else:
            change = rng.choice(BYTES + EDITS)
            name, spoiled = change.__name__, change(rng, data)
        if spoiled == data:
            spoiled = flip_bit(rng, data)
        if rng.random() < 0.5:
            path.unlink()  # a file of its own, so that its other names keep their content
        path.write_bytes(spoiled)
    if os.path.lexists(path):
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns), follow_symlinks=False)
    return name


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


def to_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def remove(path: Path) -> None:
    path.unlink()


def forbid(path: Path) -> None:
    path.chmod(0)


def flip_bit(rng: random.Random, data: bytes) -> bytes:
    position = rng.randrange(max(len(data), 1))
    return data[:position] + bytes([(data or b"\0")[position] ^ 1 << rng.randrange(8)]) + data[position + 1 :]


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    for _ in range(rng.choice([1, 2, 30])):
        position = rng.randrange(max(len(data), 1))
        data = data[:position] + rng.randbytes(1) + data[position + 1 :]
    return data


def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.choice([rng.randrange(max(len(data), 1)), len(data) - 1, len(data) // 2])]


def zero_block(rng: random.Random, data: bytes) -> bytes:
    start, stop = _block(rng, data)
    return data[:start] + bytes(stop - start) + data[stop:]


def insert_block(rng: random.Random, data: bytes) -> bytes:
    start, stop = _block(rng, data)
    return data[:start] + rng.randbytes(stop - start) + data[start:]


def duplicate_block(rng: random.Random, data: bytes) -> bytes:
    start, stop = _block(rng, data)
    return data[:stop] + data[start:]


def remove_block(rng: random.Random, data: bytes) -> bytes:
    start, stop = _block(rng, data)
    return data[:start] + data[stop:]


def swap_blocks(rng: random.Random, data: bytes) -> bytes:
    first, second = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    size = min(rng.choice([1, 8, 100]), second - first, len(data) - second)
    middle = data[first + size : second]
    return data[:first] + data[second : second + size] + middle + data[first : first + size] + data[second + size :]


def empty(rng: random.Random, data: bytes) -> bytes:
    return b""


def change_digit(rng: random.Random, data: bytes) -> bytes:
    """Replace a digit by another one."""
    return _replace(rng, data, rb"\d", lambda digit: str((int(digit) + rng.randrange(1, 10)) % 10).encode())


def rename(rng: random.Random, data: bytes) -> bytes:
    """Replace a letter of a word by another one, so that a key has another name."""
    return _replace(rng, data, rb"[a-z](?=[a-z_]*\"?:)", lambda letter: b"x" if letter == b"q" else b"q")


def change_type(rng: random.Random, data: bytes) -> bytes:
    """Replace a value after a colon by one of another type."""
    return _replace(rng, data, rb"(?<=: )[^\n,{}\[\]]+", lambda value: rng.choice(WRONG_TYPES))


def remove_line(rng: random.Random, data: bytes) -> bytes:
    """Leave a line out."""
    return _replace(rng, data, rb"[^\n]*\n", lambda line: b"")


def swap_lines(rng: random.Random, data: bytes) -> bytes:
    """Exchange two lines that follow each other."""
    return _replace(rng, data, rb"[^\n]*\n[^\n]*\n", lambda two: b"".join(reversed(two.splitlines(keepends=True))))


Change = Callable[[random.Random, bytes], bytes]
BYTES: list[Change] = [flip_bit, flip_bit, change_bytes, truncate, zero_block, insert_block, duplicate_block,
                       remove_block, swap_blocks, empty]  # fmt: skip
EDITS: list[Change] = [change_digit, rename, change_type, remove_line, swap_lines]


def replace_folder(path: Path, copy: Path) -> None:
    """Replace a folder by its copy, with the times of files and their hard links; `path` may be a mount point."""
    shutil.rmtree(path, ignore_errors=True)
    links: dict[int, Path] = {}
    for source in [copy, *sorted(copy.rglob("*"))]:
        target = path / source.relative_to(copy)
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True, mode=source.stat().st_mode & 0o777)  # a mount point exists
        elif source.stat().st_ino in links:
            target.hardlink_to(links[source.stat().st_ino])
        else:
            shutil.copy2(source, target)
            links[source.stat().st_ino] = target


def _block(rng: random.Random, data: bytes) -> tuple[int, int]:
    size = min(len(data), rng.choice([1, 4, 64, 512, 4096, len(data) // 3]))
    start = rng.randrange(len(data) - size + 1)
    return start, start + size


def _replace(rng: random.Random, data: bytes, pattern: bytes, change: Callable[[bytes], bytes]) -> bytes:
    found = list(re.finditer(pattern, data))
    if not found:
        return data
    match = rng.choice(found)
    return data[: match.start()] + change(match.group()) + data[match.end() :]
