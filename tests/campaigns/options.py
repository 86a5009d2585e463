"""`python -m tests.campaigns.options`: command lines drawn at random from all options of all commands.

A third of them have one or two options with odd values, a third have two to four options with values of the right type,
and a third have both. Each runs in a forked child, with a tiny model and a tiny text in a fresh folder. It must end
with exit code 0, or with code 2 and one sentence, and without a traceback, a hang or a half-written file. One in twenty
gets Ctrl-C at a random instant; it may also end with code 130. The result is one JSON line per command on stdout; each
failing command line is printed on stderr. The exit code is 1 after a failure.
"""

from __future__ import annotations

import functools
import random
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.campaigns.campaign import Case, Family, full, run_campaign
from tests.campaigns.forked import run_command
from tests.campaigns.project import FIT, VOCABULARY, contents, fresh_project, private_environment

ODD = [
    "-1", "0", "1", "2", "3.5", "-0.0", "1e39", "1e-320", "inf", "nan", ".nan", ".inf", str(2**31), str(2**63),
    str(2**70), "", " ", "null", "true", "no", "[]", "[1]", "[1, 2]", "{}", "{a: 1, a: 2}", "[", "'", "auto", "x",
    "é字🙂", "\udcff", '"\\ud800"', '"\\0"', '["\\0"]', "a" * 5000, "/", ".", "/dev/null", "missing/file", "s.txt",
    "--x", "last", "best", "EarlyStopping", "lightning.pytorch.callbacks.Timer", "{class_path: os.system}",
    "0x10", "1_000", "*", "%s", "[" * 2000, "&a [*a]",
]
FITTING = ["-1", "0", "1", "2", "3", "7", "0.5", "1e-9", "1e30", "-0.5", "100000", "null", "true", "false", "auto", "x",
           "[]", '[""]', '["s.txt"]', "s.txt", "v", "c", "cpu", "gpu", "tpu", "ddp", "fsdp", "64-true", "16-mixed",
           "bf16-true", "simple", "value", "norm", "warn", "00:00:00:01", "[0.9, 0.999]", "TensorBoardLogger", "Timer"]
ONE_PROCESS = {name: ["-7", "0", "1", "x", "1.5", "null", "[]", "[0]"]  # more would start copies of the campaign
               for name in ("--trainer.devices", "--trainer.num_nodes")}
HOURS = {"1_000", "100000", str(2**31), str(2**63), "null", "auto"}  # a command would work for hours with these
LONG = {"max_steps", "max_tokens", "toy_stories", "vocab_size", "context_length", "d_model", "num_layers", "d_ff",
        "max_new_tokens", "num_stories", "num_workers", "batch_size", "devices", "num_nodes", "num_heads"}
# Good values of options whose type says too little.
GOOD = {
    "--config": ["v.yaml"], "--ckpt_path": ["last", "best", "lightning_logs/version_0"],
    "--trainer.compile": ["false", "auto"], "--trainer.accelerator": ["cpu", "auto"],
    "--trainer.strategy": ["auto", "ddp"], "--trainer.devices": ["1", "auto"],
    "--trainer.num_nodes": ["1"], "--trainer.max_time": ["00:00:10:00"], "--trainer.logger": [
        "true", "false", "TensorBoardLogger", "CSVLogger", "[TensorBoardLogger, CSVLogger]",
        "{class_path: CSVLogger, init_args: {save_dir: logs}}", "lightning.pytorch.loggers.CSVLogger"],
    "--trainer.callbacks": ["Timer", "[LearningRateMonitor]", "lightning.pytorch.callbacks.Timer",
                            "{class_path: EarlyStopping, init_args: {monitor: valid_loss}}"],
    "--trainer.profiler": ["simple", "advanced", "SimpleProfiler"], "--trainer.plugins": ["null", "[]"],
    "--trainer.model_registry": ["null"], "--trainer.default_root_dir": [".", "runs"],
    "--trainer.gradient_clip_algorithm": ["norm", "value"], "--checkpoint.dirpath": ["elsewhere"],
    "--data.train_files": ['["s.txt"]', '["s.txt", "s.txt"]', '["s.jsonl.gz"]', '["many", "s.txt.zst"]'],
    "--data.valid_files": ['["s.txt"]'],
    "--data.prompts_file": ["s.txt"], "--data.tokenizer": ["v"], "--data.cache_dir": ["c", "other"],
    "--data.special_tokens": ['["<|endoftext|>"]', '["<|endoftext|>", "The"]'], "--to": ["version_0"],
    "--input": ["s.txt", "s.txt.gz", "s.jsonl", "s.parquet", "s.txt.xz", "many", "s*.jsonl"], "--plot": ["x.png"],
    "--dir": [".", "lightning_logs", "lightning_logs/version_0"], "--sort": ["name", "tokens"],
    "--special_tokens": ['["<|endoftext|>"]', "[]"], "--tokenizer": ["v"], "--output": ["t", "ids2"],
    "--function": ["rms_norm"], "--text": ["é字"], "--word": ["Once"], "--prompt": ["Once upon"],
}
OF_TYPE = {"int": ["1", "2", "4", "300"], "float": ["0.5", "0.9", "1e-3", "1"], "bool": ["true", "false"],
           "str": ["x", "Once"], "null": ["null"], "Optional": ["null"]}
MEASURING = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--data.cache_dir=c"]
START = {
    "fit": [*FIT, "--data.toy_stories=30"],
    "validate": ["validate", *MEASURING],
    "test": ["test", *MEASURING],
    "predict": ["predict", *MEASURING, "--generation.max_new_tokens=2"],
    "generate": ["generate", "--max_new_tokens=2"],
    "score": ["score", "--input=s.txt"],
    "compare": ["compare", "version_0", "lightning_logs/version_0"],
    "runs": ["runs"],
    "train-tokenizer": ["train-tokenizer", "--output=t", *VOCABULARY],
    "tokenize": ["tokenize", "--tokenizer=v", "--input=s.txt", "--output=ids", "--num_workers=1"],
    "study unicode": ["study", "unicode"],
    "study tokenizer": ["study", "tokenizer", "--num_stories=20", "--vocab_size=270", "--num_workers=1"],
}
COUNTS = {"fit": 500, "validate": 200, "test": 100, "predict": 250, "generate": 300, "train-tokenizer": 250,
          "score": 200, "compare": 100, "runs": 100,
          "tokenize": 250, "study unicode": 50, "study tokenizer": 100}  # 2,400
SKIPPED = {"--help", "--print_config", "--trainer.fast_dev_run"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign and return the exit code."""
    description = "Draw command lines from all options of all commands: each works or says one sentence."
    return run_campaign("tests.campaigns.options", [family(command) for command in START], description, arguments)


def family(command: str) -> Family:
    """Return the family of a command."""

    def check(case: Case) -> None:
        with private_environment(case.folder):
            words = draw(case.rng, command)
            interrupt = case.rng.choice([0.01, 0.1, 1.0]) * case.rng.random() if case.rng.random() < 0.05 else None
            case.note(command=shlex.join(words), interrupt=interrupt)
            project = fresh_project(case.folder)
            before = contents(project)
            outcome = run_command(words, project, interrupt_after=interrupt)
            found = problem(outcome.code, outcome.text, before, contents(project), interrupted=interrupt is not None)
            assert not found, found

    check.__name__ = command.replace(" ", "_").replace("-", "_")
    return full(COUNTS[command])(check)


@functools.cache
def options_of(command: str) -> dict[str, str]:
    """Read all options of a command, with their types, from its help."""
    words = START[command][: 2 if command.startswith("study") else 1]
    outcome = run_command([*words, "--help", *(["all"] if command == "fit" else [])], Path.cwd())
    found: dict[str, str] = {}
    for part in re.split(r"\n +(?=-)", outcome.text)[1:]:
        name = re.match(r"(?:-\w \S+, )?(--[\w.-]+)", part)
        kind = re.search(r"\((?:required, )?type: (.*?)(?:, default: .*)?\)", " ".join(part.split()))
        if name and name[1] not in SKIPPED and not name[1].endswith("+"):
            found[name[1]] = kind[1] if kind else ""
    return found


def draw(rng: random.Random, command: str) -> list[str]:
    """Draw a command line: options with odd values, with values of the right type, or both; sometimes misspelled."""
    words, known = list(START[command]), options_of(command)
    odd, good = rng.choice([(rng.choice([1, 1, 1, 2]), 0), (0, rng.randint(2, 4)), (1, rng.randint(1, 2))])
    values: list[Callable[[str], str]] = [lambda name: odd_value(rng, name)] * odd
    values += [lambda name: good_value(rng, name, known[name])] * good
    for value in rng.sample(values, len(values)):
        name = rng.choice(sorted(known))
        word = value(name)
        if name.rpartition(".")[2].lstrip("-") in LONG and word in HOURS and name not in ONE_PROCESS:
            word = "3"
        name = name[:-1] if rng.random() < 0.03 else name
        words += rng.choice([[f"{name}={word}"], [name, word]])
    return words


def odd_value(rng: random.Random, name: str) -> str:
    """Draw a value without regard to the type."""
    return rng.choice(ONE_PROCESS.get(name) or rng.choice([ODD, FITTING, FITTING]))


def good_value(rng: random.Random, name: str, kind: str) -> str:
    """Draw a value of the type that the help states."""
    if name in GOOD:
        return rng.choice(GOOD[name])
    choices = re.findall(r"'([^']*)'", kind) or ["true", "false"] * ("bool" in kind)
    if kind.startswith(("list", "tuple")):
        inner = next((OF_TYPE[each] for each in ("int", "float", "str") if each in kind), ["x"])
        return f"[{rng.choice(inner)}, {rng.choice(inner)}]"
    choices += [value for each, values in OF_TYPE.items() if re.search(rf"\b{each}\b", kind) for value in values]
    return rng.choice(choices or FITTING)


def problem(code: int, text: str, before: set[str], after: set[str], *, interrupted: bool = False) -> str | None:
    """Return what is wrong with an outcome, or None."""
    if code not in (0, 2, *[130] * interrupted) or "Traceback" in text or "Error:" in text:
        return f"exit code {code}: {text[-2000:]!a}"
    sentences = [line for line in text.splitlines() if line.rpartition("\r")[2].startswith("tslm: ")]
    if code == 2 and (len(sentences) != 1 or len(sentences[0]) > 700):
        return f"not one sentence: {text[-2000:]!a}"
    new = after - before
    half = {name for name in new if name.endswith((".tmp", ".new"))}
    if half or (code == 2 and any(name.endswith((".ckpt", "ids", "t/vocab.json")) for name in new)):
        return f"files are left: {sorted(half or new)}"
    if code == 0 and "No checkpoint was saved" in text:
        return f"a training without a checkpoint: {text[-2000:]!a}"
    return None


if __name__ == "__main__":
    sys.exit(main())
