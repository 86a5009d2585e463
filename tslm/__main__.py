"""`python -m tslm COMMAND …`: lists every command, starts one, and turns what went wrong into one sentence.

Nothing heavy is imported before a command is known, so that a list or a mistyped name costs no time.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
import sysconfig
import traceback

import tslm

COMMANDS = {
    "fit": ("tslm.cli", "train a model; without options the quick start, from raw text to stories"),
    "validate": ("tslm.cli", "loss, perplexity and bits per byte of a checkpoint on the validation text"),
    "test": ("tslm.cli", "the same as validate; there is no separate test text"),
    "predict": ("tslm.cli", "write a story for each of many prompts"),
    "generate": ("tslm.commands.generate", "continue one prompt, word by word as the model finds them"),
    "train-tokenizer": ("tslm.commands.train_tokenizer", "learn a byte-pair vocabulary from text files"),
    "tokenize": ("tslm.commands.tokenize", "turn text files into one file of token ids"),
    "study": ("tslm.commands.study", "answer a question of the course by trying it; `study --help` lists them"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 2 a mistake of the user's, 130 interrupted.

    Args:
        argv: the words after `python -m tslm`; those of the process if left out.
    """
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"tslm {tslm.__version__}")
        return 0
    if words[0] not in COMMANDS:
        return _complain(_unknown(words[0]))
    try:
        _start(words[0], words[1:], argv)
        sys.stdout.flush()  # here, where a closed pipe is still an exception and not a message at exit
        return 0
    except SystemExit as exit_:
        if isinstance(exit_.code, str):
            return _complain(exit_.code, code=1)
        return exit_.code or 0
    except KeyboardInterrupt:
        return _complain("interrupted", code=130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer has nowhere to go
        return 141  # as a program that SIGPIPE ended: `python -m tslm … | head`
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None or os.environ.get("TSLM_TRACEBACK") == "1":
            raise
        return _complain(sentence)


def _start(command: str, options: list[str], argv: list[str] | None) -> None:
    module = importlib.import_module(COMMANDS[command][0])
    # LightningCLI wants the whole command line, and sys.argv untouched, because DDP starts its processes with it.
    module.main(argv if COMMANDS[command][0] == "tslm.cli" else options)


def _overview() -> str:
    lines = [f"  {name:<16} {description}" for name, (_, description) in COMMANDS.items()]
    return "\n".join([
        "tslm trains a Transformer language model from raw text.",
        "",
        "usage: python -m tslm COMMAND [OPTIONS]     (python -m tslm COMMAND --help lists the options)",
        "",
        *lines,
        "",
        "A mistake is answered in one sentence; with TSLM_TRACEBACK=1 in the environment, in a traceback.",
    ])


def _unknown(word: str) -> str:
    if word.startswith("-"):
        return f"expected a command before {word}, one of {', '.join(COMMANDS)}"
    nearest = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose one of {', '.join(COMMANDS)}"
    return f"unknown command {word!r}: {hint}"


def _complain(sentence: str, code: int = 2) -> int:
    print(f"tslm: {sentence}", file=sys.stderr)
    return code


# Where Lightning looks at accelerator, devices, strategy and precision; it raises every type of error there.
_LIGHTNING_CHECKS_OPTIONS = os.path.join("trainer", "connectors", "accelerator_connector.py")


def _sentence(error: Exception) -> str | None:
    """Say in one sentence what the user can mend; None for an error that only a traceback explains.

    tslm raises ValueError and OSError with such sentences, and lets through those of the calls that it makes itself,
    such as `open`. The same types from the depths of a library are bugs, of ours or theirs.
    """
    kind = type(error).__name__  # by name, where the type itself would cost an import of torch or lightning
    if kind in ("MemoryError", "OutOfMemoryError") or "can't allocate memory" in str(error):
        return f"out of memory ({_one_line(error)}): use a smaller batch, a shorter context or a smaller model"
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if kind == "MisconfigurationException" or any(file.endswith(_LIGHTNING_CHECKS_OPTIONS) for file in files):
        return _one_line(error)
    if not isinstance(error, ValueError | OSError) or not _is_ours(error, files):
        return None
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return _one_line(error)


def _is_ours(error: Exception, files: list[str]) -> bool:
    """Tell whether the innermost function that is not Python's own belongs to tslm, in this process or a worker."""
    if type(error.__cause__).__name__ == "_RemoteTraceback":  # of concurrent.futures; its text is all that came over
        files = re.findall(r'^  File "(.+?)", line', str(error.__cause__), re.MULTILINE)
    package, standard = os.path.dirname(os.path.abspath(__file__)), sysconfig.get_path("stdlib")
    for file in reversed(files):
        if file.startswith(package + os.sep):
            return True
        if "-packages" + os.sep in file or not file.startswith((standard, "<frozen")):
            return False
    return False


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
