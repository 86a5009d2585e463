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
from typing import Generic, TypeVar

import numpy as np

Task = TypeVar("Task")
Result = TypeVar("Result")

_MORE_RESULTS = 6  # that may wait for an earlier one, besides two for each worker
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
        num_workers: number of processes, this one included; None takes as many as there are cores.
        executor: where to run instead of in processes of our own; it is not shut down.

    Raises:
        ChildProcessError: a worker process died.
        ValueError: `num_workers` is below 1.
    """
    workers = resolve_workers(num_workers)
    if executor is not None:
        yield from _Feed(executor, function, tasks, 2 * max(workers, 8)).results()
    elif workers == 1 or total_bytes < POOL_MINIMUM_BYTES:
        yield from map(function, tasks)
    else:
        # Not fork: the process may run threads of torch or numpy, whose locks a forked child would find locked for
        # ever.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers - 1, mp_context=context, initializer=_start_worker)
        try:
            yield from _Feed(pool, function, tasks, workers - 1, take_part=True).results()
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


def keep_freed_memory() -> None:
    """Let the C library keep the memory that arrays give back, for the next ones.

    glibc returns blocks of more than 128 KiB to the system, and each 4 KiB of the next array cost a page fault then: a
    third of the time here. The limit rises with the size of a block that was freed (mallopt(3), M_MMAP_THRESHOLD).
    """
    np.empty(31 << 20, np.uint8)  # at most 32 MiB count; never touched, so it takes no memory


class _Feed(Generic[Task, Result]):
    """Keeps an executor busy, and gives the results in the order of the tasks.

    A task is drawn when one before it is done, whoever is free then, so that all end at about the same time.

    Args:
        executor: where to run.
        function: what to run.
        tasks: what to run it on.
        limit: how many tasks the executor is to have at a time.
        take_part: whether to do a task here instead of waiting for one. So the work begins before the workers have
            started, and needs one of them less.
    """

    def __init__(
        self,
        executor: Executor,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        limit: int,
        take_part: bool = False,
    ) -> None:
        self._executor, self._function, self._tasks = executor, function, iter(tasks)
        self._limit, self._take_part = limit, take_part
        self._lock = threading.RLock()  # the next task is drawn in a thread of the executor's, or here
        self._is_closed = False
        self._futures: deque[Future[Result]] = deque()  # of tasks whose results were not given yet, in order

    def results(self) -> Iterator[Result]:
        """Yield the results; close the iterator to start no more tasks."""
        try:
            while True:
                # Nothing is being done here at this point, so what is not done is with the executor.
                while sum(not future.done() for future in self._futures) < self._limit and self._start_next():
                    pass
                if not self._futures:
                    return
                if self._take_part and not self._futures[0].done() and self._start_next(here=True):
                    continue
                yield self._futures.popleft().result()
        finally:
            with self._lock:
                self._is_closed = True
            for future in self._futures:
                future.cancel()

    def _start_next(self, here: bool = False) -> bool:
        """Draw a task and start it, in the executor or here; tell whether there was one, and room for its result."""
        future: Future[Result] = Future()
        with self._lock:
            if self._is_closed or len(self._futures) >= 2 * self._limit + _MORE_RESULTS:
                return False
            try:
                task = next(self._tasks)
                if not here:
                    with _caller_hidden():
                        future = self._executor.submit(self._function, task)
            except StopIteration:
                return False
            except Exception as error:  # which is due after the results of the tasks before
                self._is_closed = True
                future.set_exception(error)
            self._futures.append(future)
        if here and not future.done():
            try:
                future.set_result(self._function(task))
            except Exception as error:
                future.set_exception(error)
        elif not here:
            future.add_done_callback(self._replace)
        return True

    def _replace(self, future: Future[Result]) -> None:
        """Give the executor a task for the one that has ended; not after an error, where it may hold its own lock."""
        if not future.cancelled() and future.exception() is None:
            self._start_next()


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
