"""`python -m tslm COMMAND …`: lists the commands, runs one, and reports a user's mistake in one sentence.

Nothing heavy is imported before the command is known, so a list or a mistyped name is answered at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import errno
import importlib
import io
import os
import re
import signal
import sys
import threading
import time
import types
import warnings
from typing import NoReturn, TextIO

import tslm
from tslm.commands.first_page import asks_for_first_page, first_page
from tslm.errors import PEER_ENDED, UserError, as_called

COMMANDS = {
    "fit": ("tslm.cli", "train a model; without options the quick start, from raw text to stories"),
    "validate": ("tslm.cli", "loss, perplexity and bits per byte of a checkpoint on the validation text"),
    "test": ("tslm.cli", "the same as validate; there is no separate test text"),
    "predict": ("tslm.cli", "write a story for each of many prompts"),
    "generate": ("tslm.commands.generate", "continue one prompt, and print the text while it is generated"),
    "score": ("tslm.commands.score", "how probable a model finds a text: per token, line or file"),
    "export": ("tslm.commands.export", "write a model for transformers or llama.cpp, or its tokenizer for others"),
    "train-tokenizer": ("tslm.commands.train_tokenizer", "learn a byte-pair vocabulary from text files"),
    "tokenize": ("tslm.commands.tokenize", "turn text files into one file of token ids"),
    "runs": ("tslm.commands.runs", "list the runs, newest first; --verify checks every file of every run"),
    "compare": ("tslm.commands.compare", "runs side by side: settings, curves, and which has the lower loss"),
    "study": ("tslm.commands.study", "answer a question of the course by an experiment; `study --help` lists them"),
}

INTERRUPTED = 128 + signal.SIGINT  # the exit code after Ctrl-C
SPINS = "1000"  # how often a thread of GNU's OpenMP looks for work before it sleeps; its default is 300,000
PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when its parent ends
# Errors without the name of a file: of writing to the output, and of a missing temporary folder.
NAMELESS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.ENOENT)
CLOSED_OUTPUT = 141  # that of a program that SIGPIPE ended, as in `python -m tslm … | head`

_python_format = warnings.formatwarning


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code.

    The exit code is 0 after success, 2 after a mistake of the user's, 130 after Ctrl-C and 141 after a closed pipe.
    A mistake is a `UserError`, a file that the operating system refuses, a full disk, or too little memory. Every
    other exception is a bug and leaves this function.

    Args:
        argv: the words after `python -m tslm`; None takes those of the process.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        warnings.formatwarning = _format_warning
        _answer(words, argv)
        sys.stdout.flush()  # here, because a pipe closed by its reader is reported at exit otherwise
        return 0
    except BaseException as error:
        try:
            sys.stdout.flush()
        except OSError:  # a closed pipe or a full disk; the flush at exit must not fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if _follows_interrupt(error):
            return _report("interrupted", code=INTERRUPTED)
        if isinstance(error, SystemExit):
            return _report(error.code, code=1) if isinstance(error.code, str) else error.code or 0
        if isinstance(error, BrokenPipeError):
            return CLOSED_OUTPUT
        sentence = _sentence(error)
        if sentence is None or os.environ.get("TSLM_TRACEBACK") == "1":
            raise
        return _report(sentence)


def _answer(words: list[str], argv: list[str] | None) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
    elif words[0] in ("-V", "--version"):
        print(f"tslm {tslm.__version__}")
    elif words[0] == "--completion":
        print(importlib.import_module("tslm.commands.completion").script())
    elif words[0] not in COMMANDS:
        raise UserError(_unknown(words[0]))
    elif words[0] == "fit" and asks_for_first_page(words[1:]):
        print(as_called(first_page()))
    else:
        if "OMP_WAIT_POLICY" not in os.environ:  # torch is not loaded yet
            # Otherwise two trainings on the same cores take four times as long as one after the other.
            os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
        _run(words[0], words[1:], argv)


def _run(command: str, options: list[str], argv: list[str] | None) -> None:
    began = time.perf_counter()  # importing Lightning takes seconds
    module = importlib.import_module(COMMANDS[command][0])
    if COMMANDS[command][0] == "tslm.cli":
        # LightningCLI gets the whole command line, and sys.argv unchanged, because DDP starts its processes with it.
        module.main(argv, began)
    else:
        module.main(options)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format the warning that a function runs without its substitute as one line, without file name and source."""
    from tslm.fast import DisagreementWarning

    if issubclass(category, DisagreementWarning):
        return f"tslm: {message}\n"
    return _python_format(message, category, filename, lineno, line)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning in a new line above the progress bars, if there are any."""
    text, out = warnings.formatwarning(message, category, filename, lineno, line), sys.stderr if file is None else file
    with contextlib.suppress(OSError):  # a closed pipe
        if "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.write(text, file=out, end="")
        else:
            out.write(text)


def _overview() -> str:
    lines = [f"  {name:<16} {description}" for name, (_, description) in COMMANDS.items()]
    return as_called("\n".join([
        "tslm trains a Transformer language model from raw text.",
        "",
        "usage: python -m tslm COMMAND [OPTIONS]     (python -m tslm COMMAND --help lists the options)",
        "",
        *lines,
        "",
        "A mistake is reported in one sentence. TSLM_TRACEBACK=1 in the environment shows the traceback too.",
        "`python -m tslm --completion` prints a script for bash and zsh that completes `tslm` on Tab; it says how.",
    ]))


def _unknown(word: str) -> str:
    if word.startswith("-"):
        return f"expected a command before {word}, one of {', '.join(COMMANDS)}"
    nearest = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose one of {', '.join(COMMANDS)}"
    return f"unknown command {word!r}: {hint}"


def _report(sentence: str, code: int = 2) -> int:
    with contextlib.suppress(BrokenPipeError):  # in `python -m tslm … 2>&1 | head`
        text = as_called(sentence).encode(errors="backslashreplace").decode()  # a path may hold bytes that are not text
        print(f"tslm: {text}", file=sys.stderr)
    return code


def _follows_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C led to an exception; Lightning ends with SystemExit(1) instead, and cleaning up may fail."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _sentence(error: BaseException) -> str | None:
    """Say in one sentence what the user can change; None for a bug, which only its traceback explains."""
    text = re.sub(r"(\S{300})\S+", r"\1 …", " ".join(str(error).split()))  # a name that the user gave may be very long
    if isinstance(error, UserError) or (isinstance(error, ChildProcessError) and error.errno is None):
        return text
    if isinstance(error, OSError) and error.strerror:
        if error.filename is not None:
            name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
            return f"{name if len(name) <= 300 else name[:300] + ' …'}: {error.strerror}"
        if error.errno in NAMELESS:
            return error.strerror
    if re.search(r"gloo/|monitoredBarrier", text) or type(error).__module__ == "torch.distributed":
        return PEER_ENDED
    torch = sys.modules.get("torch")  # no exception can be torch's if torch is not imported
    is_torch = torch is not None and isinstance(error, torch.OutOfMemoryError)
    # A RuntimeError of torch on a CPU, an OSError of mmap, a RuntimeError of threading
    is_other = re.search("(can't|Cannot) allocate memory|can't start new thread", text)
    if is_torch or isinstance(error, MemoryError) or is_other:
        advice = "use fewer processes (--num_workers 1), or end other programs"
        if torch is not None:
            advice = "use a smaller batch, a shorter context or a smaller model"
        return f"out of memory ({text or 'MemoryError'}): {advice}"
    return None


def run() -> int:
    """Run the command of this process, and handle Ctrl-C from the first import to the last line of output.

    Characters that the output's encoding lacks are replaced. A closed output ends the process, with the code of a
    closed pipe, before a file that is opened for writing can get the number of the output.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - open until the end of the process
    if sys.stdout is None:
        return _report("the standard output is closed: send it to a file or to /dev/null", code=CLOSED_OUTPUT)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    if sys.platform == "linux" and os.environ.get("LOCAL_RANK", "0") != "0":  # the first process has started this one
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # or it would wait half an hour for a dead process
    warnings.showwarning = _show_warning
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # `nohup` and a shell's `&` ask for this
        return main()
    signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _stop_if_interrupted
    threading.excepthook = _report_thread
    # For the processes that multiprocessing starts: its tracker warns of semaphores that `_stop` leaves to be removed.
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    code = main()
    signal.signal(signal.SIGINT, _stop)
    if code == INTERRUPTED:  # sys.exit would wait for threads, and may repeat the signal to end the process by it
        _exit_at_once()
    return code


def _interrupt(signum: int, frame: types.FrameType | None) -> None:
    """Raise KeyboardInterrupt at the first Ctrl-C, so that the command cleans up; stop at once at the second.

    An interrupted import also stops at once: the imported module may swallow the exception or replace it.
    """
    signal.signal(signal.SIGINT, _stop)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _stop()
        frame = frame.f_back
    raise KeyboardInterrupt


def _stop_if_interrupted(unraisable: sys.UnraisableHookArgs) -> None:
    """Stop if Python is about to drop a KeyboardInterrupt, as it does in `__del__`; print what else it drops."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _stop()
    sys.__unraisablehook__(unraisable)


def _report_thread(ended: threading.ExceptHookArgs) -> None:
    """Say in one sentence that a thread has ended for lack of memory; print the traceback of everything else."""
    sentence = None if ended.exc_value is None else _sentence(ended.exc_value)
    if sentence is None:
        threading.__excepthook__(ended)
    else:
        _report(sentence)


def _stop(*_: object) -> NoReturn:
    """Say that the command was interrupted, and end the process without clean-up."""
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())  # a bar is a line without an end
    # print would fail if the signal came in the middle of another print
    os.write(2, b"\n" * bool(bars) + b"tslm: interrupted\n")
    _exit_at_once()


def _exit_at_once() -> NoReturn:
    try:
        sys.stdout.flush()
    finally:
        os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(run())
