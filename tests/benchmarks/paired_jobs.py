"""The jobs that `paired` runs in two source trees. Each job runs in a process of its own and prints one JSON object.

    python -P tests/benchmarks/paired_jobs.py TREE JOB OPTIONS      (OPTIONS is a JSON object)

`tslm` comes from the tree that PYTHONPATH names. So this file imports nothing of the project but what is public in
every version: `tslm` itself, the commands, and `tslm.data.toy.write_corpus`. Every result is a rate: larger is better.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

END_OF_TEXT = "<|endoftext|>"
# The course's model, 22.7M parameters, and a model for trying the benchmark itself.
SHAPES = {
    "course": {"vocab_size": 10_000, "context_length": 256, "d_model": 512, "num_layers": 4, "num_heads": 16,
               "d_ff": 1344},
    "tiny": {"vocab_size": 300, "context_length": 32, "d_model": 32, "num_layers": 1, "num_heads": 2, "d_ff": 32},
}
_DATA_OPTIONS = ("vocab_size", "context_length")  # of `--data.`; the others belong to `--model.`
_REPORT_STEPS = 5  # between two reports of a training


def write_text(path: str, stories: int, seed: int) -> dict[str, float]:
    """Write stories of the embedded corpus."""
    from tslm.data.toy import write_corpus

    write_corpus(Path(path), stories, seed)
    return {}


def quickstart(tree: str, text: str, cache: str, steps: int, shape: str, seed: int) -> dict[str, float]:
    """Train the model of the tree's own configs/quickstart.yaml, or a tiny one, with `tslm fit`."""
    sizes = [] if shape == "course" else _size_options(shape)
    return _fit([f"--config={tree}/configs/quickstart.yaml", *sizes], text, cache, steps, seed)


def course(tree: str, text: str, cache: str, steps: int, shape: str, seed: int) -> dict[str, float]:
    """Train the course's model with `tslm fit`, 16 windows in a step."""
    return _fit([*_size_options(shape), "--data.batch_size=16"], text, cache, steps, seed)


def _size_options(shape: str) -> list[str]:
    return [f"--{'data' if name in _DATA_OPTIONS else 'model'}.{name}={value}" for name, value in SHAPES[shape].items()]


def _fit(options: list[str], text: str, cache: str, steps: int, seed: int) -> dict[str, float]:
    """Return the tokens per second of a run, and those of its reports without the first.

    The first report includes what happens once, such as the comparison of a substitute with the function it replaces.

    Raises:
        ChildProcessError: the run failed; the sentence ends with its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-P", "-m", "tslm", "fit", *options, "--data.corpus=files",
            f"--data.train_files={json.dumps([text])}", f"--data.cache_dir={cache}", f"--trainer.max_steps={steps}",
            "--trainer.accelerator=cpu", f"--trainer.log_every_n_steps={_REPORT_STEPS}",
            "--trainer.limit_val_batches=1", f"--trainer.default_root_dir={folder}", f"--seed_everything={seed}",
            "--trainer.enable_progress_bar=false",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            last_line = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ChildProcessError(f"`tslm fit` failed: {last_line}")
        run = Path(folder) / "lightning_logs" / "version_0"
        rate = json.loads((run / "summary.json").read_text(encoding="utf-8"))["tokens_per_second"]
        with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
            cells = [row.get("train/tokens_per_second") for row in csv.DictReader(file)]
    reports = [float(cell) for cell in cells if cell]
    return {"tokens/s": rate, "tokens/s after the first report": median(reports[1:] or reports)}


def tokenizer_train(text: str, vocab_size: int, workers: int) -> dict[str, float]:
    """Train a vocabulary with `tslm.train_bpe`."""
    import tslm

    seconds = _seconds(lambda: tslm.train_bpe(text, vocab_size, [END_OF_TEXT], num_workers=workers))
    return {"MB/s": os.path.getsize(text) / 1e6 / seconds}


def save_tokenizer(text: str, folder: str, vocab_size: int) -> dict[str, float]:
    """Write the vocabulary with which both trees encode."""
    import tslm

    vocab, merges = tslm.train_bpe(text, vocab_size, [END_OF_TEXT])
    tslm.Tokenizer(vocab, merges, [END_OF_TEXT]).save(folder)
    return {}


def tokenizer_encode(text: str, folder: str, workers: int) -> dict[str, float]:
    """Encode a file with `tslm.encode_files`."""
    import tslm

    tokenizer = tslm.Tokenizer.from_files(
        os.path.join(folder, "vocab.json"), os.path.join(folder, "merges.txt"), [END_OF_TEXT]
    )
    with tempfile.TemporaryDirectory() as scratch:
        output = os.path.join(scratch, "ids.bin")
        seconds = _seconds(lambda: tslm.encode_files(tokenizer, text, output, num_workers=workers))
    return {"MB/s": os.path.getsize(text) / 1e6 / seconds}


def generate(shape: str, tokens: int, seed: int) -> dict[str, float]:
    """Generate with `tslm.generate`, one sequence and 32, from random weights and prompts of 8 tokens."""
    import torch

    import tslm

    torch.manual_seed(seed)
    config = tslm.TransformerConfig(**SHAPES[shape])
    model = tslm.TransformerLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    rates = {}
    for batch in (1, 32):
        prompts = torch.randint(config.vocab_size, (batch, 8), generator=generator).tolist()

        def write(count: int, prompts: list[list[int]] = prompts) -> None:
            tslm.generate(model, prompts, count, top_p=0.9, generator=generator)

        write(2)  # compiles and checks what is compiled and checked once
        rates[f"tokens/s, batch {batch}"] = batch * tokens / _seconds(lambda: write(tokens))
    return rates


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


JOBS = {job.__name__.replace("_", "-"): job for job in (
    write_text, save_tokenizer, quickstart, course, tokenizer_train, tokenizer_encode, generate)}


def main() -> None:
    """Run the job that the command line names, after a check that `tslm` is the one of the tree."""
    tree, job, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    import tslm

    found = Path(tslm.__file__).resolve()
    if not found.is_relative_to(Path(tree).resolve()):
        raise ImportError(f"tslm was imported from {found.parent}, not from {tree}")
    output = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not mix with the result
    result = JOBS[job](**options)
    with os.fdopen(output, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
