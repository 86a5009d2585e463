"""Runs a function over tasks, in worker processes or in this one, and yields the results in order.

Only a few tasks are in progress at a time, so memory does not grow with their number.
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
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Generic, TypeVar

from tslm.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

_MORE_RESULTS = 6  # results that may wait for an earlier one, besides two for each worker
POOL_BYTES = 1 << 24  # for smaller jobs a pool costs more time (0.2 s to start an interpreter) than it saves


def map_in_order(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    total_bytes: int,
    num_workers: int | None = None,
    executor: Executor | None = None,
    pool_bytes: int = POOL_BYTES,
) -> Generator[Result]:
    """Yield `function(task)` for each task, in the order of the tasks; close the iterator to end the workers early.

    Args:
        function: importable by name, since it is sent to other processes.
        tasks: the arguments; they are taken only as fast as the results are.
        total_bytes: the size of the job.
        num_workers: number of processes, including this one; None means one per core.
        executor: runs the tasks instead of worker processes; it is not shut down.
        pool_bytes: smaller jobs run in this process, unless there is an executor.

    Raises:
        ChildProcessError: a worker process died.
        UserError: `num_workers` is below 1.
    """
    workers = resolve_workers(num_workers)
    if executor is not None:
        yield from _Feed(executor, function, tasks, 2 * max(workers, 8)).results()
    elif workers == 1 or total_bytes < pool_bytes:
        yield from map(function, tasks)
    else:
        pool = ProcessPoolExecutor(workers - 1, mp_context=_Context(), initializer=_start_worker)
        try:
            yield from _Feed(pool, function, tasks, workers - 1, take_part=True).results()
        except BrokenProcessPool:
            raise ChildProcessError(
                f"one of {workers} worker processes died, most often for lack of memory; try again with num_workers=1"
            ) from None
        finally:
            # The pool's thread ends the processes, unless it has died or never started.
            thread, processes = _thread_of(pool), [*pool._processes.values()]
            pool.shutdown(wait=thread is not None and thread.is_alive(), cancel_futures=True)
            for process in processes:
                process.terminate()
                process.join()


def resolve_workers(num_workers: int | None) -> int:
    """Return the number of worker processes: the one given, or one per core that this process may use.

    Raises:
        UserError: `num_workers` is below 1.
    """
    if num_workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_workers < 1:
        raise UserError(f"num_workers is {num_workers}; give 1 or more, or None for one per core")
    return num_workers


def _thread_of(executor: Executor) -> threading.Thread | None:
    """Return the thread that hands on the tasks of a process pool; for lack of memory it may not start, or may die."""
    return getattr(executor, "_executor_manager_thread", None)


class _Feed(Generic[Task, Result]):
    """Keeps an executor busy, and yields the results in the order of the tasks.

    A new task is started whenever one is done, so all workers end at about the same time.

    Args:
        executor: runs the tasks.
        function: the function to run.
        tasks: its arguments.
        limit: how many tasks the executor has at a time.
        take_part: whether to run a task here instead of waiting for one. So the work starts before the workers have
            started, and needs one worker less.
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
        self._lock = threading.RLock()  # tasks are taken here and in a thread of the executor
        self._is_closed = False
        self._futures: deque[Future[Result]] = deque()  # of the tasks whose results were not yielded yet, in order

    def results(self) -> Iterator[Result]:
        """Yield the results; close the iterator to start no more tasks."""
        try:
            while True:
                # No task is running here at this point, so those that are not done are the executor's. The list is a
                # copy, since a thread of the executor may append to the queue.
                while sum(not future.done() for future in list(self._futures)) < self._limit and self._start_next():
                    pass
                if not self._futures:
                    return
                if self._take_part and not self._futures[0].done() and self._start_next(here=True):
                    continue
                yield self._wait_for(self._futures.popleft())
        finally:
            with self._lock:
                self._is_closed = True
            for future in self._futures:
                future.cancel()

    def _wait_for(self, future: Future[Result]) -> Result:
        """Return a result, or raise an error if none will come, because the pool's thread has died."""
        while not future.done():
            wait([future], timeout=1)
            thread = _thread_of(self._executor)
            if thread is not None and not thread.is_alive() and not future.done():
                raise BrokenProcessPool
        return future.result()

    def _start_next(self, here: bool = False) -> bool:
        """Start the next task, in the executor or here; return whether there was one and space for its result."""
        future: Future[Result] = Future()
        with self._lock:
            if self._is_closed or len(self._futures) >= 2 * self._limit + _MORE_RESULTS:
                return False
            try:
                task = next(self._tasks)
                if not here:
                    future = self._executor.submit(self._function, task)
            except StopIteration:
                return False
            except Exception as error:  # raised after the results of the tasks before it
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
        """Start another task when one is done; not after an error, when the executor may hold its own lock."""
        if not future.cancelled() and future.exception() is None:
            self._start_next()


class _Process(SpawnProcess):
    """A spawned process that does not import the script of the user.

    `multiprocessing` reads the path of the script from `sys.modules["__main__"]` when a process starts, and offers no
    option to leave it out. The workers need nothing from the script, and a script without
    `if __name__ == "__main__":` would start again in each of them. So another module takes its place during the start.
    """

    def start(self) -> None:
        """Start the process, while another module is `__main__` and Ctrl-C is blocked."""
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            with _blocked_interrupt():  # the process inherits this, see _start_worker
                super().start()
        finally:
            sys.modules["__main__"] = main


@contextlib.contextmanager
def _blocked_interrupt() -> Iterator[None]:
    """Block Ctrl-C for a moment, where the system can do that.

    Another thread may still receive it. Python would then call the handler in the main thread, where the exception
    would leave a process that waits for its task. So the handler is called at the end.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    handler, pressed = signal.getsignal(signal.SIGINT), list[int]()
    is_main = threading.current_thread() is threading.main_thread() and callable(handler)
    if is_main:
        signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if pressed:
            signal.raise_signal(signal.SIGINT)


class _Context(SpawnContext):
    """Spawn, not fork: threads of torch or numpy may hold locks, which a forked child would wait for forever."""

    Process = _Process


def _start_worker() -> None:
    """Ignore Ctrl-C, which the parent handles, and exit when the parent is gone, for whatever reason.

    Ctrl-C is blocked from the start of the process until here; an interrupted import would print a traceback.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        """End this process after the parent."""
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
