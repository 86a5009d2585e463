"""Stop several processes at the same step boundary, without waiting for each other at every step.

If one process stopped alone, the others would wait for it forever. A blocking exchange at every boundary would tie each
step to the slowest process. Therefore the flags sent at one boundary are read at the next one.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed


class StopConsensus:
    """Flags that all processes see raised, one boundary after any process raised them.

    Every process must create one, and must call `exchange` at the same boundaries. The flags are exchanged by the CPUs
    (gloo) even if gradients are exchanged by GPUs, so that the exchange never synchronises with a GPU.

    Args:
        size: the number of flags.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        group = distributed.new_group(backend="gloo")
        assert isinstance(group, distributed.ProcessGroup)  # because every process is a member
        self._group = group
        self._pending: tuple[distributed.Work, Tensor] | None = None

    def exchange(self, *flags: bool) -> list[bool]:
        """Send this process's flags; return which flags any process raised at the previous call."""
        previous = self.finish()
        sent = torch.tensor(flags, dtype=torch.int32)
        work = distributed.all_reduce(sent, distributed.ReduceOp.MAX, self._group, async_op=True)
        assert work is not None  # because this process is a member
        self._pending = work, sent
        return previous

    def finish(self) -> list[bool]:
        """Return the result of the last exchange, or no raised flags; call it before the processes end."""
        if self._pending is None:
            return [False] * self._size
        work, received = self._pending
        self._pending = None
        work.wait()
        return [bool(flag) for flag in received]
