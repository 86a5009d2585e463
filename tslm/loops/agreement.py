"""Whether to stop, asked of several processes without waiting for an answer.

If one process stopped alone the others would wait for it for ever. But to ask at every step boundary and to wait would
tie each step to the slowest process; so what is asked at one boundary is answered at the next.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed


class Agreement:
    """Flags that hold for all processes as soon as one of them has raised them, a boundary later.

    Every process must make one, and ask at the same boundaries. The flags travel between the processors (gloo) even
    where gradients travel between GPUs, so that nobody waits for a GPU either.

    Args:
        size: the number of flags.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        group = distributed.new_group(backend="gloo")
        assert isinstance(group, distributed.ProcessGroup)  # which every process is a member of
        self._group = group
        self._asked: tuple[distributed.Work, Tensor] | None = None

    def ask(self, *flags: bool) -> list[bool]:
        """Send this process's flags, and return which ones any process had raised when it asked the last time."""
        answer = self.finish()
        sent = torch.tensor(flags, dtype=torch.int32)
        work = distributed.all_reduce(sent, distributed.ReduceOp.MAX, self._group, async_op=True)
        assert work is not None  # as for members
        self._asked = work, sent
        return answer

    def finish(self) -> list[bool]:
        """Return the answer that is still out, or no flags; call it before the processes end."""
        if self._asked is None:
            return [False] * self._size
        work, answer = self._asked
        self._asked = None
        work.wait()
        return [bool(flag) for flag in answer]
