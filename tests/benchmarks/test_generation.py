"""`python -m tests.benchmarks.generation` with a small model."""

import json
import os
import subprocess
import sys

import pytest

from tests.benchmarks import generation
from tests.benchmarks.generation_forms import COURSE, FORMS, weight_bytes
from tests.benchmarks.test_benchmark_tokenizer import KEYS
from tests.conftest import ROOT
from tslm.model import TransformerConfig

SMALL = TransformerConfig(vocab_size=300, context_length=32, d_model=32, num_layers=1, num_heads=2, d_ff=48)


def test_every_figure_is_one_json_line(capsys):
    assert generation.main(["--batch", "1", "2", "--tokens", "4", "--runs", "1", "--markdown"], SMALL) == 0
    output, errors = capsys.readouterr()
    lines = output.splitlines()
    figures = [json.loads(line) for line in lines if line.startswith("{")]
    names = [f"batch_1_vs_{form.name}" for form in FORMS]
    names += ["batch_1_vs_best", "batch_1_of_memory", "batch_1_of_weights"]
    names += [f"batch_2_vs_{form.name}" for form in FORMS] + ["batch_2_vs_best", "batch_2_of_matmul"]
    assert [figure["name"] for figure in figures] == names
    for figure in figures:
        assert list(figure) == KEYS
        assert figure["ratio"] == figure["ours"] / figure["peer"] > 0
        assert figure["name"] in errors
    by_name = {figure["name"]: figure for figure in figures}
    assert by_name["batch_1_vs_best"]["target"] == "ratio >= 2.5"
    assert by_name["batch_2_vs_best"]["peer"] == max(by_name[f"batch_2_vs_{form.name}"]["peer"] for form in FORMS)
    assert lines[len(figures)].startswith("| figure |")


def test_a_step_reads_every_weight_except_the_embedding():
    matrices = 4 * (4 * 512 * 512 + 3 * 512 * 1344) + 512 * 10_000
    gains = (2 * 4 + 1) * 512
    assert weight_bytes(COURSE, 2) == 2 * (matrices + gains)


@pytest.mark.parametrize("arguments", [["--runs", "0"], ["--tokens", "249"], ["--batch", "1", "0"], ["--prompt", "0"]])
def test_a_wrong_option_is_one_sentence(arguments, capsys):
    assert generation.main(arguments) == 2
    assert "--tokens 1 to" in capsys.readouterr().err


def test_a_mode_holds_from_the_start_of_a_process():
    """torch reads its variables when it is imported."""
    source = ("import torch, sys\nfrom tests.benchmarks import generation\n"
              "generation._measure = lambda *rest: print(torch.get_num_threads())\n"
              "sys.exit(generation.main(['--mode', 'one_thread', '--runs', '0']))\n")
    for threads, out, said in (("2", "", "--runs, --prompt and --batch must be above 0"), ("1", "1\n", "")):
        done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": threads},
                              capture_output=True, text=True, timeout=100, check=False)
        assert done.stdout == out  # with two threads, another process has taken the place of this one
        assert said in done.stderr
