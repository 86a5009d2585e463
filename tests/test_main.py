import concurrent.futures
import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

import tslm
from tests.conftest import hear_ctrl_c
from tslm.__main__ import COMMANDS, main
from tslm.errors import MissingFileError, UserError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def command(monkeypatch):
    """Put a command called `try` in the table whose body is the given function."""
    def install(function, name="tslm.commands.try_it"):
        module = types.ModuleType(name)
        module.main = function
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(COMMANDS, "try", (name, "a test"))
    monkeypatch.delenv("TSLM_TRACEBACK", raising=False)
    return install


def test_main_lists_every_command(capsys):
    for words in ([], ["--help"], ["-h"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        for name, (_, description) in COMMANDS.items():
            assert any(line.split()[:1] == [name] and line.endswith(description) for line in out.splitlines())
        assert "TSLM_TRACEBACK=1" in out


def test_main_prints_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tslm {tslm.__version__}\n"


@pytest.mark.parametrize(("words", "message"), [
    (["fti"], "unknown command 'fti': did you mean 'fit'?"),
    (["train_tokenizer"], "unknown command 'train_tokenizer': did you mean 'train-tokenizer'?"),
    (["generat", "--prompt", "x"], "unknown command 'generat': did you mean 'generate'?"),
    (["xyz"], "unknown command 'xyz': choose one of fit, validate"),
    (["--config", "a.yaml"], "expected a command before --config, one of fit, validate"),
])
def test_main_names_the_nearest_command(words, message, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"tslm: {message}")
    assert err.count("\n") == 1


def test_main_answers_without_heavy_imports():
    """In a process of its own, because the tests have imported everything."""
    source = """
import sys
from tslm.__main__ import main
codes = [main(words) for words in ([], ["--help"], ["--version"], ["fti"])]
assert codes == [0, 0, 0, 2]
heavy = {"torch", "lightning", "numpy", "jsonargparse", "yaml", "regex", "tqdm"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, check=True, timeout=60)


def test_python_m_tslm_runs_main():
    done = subprocess.run([sys.executable, "-m", "tslm", "fti"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "tslm: unknown command 'fti': did you mean 'fit'?\n"


def test_a_command_gets_its_options_and_lightning_the_whole_line(command):
    received = []
    command(received.append)
    assert main(["try", "--a", "1"]) == 0
    command(lambda argv, began: received.append(argv), name="tslm.cli")
    assert main(["try", "--a", "1"]) == 0
    assert received == [["--a", "1"], ["try", "--a", "1"]]


@pytest.mark.parametrize(("name", "value", "expected"), [
    ("GOMP_SPINCOUNT", None, "1000"), ("GOMP_SPINCOUNT", "7", "7"), ("OMP_WAIT_POLICY", "active", None)])
def test_waiting_threads_leave_the_core_to_others_unless_the_user_decides(command, monkeypatch, name, value, expected):
    for variable in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(variable, "")  # so that it is restored
        monkeypatch.delenv(variable)
    if value is not None:
        monkeypatch.setenv(name, value)
    seen = []
    command(lambda words: seen.append(os.environ.get("GOMP_SPINCOUNT")))
    assert main(["try"]) == 0
    assert seen == [expected]


def test_lightning_reads_the_arguments_of_the_process_itself(command, monkeypatch):
    received = []
    command(lambda argv, began: received.append(argv), name="tslm.cli")
    monkeypatch.setattr(sys, "argv", ["__main__.py", "try", "--a", "1"])
    assert main() == 0
    assert received == [None]
    assert sys.argv == ["__main__.py", "try", "--a", "1"]


MISTAKES = {
    "user error": ("raise UserError('lr is -1,\\nbut it must be 0 or more')", "lr is -1, but it must be 0 or more"),
    "missing file": ("raise MissingFileError('no checkpoint in x: train first')", "no checkpoint in x: train first"),
    "open": ("open('missing.txt')", "missing.txt: No such file or directory"),
    "folder": ("open('/')", "/: Is a directory"),
    "copy": ("import shutil; shutil.copyfile('missing.txt', 'x')", "missing.txt: No such file or directory"),
    "no temporary folder": ("import errno; raise FileNotFoundError(errno.ENOENT, 'No usable temporary directory')",
                            "No usable temporary directory"),
    "full file": ("import errno; raise OSError(errno.EFBIG, 'File too large')", "File too large"),
    "quota": ("import errno; raise OSError(errno.EDQUOT, 'Disk quota exceeded')", "Disk quota exceeded"),
    "full disk": ("import errno; raise OSError(errno.ENOSPC, 'No space left on device')", "No space left on device"),
    "memory": ("import torch; raise MemoryError", "out of memory (MemoryError): use a smaller batch"),
    "memory of a GPU": ("import torch; raise torch.OutOfMemoryError('CUDA out of memory')",
                        "out of memory (CUDA out of memory): use a smaller batch"),
    "another process": ("raise RuntimeError('[/x/gloo/transport/tcp/pair.cc:561] Connection closed by peer [::1]:9')",
                        "another process of this training has ended or cannot be reached: see what it printed"),
    "a barrier": ("raise RuntimeError('Rank 0 successfully reached monitoredBarrier, but received errors')",
                  "another process of this training has ended"),
    "rendezvous": ("import torch.distributed; raise torch.distributed.DistNetworkError('timed out')",
                   "another process of this training has ended"),
    "memory for a file": ("import errno; raise OSError(errno.ENOMEM, 'Cannot allocate memory')", "out of memory ("),
    "memory for a thread": ('raise RuntimeError("can\'t start new thread")', "out of memory ("),
    "a dead worker": ("raise ChildProcessError('one of 3 worker processes died')", "one of 3 worker processes died"),
    "memory for a tensor": ("import torch; torch.empty(1 << 60, dtype=torch.int8)", "out of memory ("),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_of_the_user_is_reported_in_one_sentence(case, command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    body, sentence = MISTAKES[case]
    command(lambda options: exec(body, {"UserError": UserError, "MissingFileError": MissingFileError}))
    assert main(["try"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"tslm: {sentence}")
    assert err.count("\n") == 1


def test_without_torch_fewer_processes_are_the_advice(command, capsys, monkeypatch):
    """The tokenizer has no batch and no model."""
    def fail(options):
        raise MemoryError

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    command(fail)
    assert main(["try"]) == 2
    assert capsys.readouterr().err.startswith("tslm: out of memory (MemoryError): use fewer processes")


@pytest.mark.parametrize("error", [
    KeyError("a bug"), ValueError("a bug"), TypeError("a bug"), RuntimeError("a bug"), OSError("a bug"),
    OSError(errno.EBADF, "Bad file descriptor"),
])
def test_a_bug_keeps_its_traceback(error, command):
    def fail(options):
        raise error

    command(fail)
    with pytest.raises(type(error)) as raised:
        main(["try"])
    assert raised.value is error


def test_a_mistake_shows_its_traceback_on_request(command, monkeypatch):
    command(lambda options: fail_in_worker("mistake"))
    monkeypatch.setenv("TSLM_TRACEBACK", "1")
    with pytest.raises(UserError, match="is not UTF-8"):
        main(["try"])


def fail_in_worker(kind):
    raise UserError("story.txt is not UTF-8 at byte 7") if kind == "mistake" else ValueError("a bug")


def test_a_mistake_found_in_a_worker_process_is_reported_in_one_sentence(command, capsys):
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        command(lambda options: pool.submit(fail_in_worker, options[0]).result())
        assert main(["try", "mistake"]) == 2
        assert capsys.readouterr().err == "tslm: story.txt is not UTF-8 at byte 7\n"
        with pytest.raises(ValueError, match="a bug"):
            main(["try", "bug"])


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (0, 0), (3, 3), ("a sentence", 1)])
def test_main_returns_the_exit_code_of_a_command(code, expected, command, capsys):
    command(lambda options: sys.exit(code))
    assert main(["try"]) == expected
    assert capsys.readouterr().err == ("tslm: a sentence\n" if expected == 1 else "")


def run_process(body, **kwargs):
    """Start `python -m tslm try` in a process of its own with the given body as the command."""
    source = (
        "import sys, types, tslm.__main__ as m\n"
        f"def run(options):\n    {body}\n"
        "sys.modules['tslm.try_it'] = module = types.ModuleType('tslm.try_it')\n"
        "module.main = run\n"
        "m.COMMANDS['try'] = ('tslm.try_it', '')\n"
        "sys.argv[1:] = ['try']\n"
        "sys.exit(m.run())\n"
    )
    return subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, text=True, preexec_fn=hear_ctrl_c, **kwargs)


@pytest.mark.parametrize(("error", "said"), [
    ("Cannot allocate memory", "tslm: out of memory (Cannot allocate memory): use fewer processes"),
    ("a bug", "Exception in thread"),
])
def test_a_thread_that_lacks_memory_says_so_in_one_sentence(error, said):
    body = f"""import threading; t = threading.Thread(target=exec, args=('raise RuntimeError("{error}")',))"""
    with run_process(f"{body}; t.start(); t.join()", stderr=subprocess.PIPE) as process:
        assert process.communicate(timeout=60)[1].startswith(said)


def test_ctrl_c_is_reported_in_one_line():
    process = run_process("import time; print('ready', flush=True); time.sleep(60)",
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert process.stderr.read() == "tslm: interrupted\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), ValueError("Writer is closed")])
def test_what_follows_from_ctrl_c_is_an_interrupt(error, command, capsys):
    def fail(options):
        try:
            raise KeyboardInterrupt
        finally:
            raise error

    command(fail)
    assert main(["try"]) == 130
    assert capsys.readouterr().err == "tslm: interrupted\n"


@pytest.mark.parametrize("bar", [False, True])
def test_ctrl_c_that_python_would_drop_ends_the_command(bar):
    body = ("import os, signal, time\n"
            f"    {'import tqdm; bar = tqdm.tqdm(total=2)' if bar else ''}\n"
            "    class Closing:\n"
            "        def __del__(self): os.kill(os.getpid(), signal.SIGINT); time.sleep(9)\n"
            "    Closing()")
    with run_process(body, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.wait(timeout=20) == 130
        said = process.stderr.read()
        assert said.endswith("\ntslm: interrupted\n") if bar else said == "tslm: interrupted\n"


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_at_any_time_ends_a_command_with_its_workers(presses, tmp_path):
    """The signal goes to the whole process group, as it does from a terminal."""
    rng = random.Random(presses)
    text = tmp_path / "words.txt"
    # Large enough for worker processes, and with so many words that merging them takes seconds.
    text.write_bytes(bytes(rng.choices(b"abcdefgh ", k=1 << 22)) * 6)
    words = ["train-tokenizer", "--input", text, "--output", "new", "--num_workers", "3", "--vocab_size", "30000"]
    source = "import sys, tslm.__main__ as m; print('ready', flush=True); sys.exit(m.run())"
    for delay in (0.02, 0.3, 0.6, rng.random(), rng.uniform(1, 1.6)):
        with subprocess.Popen([sys.executable, "-c", source, *words], cwd=tmp_path, text=True, stderr=subprocess.PIPE,
                              stdout=subprocess.PIPE, start_new_session=True, preexec_fn=hear_ctrl_c,
                              env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(delay)
            for _ in range(presses):
                os.killpg(process.pid, signal.SIGINT)
                time.sleep(0.05)
            errors = process.communicate(timeout=30)[1]
        assert process.returncode == 130, (delay, errors)
        assert errors.endswith("tslm: interrupted\n"), (delay, errors)
        assert "Traceback" not in errors, delay
    assert [path.name for path in tmp_path.iterdir()] == ["words.txt"]


@pytest.mark.parametrize("body", ["[print('line' * 10) for _ in range(100_000)]", "print('one line')"])
def test_a_closed_pipe_ends_a_command_silently(body):
    read, write = os.pipe()
    os.close(read)
    with run_process(body, stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        assert process.wait(timeout=20) == 141
        assert process.stderr.read() == ""


@pytest.mark.parametrize("words", [[], ["--version"], ["--completion"], ["fit", "--help"], ["study", "sgd"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("output", "code", "said"), [
    ("pipe", 141, ""), ("full", 2, "tslm: No space left on device\n"),
])
def test_an_output_that_takes_nothing_is_the_same_for_every_command(words, unbuffered, output, code, said):
    read, write = os.pipe()
    os.close(read)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([sys.executable, "-m", "tslm", *words], stdout=write if output == "pipe" else full,
                              cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": unbuffered}, stderr=subprocess.PIPE,
                              text=True, check=False, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.parametrize(("encoding", "printed"), [("ascii", b"na?ve ? ?"), ("latin-1", b"na\xefve ? ?"),
                                                   ("utf-8", "naïve 字 ?".encode())])
def test_characters_that_the_output_lacks_are_replaced(encoding, printed):
    with run_process("print('na\\xefve \\u5b57 \\ud800')", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                     env=os.environ | {"PYTHONIOENCODING": encoding}) as process:
        assert process.stdout.buffer.read() == printed + b"\n"
        assert process.wait(timeout=20) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize(("closed", "code"), [(">&-", 141), ("2>&-", 2), (">&- 2>&-", 141), ("<&-", 2)])
def test_closed_standard_files(closed, code, tmp_path):
    """A file that the command opens must not get the number of the output, or the output is written into the file."""
    done = subprocess.run(["sh", "-c", f"{sys.executable} -m tslm train-tokenizer --input no.txt --output x {closed}"],
                          cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                          check=False, timeout=60)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == ("2>&-" not in closed)


def test_a_disagreement_is_one_line_and_other_warnings_keep_their_place():
    body = ("import warnings; from tslm.fast import DisagreementWarning; "
            "warnings.warn('rms_norm runs as it is written', DisagreementWarning); warnings.warn('other')")
    with run_process(body, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        first, second, *_ = process.stderr.read().splitlines()
        assert process.wait(timeout=20) == 0
    assert first == "tslm: rms_norm runs as it is written"
    assert second.endswith("UserWarning: other")
