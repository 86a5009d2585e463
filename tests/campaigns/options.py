"""`python -m tests.campaigns.options`: command lines drawn at random from all options of all commands, with odd values.

Each one runs in this process through `tslm.__main__.main`, with a tiny model and a tiny text in a temporary folder. It
must work or say one sentence: exit code 0, 2 or 130, no traceback, and no half-written file. The result is one JSON
line per command on stdout; each failing command line is printed on stderr. The exit code is 1 after a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.conftest import ROOT
from tslm import __main__
from tslm.data.toy import write_corpus

ODD = [
    "-1", "0", "1", "2", "3.5", "-0.0", "1e39", "1e-320", "inf", "nan", ".nan", ".inf", str(2**31), str(2**63),
    str(2**70), "", " ", "null", "true", "no", "[]", "[1]", "[1, 2]", "{}", "{a: 1, a: 2}", "[", "'", "auto", "x",
    "é字🙂", "\udcff", '"\\ud800"', '"\\0"', '["\\0"]', "a" * 5000, "/", ".", "/dev/null", "missing/file", "s.txt",
    "--x", "last", "best", "EarlyStopping", "lightning.pytorch.callbacks.Timer", "{class_path: os.system}",
    "0x10", "1_000", "*", "%s",
]
FITTING = ["-1", "0", "1", "2", "3", "7", "0.5", "1e-9", "1e30", "-0.5", "100000", "null", "true", "false", "auto", "x",
           "[]", '[""]', '["s.txt"]', "s.txt", "v", "c", "cpu", "gpu", "tpu", "ddp", "fsdp", "64-true", "16-mixed",
           "bf16-true", "simple", "value", "norm", "warn", "00:00:00:01", "[0.9, 0.999]", "TensorBoardLogger", "Timer"]
ONE_PROCESS = {name: ["-7", "0", "1", "x", "1.5", "null", "[]", "[0]"]  # more would start copies of the campaign
               for name in ("--trainer.devices", "--trainer.num_nodes")}
HOURS = {"1_000", "100000", str(2**31), str(2**63), "null", "auto"}  # a command would work for hours with these
LONG = {"max_steps", "max_tokens", "toy_stories", "vocab_size", "context_length", "d_model", "num_layers", "d_ff",
        "max_new_tokens", "num_stories", "num_workers", "batch_size", "devices", "num_nodes", "num_heads"}
TINY = [
    "--data.corpus=files", '--data.train_files=["s.txt"]', "--data.cache_dir=c", "--data.vocab_size=300",
    "--data.context_length=32", "--data.batch_size=4", "--data.num_workers=1", "--model.d_model=16",
    "--model.num_layers=1", "--model.num_heads=2", "--model.d_ff=32", "--trainer.max_steps=1",
    "--trainer.precision=32-true", "--trainer.accelerator=cpu", "--generation.max_new_tokens=2",
    "--trainer.enable_progress_bar=false",
]
MEASURING = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--data.cache_dir=c"]
START = {
    "fit": ["fit", "--config", str(ROOT / "configs" / "text.yaml"), *TINY],
    "validate": ["validate", *MEASURING],
    "test": ["test", *MEASURING],
    "predict": ["predict", *MEASURING, "--generation.max_new_tokens=2"],
    "generate": ["generate", "--max_new_tokens=2"],
    "train-tokenizer": ["train-tokenizer", "--input=s.txt", "--output=t", "--vocab_size=270", "--num_workers=1"],
    "tokenize": ["tokenize", "--tokenizer=v", "--input=s.txt", "--output=ids", "--num_workers=1"],
    "study unicode": ["study", "unicode"],
    "study tokenizer": ["study", "tokenizer", "--num_stories=20", "--vocab_size=270", "--num_workers=1"],
}
SKIPPED = {"--help", "--print_config", "--trainer.fast_dev_run"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.options", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="command lines, over all commands (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all command lines (default: 0)")
    parser.add_argument("--command", choices=START, action="append", help="only this command; can be repeated")
    options = parser.parse_args(arguments)
    rng, commands = random.Random(options.seed), options.command or list(START)
    tried, failed = dict.fromkeys(commands, 0), dict.fromkeys(commands, 0)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        template = Path(folder, "template")
        known = {command: option_names(command) for command in commands}
        prepare(template)
        for number in range(options.count):
            command = commands[number % len(commands)]
            words = draw(rng, command, known[command])
            tried[command] += 1
            if found := check(words, template, Path(folder, "project")):
                failed[command] += 1
                print(f"{shlex.join(words)!a}\n  {found}", file=sys.stderr, flush=True)
    for command in commands:
        print(json.dumps({"name": f"options {command}", "tried": tried[command], "failed": failed[command]}))
    return 1 if any(failed.values()) else 0


def prepare(folder: Path) -> None:
    """Make a project with a text, a vocabulary, a token file and a run, from which each command line starts."""
    folder.mkdir()
    with contextlib.chdir(folder):
        write_corpus(Path("s.txt"), 100, seed=7)
        for words in (["train-tokenizer", "--input=s.txt", "--output=v", "--vocab_size=270", "--num_workers=1"],
                      START["fit"]):
            code, text = run(words, limit=120)
            assert code == 0, text


def option_names(command: str) -> list[str]:
    """Read all options of a command from its help."""
    _, text = run([*START[command][: 2 if command.startswith("study") else 1], "--help"], limit=120)
    words = (line.split()[0].rstrip(",") for line in text.splitlines() if line.lstrip().startswith("--"))
    return sorted({word.partition("=")[0] for word in words if not word.endswith("+")} - SKIPPED)


def draw(rng: random.Random, command: str, known: list[str]) -> list[str]:
    """Draw a command line: one to three options with odd values, and sometimes a misspelled option."""
    words = list(START[command])
    for name in rng.choices(known, k=rng.choice([1, 1, 1, 2])):
        value = rng.choice(ONE_PROCESS.get(name) or rng.choice([ODD, FITTING, FITTING]))
        if name.rpartition(".")[2].lstrip("-") in LONG and value in HOURS:
            value = "3"
        name = name[:-1] if rng.random() < 0.03 else name
        words += rng.choice([[f"{name}={value}"], [name, value]])
    return words


def check(words: list[str], template: Path, folder: Path) -> str | None:
    """Run a command line in a fresh copy of a project, and say what is wrong with its outcome."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder)
    before = contents(folder)
    with contextlib.chdir(folder):
        code, text = run(words)
    return problem(code, text, before, contents(folder))


def problem(code: int | str, text: str, before: set[str], after: set[str]) -> str | None:
    """Say what is wrong with an outcome, or None."""
    if code not in (0, 2, 130) or "Traceback" in text:
        return f"exit code {code}: {text[-600:]!a}"
    sentences = [line for line in text.splitlines() if line.rpartition("\r")[2].startswith("tslm: ")]
    if code == 2 and (len(sentences) != 1 or len(sentences[0]) > 700):
        return f"not one sentence: {text[-600:]!a}"
    half = {name for name in after - before if name.endswith((".tmp", ".new"))}
    if half or (code == 2 and any(name.endswith((".ckpt", "ids", "t/vocab.json")) for name in after - before)):
        return f"files are left: {sorted(half or after - before)}"
    return None


def contents(folder: Path) -> set[str]:
    """Return the paths of all files."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def run(words: list[str], limit: int = 30) -> tuple[int | str, str]:
    """Run a command line in this process; return its exit code, or the exception, and what it printed."""
    output = io.StringIO()
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    environment = dict(os.environ)
    code: int | str
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), time_limit(limit):
        try:
            code = __main__.main(words)
        except BaseException as error:
            code = f"{type(error).__name__}\n{traceback.format_exc()[-500:]}"
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
        signal.signal(number, handler)
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    return code, output.getvalue()


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Interrupt a command that works for too long; it then ends with exit code 130, which is allowed."""
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


if __name__ == "__main__":
    sys.exit(main())
