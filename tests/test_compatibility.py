"""A run and a token file written before the packages were rearranged load today and give the figures of that time.

tests/fixtures/old-run holds them; its README.md says how they were made.
"""

import contextlib
import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tslm import TokenFile, cross_entropy
from tslm.__main__ import main
from tslm.training.runs import load_model

OLD_RUN = Path(__file__).parent / "fixtures" / "old-run"


def command(name, run, *options):
    """Run a command on the old checkpoint and return what it prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main([name, f"--ckpt_path={run / 'last.ckpt'}", *options]) == 0
    return output.getvalue()


def on_its_text(run):
    """The options that replace the paths of the machine on which the run was trained.

    The code of that time held out the last documents.
    """
    text = (run / "stories.txt").read_bytes()
    cut = len(text) - TokenFile.open(run / "valid.bin").source_bytes
    (run / "train.txt").write_bytes(text[:cut])
    (run / "held-out.txt").write_bytes(text[cut:])
    return [f'--data.train_files=["{run / "train.txt"}"]', f'--data.valid_files=["{run / "held-out.txt"}"]',
            f"--data.cache_dir={run / 'cache'}"]


def bytes_of_documents(figures, name, run):
    """The figures with bits per byte of documents; the code of that time counted the separators too."""
    text = (run / "stories.txt").read_bytes()[-TokenFile.open(run / "valid.bin").source_bytes :]
    documents = text.replace(b"<|endoftext|>\n", b"")
    return figures | {name: figures[name] * (len(text) - 1) / (len(documents) - 1)}  # the first byte is no target


def first_ids(run):
    """The first 50 ids of the token file."""
    return TokenFile.open(run / "valid.bin").ids[:50].tolist()


def loss_of_first_window(run):
    """Cross-entropy of the checkpoint's model on the first window of the token file."""
    ids = torch.from_numpy(TokenFile.open(run / "valid.bin").ids[:33].astype(np.int64))
    with torch.no_grad():
        return cross_entropy(load_model(run / "last.ckpt").model(ids[None, :-1]), ids[None, 1:]).item()


def validation_figures(run):
    """What `validate` prints: name -> value, rounded to four decimals."""
    lines = [line.split() for line in command("validate", run, *on_its_text(run)).splitlines()]
    return {line[0]: float(line[1]) for line in lines if line and line[0].startswith("valid_")}


def continuation(run):
    """What `generate` prints at temperature 0."""
    return command("generate", run, "--prompt=Once upon a time", "--temperature=0", "--max_new_tokens=60")


def resumed_figures(run):
    """What two more steps, with the run directory in the working folder, write to metrics.csv and summary.json."""
    command("fit", run, *on_its_text(run), "--trainer.max_steps=302", "--trainer.log_every_n_steps=1",
            "--trainer.enable_progress_bar=false")
    (summary,) = Path("lightning_logs").glob("*/summary.json")
    with open(summary.with_name("metrics.csv"), newline="") as file:
        losses = {f"train_loss at step {row['step']}": float(row["train/loss"])
                  for row in csv.DictReader(file) if row["train/loss"]}
    names = ("steps", "tokens_seen", "valid_loss", "perplexity", "bits_per_byte")
    return losses | {name: value for name, value in json.loads(summary.read_text()).items() if name in names}


MEASUREMENTS = {
    "first ids": first_ids,
    "loss of the first window": loss_of_first_window,
    "validate": validation_figures,
    "generate": continuation,
    "two more steps": resumed_figures,
}


@pytest.fixture(scope="module")
def expected():
    """The figures of the code that wrote the run."""
    return json.loads((OLD_RUN / "figures.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def old_run(tmp_path_factory):
    """A copy of the run, because opening a token file notes its new modification time in the sidecar."""
    return Path(shutil.copytree(OLD_RUN, tmp_path_factory.mktemp("compatibility") / "old-run"))


def test_an_old_token_file_has_the_same_ids(expected, old_run):
    tokens = TokenFile.open(old_run / "valid.bin")
    assert first_ids(old_run) == expected["first ids"]
    assert (len(tokens), tokens.vocab_size, tokens.source_bytes) == (654, 300, 948)


def test_the_tokenizer_of_an_old_checkpoint_encodes_the_text_to_the_old_token_file(old_run):
    tokenizer = load_model(old_run / "last.ckpt").tokenizer
    tokens = TokenFile.open(old_run / "valid.bin")
    assert tokenizer.hash == tokens.tokenizer_hash
    held_out = (old_run / "stories.txt").read_bytes()[-tokens.source_bytes :]
    assert tokenizer.encode(held_out.decode()) == tokens.ids.tolist()


def test_an_old_checkpoint_has_the_same_loss(expected, old_run):
    assert loss_of_first_window(old_run) == pytest.approx(expected["loss of the first window"], rel=1e-5)


def test_an_old_checkpoint_validates_to_the_same_figures(expected, old_run, project):
    figures = bytes_of_documents(expected["validate"], "valid_bits_per_byte", old_run)
    assert validation_figures(old_run) == pytest.approx(figures, rel=1e-5, abs=1.1e-4)  # four decimals


def test_an_old_checkpoint_continues_a_prompt_with_the_same_text(expected, old_run):
    assert continuation(old_run) == expected["generate"]


def test_an_old_run_resumes_with_the_same_losses(expected, old_run, project):
    figures = bytes_of_documents(expected["two more steps"], "bits_per_byte", old_run)
    assert resumed_figures(old_run) == pytest.approx(figures, rel=1e-5)
