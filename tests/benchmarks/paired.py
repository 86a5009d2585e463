"""`python -m tests.benchmarks.paired A B`: compare the speed of two source trees of this project, in turn.

A and B are folders, for instance git worktrees of two commits. Every job runs in the order A B A B …, each time in a
new process whose PYTHONPATH is the tree. Each quantity is one JSON line on stdout with the keys `job`, `unit`, `a`,
`b`, `ratio`, `runs`, `a_runs` and `b_runs`. All quantities are rates, so larger is better; `a` and `b` are medians and
`ratio` is `b` / `a`.

Jobs: `quickstart` and `course` train a model with `tslm fit` on data that is prepared before the first run counts;
`tokenizer-train` trains a vocabulary; `tokenizer-encode` encodes a file; `generate` writes text with random weights.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks import paired_jobs
from tests.benchmarks.measure import exit_code, machine
from tslm.errors import MissingFileError, UserError

_JOBS = ("quickstart", "course", "tokenizer-train", "tokenizer-encode", "generate")
_TRAINING = ("quickstart", "course")
_PREPARING_STEPS = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and return the exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _compare(options))


def _compare(options: argparse.Namespace) -> None:
    if min(options.runs, options.steps, options.tokens, options.stories, options.workers) < 1:
        raise UserError("--runs, --steps, --tokens, --stories and --workers must be at least 1")
    if options.megabytes <= 0:
        raise UserError(f"--megabytes is {options.megabytes}, but it must be above 0")
    for tree in (options.a, options.b):
        if not (tree / "tslm" / "__init__.py").is_file():
            raise UserError(f"{tree} has no tslm/__init__.py: give a folder that holds a source tree of this project")
    if options.text is not None and not options.text.is_file():
        raise MissingFileError(f"--text is {options.text}, not a file: give a UTF-8 text, or leave the option out")
    options.workdir.mkdir(parents=True, exist_ok=True)
    workdir = options.workdir.resolve()
    trees = {"a": options.a.resolve(), "b": options.b.resolve()}
    inputs = _Inputs(options, workdir, trees["a"])
    for job in dict.fromkeys(options.job or _JOBS):
        if job in _TRAINING:
            for tree in dict.fromkeys(trees.values()):  # fills the cache of prepared data and of compiled kernels
                _run(tree, job, inputs.options_of(job, tree) | {"steps": _PREPARING_STEPS})
        rates: dict[str, dict[str, list[float]]] = {}
        for number in range(1, options.runs + 1):
            for side, tree in trees.items():
                print(f"… {job}, run {number} of {options.runs}, {side}", file=sys.stderr, flush=True)
                for unit, rate in _run(tree, job, inputs.options_of(job, tree)).items():
                    rates.setdefault(unit, {"a": [], "b": []})[side].append(rate)
        for unit, sides in rates.items():
            print(json.dumps(_line(job, unit, **sides)), flush=True)
    print(machine(["torch", "numpy", "lightning"]), file=sys.stderr)


def _line(job: str, unit: str, a: list[float], b: list[float]) -> dict[str, Any]:
    return {"job": job, "unit": unit, "a": median(a), "b": median(b), "ratio": median(b) / median(a), "runs": len(a),
            "a_runs": a, "b_runs": b}


class _Inputs:
    """The files that the jobs read; both trees get the same ones, which tree A writes where none are given."""

    def __init__(self, options: argparse.Namespace, workdir: Path, writer: Path) -> None:
        self._options, self._workdir, self._writer = options, workdir, writer
        self._texts: dict[str, str] = {}

    def options_of(self, job: str, tree: Path) -> dict[str, Any]:
        """Return the options of a job in a tree, as `paired_jobs` takes them."""
        o = self._options
        if job in _TRAINING:
            name = hashlib.sha256(os.fsencode(tree)).hexdigest()[:8]  # each tree reads what it prepared itself
            return {"tree": str(tree), "text": self._text(), "cache": str(self._workdir / f"paired-cache-{name}"),
                    "steps": o.steps, "shape": o.shape, "seed": o.seed}
        if job == "generate":
            return {"shape": o.shape, "tokens": o.tokens, "seed": o.seed}
        if job == "tokenizer-train":
            return {"text": self._long_text(), "vocab_size": o.vocab_size, "workers": o.workers}
        return {"text": self._long_text(), "folder": self._tokenizer(), "workers": o.workers}

    def _text(self) -> str:
        if self._options.text is not None:
            return str(self._options.text.resolve())
        if "text" not in self._texts:
            path = self._workdir / f"paired-{self._options.stories}-{self._options.seed}.txt"
            _run(self._writer, "write-text",
                 {"path": str(path), "stories": self._options.stories, "seed": self._options.seed})
            self._texts["text"] = str(path)
        return self._texts["text"]

    def _long_text(self) -> str:
        """Repeat the text until it has the size that --megabytes asks for."""
        if "long" not in self._texts:
            size, text = int(self._options.megabytes * 1e6), Path(self._text()).read_bytes()
            if not text:
                raise UserError(f"{self._text()} is empty: give a text with at least one byte as --text")
            path = self._workdir / "paired-long.txt"
            path.write_bytes(text * -(-size // len(text)))
            self._texts["long"] = str(path)
        return self._texts["long"]

    def _tokenizer(self) -> str:
        if "tokenizer" not in self._texts:
            folder = str(self._workdir / "paired-tokenizer")
            _run(self._writer, "save-tokenizer",
                 {"text": self._text(), "folder": folder, "vocab_size": self._options.vocab_size})
            self._texts["tokenizer"] = folder
        return self._texts["tokenizer"]


def _run(tree: Path, job: str, options: dict[str, Any]) -> dict[str, float]:
    """Run one job in a new process with the package of a tree.

    Raises:
        ChildProcessError: the job failed; the sentence ends with the last line of its stderr.
    """
    command = [sys.executable, "-P", paired_jobs.__file__, str(tree), job, json.dumps(options)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True,
                          check=False)
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ChildProcessError(f"{job} failed in {tree}: {last_line}")
    rates: dict[str, float] = json.loads(done.stdout)
    return rates


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.paired", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("a", type=Path, help="the first source tree, as a rule the older one")
    add("b", type=Path, help="the second source tree")
    add("--job", nargs="+", choices=_JOBS, metavar="JOB", help=f"some of {', '.join(_JOBS)} (default: all)")
    add("--runs", type=int, default=3, help="runs of each job in each tree (default: 3)")
    add("--steps", type=int, default=30, help="optimizer steps of quickstart and course (default: 30)")
    add("--tokens", type=int, default=200, help="new tokens per sequence of generate (default: 200)")
    add("--text", type=Path, help="UTF-8 text to train on and to encode (default: stories of the embedded corpus)")
    add("--stories", type=int, default=10_000, help="number of those stories (default: 10,000)")
    add("--megabytes", type=float, default=30, help="size of the repeated text of the tokenizer jobs (default: 30)")
    add("--vocab-size", type=int, default=10_000, help="of the tokenizer jobs (default: 10,000)")
    add("--workers", type=int, default=1, help="processes of the tokenizer jobs (default: 1)")
    add("--shape", choices=paired_jobs.SHAPES, default="course", help="model size; tiny is for tests (default: course)")
    add("--seed", type=int, default=0, help="seed of weights, windows and stories (default: 0)")
    add("--workdir", type=Path, default=Path(".cache/benchmarks"), help="keeps inputs (default: .cache/benchmarks)")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
