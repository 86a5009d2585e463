"""Runs a function over tasks, in worker processes or in this one, and hands the results back in order.

A function, an iterable of tasks and the size of the whole job come in; an iterator of results goes out. Only a few
tasks are under way at a time, so memory does not grow with their number.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

POOL_MINIMUM_BYTES = 1 << 24  # below this a pool costs more time (0.2 s to start an interpreter) than it saves


def map_in_order(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    total_bytes: int,
    num_workers: int | None = None,
    executor: Executor | None = None,
) -> Generator[Result]:
    """Yield `function(task)` for each task, in the order of the tasks; close the iterator to end the workers early.

    Args:
        function: importable by name, since it is sent to other processes.
        tasks: what it is called with; drawn only as fast as the results are taken.
        total_bytes: the size of the job; a small one stays in this process unless an executor is given.
        num_workers: number of processes; None takes as many as there are cores.
        executor: where to run instead of in processes of our own; it is not shut down.

    Raises:
        ChildProcessError: a worker process died.
        ValueError: `num_workers` is below 1.
    """
    workers = resolve_workers(num_workers)
    if executor is not None:
        yield from _keep_busy(executor, function, tasks, 2 * max(workers, 8))
    elif workers == 1 or total_bytes < POOL_MINIMUM_BYTES:
        yield from map(function, tasks)
    else:
        # Not fork: the process may run threads of torch or numpy, whose locks a forked child would find locked for
        # ever.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
        try:
            yield from _keep_busy(pool, function, tasks, 2 * workers)
        except BrokenProcessPool:
            raise ChildProcessError(
                f"one of {workers} worker processes died, most often for want of memory; try again with num_workers=1"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def resolve_workers(num_workers: int | None) -> int:
    """Return the number of worker processes: the one given, or one per core that this process may use.

    Raises:
        ValueError: `num_workers` is below 1.
    """
    if num_workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_workers < 1:
        raise ValueError(f"num_workers is {num_workers}; give 1 or more, or None for one per core")
    return num_workers


def _keep_busy(
    executor: Executor, function: Callable[[Task], Result], tasks: Iterable[Task], limit: int
) -> Iterator[Result]:
    """Submit tasks so that at most `limit` are under way; yield their results in order."""
    pending: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            with _caller_hidden():
                pending.append(executor.submit(function, task))
            if len(pending) >= limit:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


@contextlib.contextmanager
def _caller_hidden() -> Iterator[None]:
    """Keep a spawned process from importing the script that was started.

    The workers need nothing of it, and a script without `if __name__ == "__main__":` would start over in each of them.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent is gone, however it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
