"""The comparison of a model and a 5-gram model with the exact floor of the embedded corpus."""

import json
import math

import numpy as np
import pytest
import torch

from tslm.data.datamodule import TextDataModule
from tslm.data.toy import sample_stories
from tslm.training.entropy_floor import measure_floor
from tslm.training.module import LanguageModule
from tslm.training.summary import longer_run


@pytest.fixture
def toy(tmp_path):
    """The embedded corpus, prepared."""
    def data(num_stories, vocab_size):
        module = TextDataModule(corpus="toy", toy_stories=num_stories, vocab_size=vocab_size,
                                cache_dir=str(tmp_path), num_workers=1)
        module.load()
        return module
    return data


def uniform(vocab_size):
    """A model that gives every token the same probability: gains of zero make all logits zero."""
    module = LanguageModule(vocab_size, 256, 8, 1, 1, 8)
    torch.nn.init.zeros_(module.model.ln_final.weight)
    return module.model


def test_the_floor_compares_sums_over_whole_stories(toy):
    data, stories = toy(400, 1000), sample_stories(20, seed=99)
    report = measure_floor(uniform(1000), data.tokenizer, stories, np.array(data.train_tokens.ids))
    tokens = sum(len(data.tokenizer.encode(f"\n{story.text}\n<|endoftext|>")) for story in stories)
    assert report.tokens == tokens
    assert report.floor_nats == pytest.approx(-sum(story.log_prob for story in stories))
    assert report.model_nats == pytest.approx(tokens * math.log(1000), rel=1e-5)
    assert report.floor_gap == pytest.approx(report.model_nats / report.floor_nats - 1)
    assert 0.3 < report.ngram_gap < 5


def test_a_story_longer_than_the_context_cannot_be_compared(toy):
    data, small = toy(50, 300), LanguageModule(300, 16, 8, 1, 1, 8).model
    with pytest.raises(ValueError, match="context is 16"):
        measure_floor(small, data.tokenizer, sample_stories(2, 1), np.array(data.train_tokens.ids))


def test_a_run_on_the_embedded_corpus_reports_its_floor(project, cache_dir, capsys):
    from tslm.__main__ import main

    options = [
        "--data.toy_stories=400", "--data.vocab_size=1000", f"--data.cache_dir={cache_dir}", "--data.num_workers=1",
        "--model.d_model=16", "--model.num_layers=1", "--model.num_heads=2", "--model.d_ff=32", "--data.batch_size=2",
        "--trainer.max_steps=3", "--trainer.precision=32-true", "--generation.max_new_tokens=3",
    ]
    assert main(["fit", *options]) == 0
    summary = json.loads((project / "lightning_logs/version_0/summary.json").read_text())
    assert summary["floor_gap"] > summary["ngram_gap"] > 0.3  # three steps learn less than counting does
    out = capsys.readouterr().out
    for part in ("exact floor", "a longer run", "5-gram", "bits per byte", "python -m tslm generate", "tensorboard"):
        assert part in out


def test_the_summary_says_what_the_next_larger_budget_brings():
    def row(millions: float, speed: float) -> str:
        return "".join(text for _, text in longer_run({"tokens_seen": 1e6 * millions, "tokens_per_second": speed}))

    assert row(4.9, 31_000).endswith("1.6% above it after 8 million tokens: --trainer.max_minutes 5")
    assert row(1.6, 10_000).endswith("2.1% above it after 4 million tokens: --trainer.max_minutes 8")
    assert row(6, 31_000) == row(1, 0) == ""
