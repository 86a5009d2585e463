import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tslm.tokenizer.workers import _blocked_interrupt, map_in_order


def shuffled(number):
    """Take the longer the lower the number is, within each ten."""
    time.sleep((9 - number % 10) / 2000)
    if number == 25:
        raise ValueError("twenty-five")
    return number


def process_of(number):
    time.sleep(0.02)
    return number, os.getpid()


def tasks_to(stop):
    yield from range(stop)
    raise ValueError("no more")


def test_tokenizer_workers_give_results_in_order():
    with ThreadPoolExecutor(4) as executor:
        assert list(map_in_order(shuffled, range(25), 0, executor=executor)) == [*range(25)]


@pytest.mark.parametrize(("draw", "message"), [(lambda: range(40), "twenty-five"), (lambda: tasks_to(25), "no more")])
def test_tokenizer_workers_raise_an_error_after_the_results_before_it(draw, message):
    with ThreadPoolExecutor(4) as executor:
        results = map_in_order(shuffled, draw(), 0, executor=executor)
        assert [next(results) for _ in range(25)] == [*range(25)]
        with pytest.raises(ValueError, match=message):
            next(results)


def test_tokenizer_workers_draw_tasks_only_as_results_are_taken():
    drawn = []

    def endless():
        while True:
            drawn.append(len(drawn))
            yield drawn[-1]

    with ThreadPoolExecutor(2) as executor, closing(map_in_order(abs, endless(), 0, 1, executor)) as results:
        assert next(results) == 0
        time.sleep(0.1)
        assert len(drawn) < 100


def test_tokenizer_workers_include_this_process():
    results = list(map_in_order(process_of, range(100), 1, num_workers=2, pool_bytes=0))
    assert [number for number, _ in results] == [*range(100)]
    processes = {process for _, process in results}
    assert os.getpid() in processes
    assert len(processes) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("number", [0, 1])
def test_a_thread_of_the_pool_that_cannot_start_is_an_error(number, monkeypatch):
    """First starts the thread that hands on the tasks, and then, from it, the one that writes them to a pipe."""
    start, started = threading.Thread.start, []

    def start_or_fail(thread):
        started.append(thread)
        if len(started) > number:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_fail)
    with pytest.raises((RuntimeError, ChildProcessError), match=r"can't start new thread|worker processes died"):
        list(map_in_order(process_of, range(100), 1, num_workers=2, pool_bytes=0))
    assert multiprocessing.active_children() == []


def test_ctrl_c_that_another_thread_receives_waits_until_a_worker_has_started():
    begun, started = threading.Event(), []

    def receive():
        begun.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    def start():
        thread = threading.Thread(target=receive)
        thread.start()
        with _blocked_interrupt():
            begun.set()
            thread.join()
            time.sleep(0.01)
            started.append(True)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # another test may have left one of its own
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
        assert started
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
