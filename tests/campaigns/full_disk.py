"""Run a command with too little room: under a limit on the size of files, or in a small file system of its own."""

import ctypes
import json
import os
import resource
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.campaigns.campaign import Case, check_equal
from tests.campaigns.child import LIMIT, Use, check_ending, describe, in_child
from tests.campaigns.damaged_world import World
from tslm.errors import MissingFileError, UserError
from tslm.tokenizer import TokenFile, Tokenizer
from tslm.training.checkpoint import is_intact

_NEW_NAMESPACE, _PRIVATE, _REMOUNT = 0x20000, 1 << 18 | 1 << 14, 1 << 5  # of Linux's unshare and mount


def full_disk(case: Case, use: Use, again: Use) -> None:
    """Run `use` with little room, and then `again` with enough.

    Raises:
        AssertionError: the first run ends without a sentence that has a path, a file is damaged or left over, or the
            second run has another result than in the undamaged folder.
    """
    world = World.of(case.folder)
    expected = world.reference(again).result
    room = int(2 ** case.rng.uniform(6, 18.5))
    small = os.geteuid() == 0 and case.rng.random() < 0.5  # only root may mount
    case.note(use=describe(use), room=room, small_file_system=small)

    def both() -> object:
        if small:
            _mount_own(world.path)
        world.fresh()
        if small:
            state = os.statvfs(world.path)
            _resize(world.path, (state.f_blocks - state.f_bfree) * state.f_frsize + room)
        first = in_child(use if small else partial(_limited, use, room), world.path)
        print(f"the first run ended with {first.code}: {first.out} {first.err[-1500:]}")
        if small:
            _resize(world.path, 1 << 30)
        check_ending(first, ["lightning_logs", "cache", "made", "new.bin"])
        check_files(world.path)
        second = in_child(again, world.path)
        print(f"the second run ended with {second.code}: {second.out} {second.err[-1500:]}")
        check_equal(second.result, expected)
        return first.code

    outcome = in_child(both, world.folder, 3 * LIMIT)
    if outcome.code != 0:
        raise AssertionError(f"{outcome.out}\n{outcome.err}")
    case.note(first=outcome.result)


def check_files(folder: Path) -> None:
    """Raise AssertionError if a file is damaged, or left over from writing."""
    left = [path for path in folder.rglob(".*") if path.suffix in (".new", ".tmp")]
    damaged = [path for path in folder.rglob("*.ckpt") if not is_intact(path)]
    damaged += [path for path in folder.rglob("*.json") if not _is_read(partial(_parse, path))]
    damaged += [path for path in folder.rglob("*.bin") if not _is_read(partial(TokenFile.open, path))]
    damaged += [path for path in folder.rglob("merges.txt") if not _is_read(partial(Tokenizer.from_dir, path.parent))]
    if left or damaged:
        raise AssertionError(f"left over: {left}; damaged: {damaged}")


def _parse(path: Path) -> object:
    return json.loads(path.read_bytes())


def _is_read(read: Callable[[], object]) -> bool:
    try:
        read()
    except MissingFileError:  # one of two files was not written
        return True
    except (UserError, ValueError):
        return False
    return True


def _limited(use: Use, size: int) -> object:
    """Run a use in a process whose files may not be larger than a size."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    return use()


def _mount_own(folder: Path) -> None:
    """Mount an empty file system in memory that only this process and its children see."""
    folder.mkdir(exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    _checked(libc.unshare(_NEW_NAMESPACE))
    _checked(libc.mount(None, b"/", None, _PRIVATE, None))
    _checked(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=1g"))


def _resize(folder: Path, size: int) -> None:
    pages = -(-size // 4096)
    options = b"size=%d" % (pages * 4096)
    _checked(ctypes.CDLL(None, use_errno=True).mount(None, os.fsencode(folder), None, _REMOUNT, options))


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
