"""The exceptions whose messages are written for the user; every other exception is a bug and shows its traceback.

Every package may import this file. `__main__` prints the message of a `UserError` as one line and exits with code 2.
"""

from __future__ import annotations

import sys
from pathlib import Path


class UserError(ValueError):
    """Something that the user can correct: a value, with what is allowed and what to do, in one sentence."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named does not exist; the sentence names it and says what to give instead."""


def as_called(text: str) -> str:
    """Return a text in which `python -m tslm` is `tslm`, if this process was started by the console command."""
    started = Path(sys.argv[0]).stem if sys.argv else ""
    return text.replace("python -m tslm", "tslm") if started == "tslm" else text


# The message for an error of the exchange between processes.
PEER_ENDED = ("another process of this training has ended or cannot be reached: see what it printed, and resume with "
              "--ckpt_path last")


class DivergedError(UserError):
    """The loss or the gradients of a training are not finite any more."""
