import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks.measure import Figure, Target, exit_code, in_turn, markdown, run_alone, table


def use_memory(megabytes):
    """Allocate memory in this process and as much in a second one, long enough to be sampled."""
    code = f"import time; held = bytearray(b'x') * {megabytes * 10**6}; time.sleep(0.4)"
    with subprocess.Popen([sys.executable, "-c", code]):
        exec(code)
    return os.getpid()


def map_file(path):
    import mmap

    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        mapped.find(b"y")  # does not occur, so every page is read
        time.sleep(0.3)


def fail():
    print("this is not part of the result")
    raise ValueError("the reason")


def start_a_sleeper():
    print("this is not part of the result")
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid


def test_a_function_runs_in_a_new_process_whose_children_end_with_it():
    run = run_alone(start_a_sleeper)
    assert 0 < run.seconds < 30
    assert run.peak_bytes == 0
    for _ in range(100):  # the parent of the killed process needs a moment to reap it
        state = Path(f"/proc/{run.result}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        os.kill(run.result, signal.SIGKILL)
        pytest.fail("the process outlived the run")


def test_memory_is_the_sum_over_all_processes():
    run = run_alone(use_memory, sample_memory=True, megabytes=60)
    assert run.result != os.getpid()
    assert 120e6 < run.peak_bytes < 170e6


def test_pages_of_a_mapped_file_do_not_count_as_memory(tmp_path):
    (tmp_path / "large").write_bytes(b"x" * 60_000_000)
    assert run_alone(map_file, sample_memory=True, path=tmp_path / "large").peak_bytes < 40e6


def test_a_failure_in_the_process_is_one_sentence():
    with pytest.raises(ChildProcessError, match=r"^fail failed in its process: ValueError: the reason$"):
        run_alone(fail)


def test_both_sides_run_in_turn_and_the_medians_count():
    calls = []

    def side(name, values):
        return lambda: calls.append(name) or values.pop()

    assert in_turn(side("ours", [9, 1, 2]), side("peer", [4, 5, 60]), 3) == (2, 5)
    assert calls == ["ours", "peer"] * 3


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "code", "message"),
    [(raising(ValueError("the reason")), 2, "the reason\n"), (raising(KeyboardInterrupt()), 130, "stopped\n"),
     (lambda: 1, 1, ""), (lambda: None, 0, "")],
)
def test_the_exit_code_says_how_the_command_ended(work, code, message, capsys):
    assert exit_code(work) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("target", "text", "holds"),
    [
        (Target("ratio", "<=", 1 / 5), "ratio <= 0.2", False),
        (Target("ratio", ">=", 0.5), "ratio >= 0.5", True),
        (Target("ours", "<=", 2), "ours <= 2 s", True),
        (None, None, None),
    ],
)
def test_a_figure_says_whether_its_target_is_reached(target, text, holds):
    figure = Figure("x", "s", 2.0, 4.0, "other", target, 3)
    assert json.loads(figure.json_line()) == {
        "name": "x", "ours": 2.0, "peer": 4.0, "peer_name": "other", "ratio": 0.5, "target": text, "holds": holds,
        "runs": 3,
    }


def test_the_tables_show_every_figure():
    figures = [Figure("one", "MB/s", 1234.5, 0.123456, "other", Target("ratio", ">=", 4), 3),
               Figure("two", "s", 0.5, None, None, None, 1)]
    assert markdown(figures).splitlines() == [
        "| figure | tslm | peer | ratio | target | holds | runs |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| `one` | 1,234 MB/s | 0.123 MB/s (other) | 10,000 | ratio >= 4 | yes | 3 |",
        "| `two` | 0.5 s |  |  |  |  | 1 |",
    ]
    assert [line.split()[0] for line in table(figures).splitlines()] == ["figure", "one", "two"]
