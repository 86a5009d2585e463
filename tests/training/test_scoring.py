import copy
import json
import math
import shutil

import numpy as np
import pytest
import torch

import tslm
from tests.test_cli import runs  # noqa: F401 (a fixture)
from tslm.__main__ import main
from tslm.errors import UserError
from tslm.export.harness import HarnessModel
from tslm.tokenizer.corpus import Corpus
from tslm.training.runs import LoadedModel
from tslm.training.score_report import score_rows
from tslm.training.scoring import score_texts, token_log_probs

END = "<|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer():
    vocab = {**{n: bytes([n]) for n in range(256)}, 256: b"th", 257: b"the"}
    return tslm.Tokenizer(vocab, [(b"t", b"h"), (b"th", b"e")], [END])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    config = tslm.TransformerConfig(vocab_size=259, context_length=16, d_model=16, num_layers=2, num_heads=2, d_ff=24)
    model = tslm.TransformerLM(config)
    with torch.no_grad():
        model.lm_head.weight *= 30
    return model.eval()


def slow_log_probs(model, ids, context):
    """The log-probability of each token but the first, each from a forward pass of its own."""
    half = (context + 1) // 2
    found = []
    for target in range(1, len(ids)):
        # The window that predicts this target first: it starts at the smallest multiple of half that reaches it.
        start = 0 if target <= context else -(-(target - context) // half) * half
        logits = model(torch.tensor([ids[start:target]]))[0, -1].double()
        found.append(float(logits[ids[target]] - torch.logsumexp(logits, 0)))
    return found


@pytest.mark.parametrize("size", [1, 2, 16, 17, 18, 24, 25, 50, 101])
def test_each_token_has_its_log_probability_given_what_precedes_it(model, size):
    ids = np.random.default_rng(size).integers(0, 259, size)
    with torch.no_grad():
        expected = slow_log_probs(model, ids.tolist(), 16)
    (found,) = token_log_probs(model, [ids])
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_losses_that_are_not_finite_are_refused(model, tokenizer):
    broken = copy.deepcopy(model)
    broken.lm_head.weight.data[:] = 3e38  # finite, but the products are not
    broken.ln_final.weight.data[:] = 1e3
    with pytest.raises(UserError, match="the model's losses are not finite"):
        token_log_probs(broken, [np.arange(9)])


def test_texts_are_scored_alone_whatever_shares_their_batch(model, tokenizer, monkeypatch):
    texts = ["", "t", "the end", "the cat and the " * 9, "é字", f"a{END}b"]
    alone = [tslm.score(model, tokenizer, text) for text in texts]
    for logits in (1, 1 << 14, 1 << 24):
        monkeypatch.setattr("tslm.training.scoring._LOGITS", logits)
        for one, other in zip(alone, score_texts(model, tokenizer, texts), strict=True):
            assert one.ids == other.ids
            assert one.log_probs == pytest.approx(other.log_probs, abs=2e-4)
    for text, scores in zip(texts, alone, strict=True):
        assert scores.ids == tokenizer.encode(text, allow_special=False)
        assert scores.num_bytes == len(text.encode())
        if text:
            assert scores.total == pytest.approx(sum(scores.log_probs))
            assert scores.bits_per_byte == pytest.approx(-scores.total / math.log(2) / len(text.encode()))
            assert scores.perplexity == pytest.approx(math.exp(-scores.total / len(scores.ids)))


def test_a_text_is_scored_after_what_stood_in_front_of_documents(model, tokenizer):
    ids = tokenizer.encode("the end")
    for prefix in ([258], [258, 10], [97, 98, 99]):
        (expected,) = token_log_probs(model, [np.array([*prefix, *ids])])
        found = tslm.score(model, tokenizer, "the end", prefix=prefix)
        assert found.log_probs == pytest.approx(expected[len(prefix) - 1 :].tolist(), abs=2e-4)
    without = tslm.score(model, tokenizer, "the end", prefix=[])
    assert (without.ids, without.num_bytes) == (ids[1:], 4)  # nothing predicts the first token


def test_a_run_is_an_object(runs, monkeypatch):  # noqa: F811
    monkeypatch.chdir(runs)
    found = [tslm.load_run(path) for path in ("best", "last", "lightning_logs/version_0",
                                              "lightning_logs/version_0/checkpoints/step-00000004.ckpt")]
    for run in found:
        assert run.step in (2, 4)
        assert run.config["model.d_model"] == run.model.config.d_model == 16
        assert run.summary == json.loads((runs / "lightning_logs/version_0/summary.json").read_text())
        assert run.tokenizer.decode(run.prefix) == f"{END}\n"
        assert tslm.complete(run.model, run.tokenizer, ["the"], 3, prefix=run.prefix)[0].tokens <= 3
    assert found[1].step == found[3].step == 4


def test_a_damaged_checkpoint_is_not_replaced_without_a_warning(runs, tmp_path):  # noqa: F811
    shutil.copytree(runs / "lightning_logs/version_0", tmp_path / "run")
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    best.unlink()
    best.write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"best\.ckpt is damaged or cannot be read, and is skipped"):
        assert tslm.load_run(tmp_path / "run").step == 4


def rows(capsys, *options):
    capsys.readouterr()
    assert main(["score", *options]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_command_scores_tokens_lines_and_files(runs, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(runs)
    run = tslm.load_run("best")
    texts = ["One day\nthere was a cat.\n\nThe end.\n", "Another story"]
    (tmp_path / "a.txt").write_text(f"{END}\n".join(texts))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    expected = [tslm.score(run.model, run.tokenizer, text, prefix=run.prefix) for text in texts]
    total = sum(scores.total for scores in expected)
    size = sum(len(text.encode()) for text in texts)
    for name in ("a.txt", "b.jsonl"):
        path = str(tmp_path / name)
        (whole,) = rows(capsys, "--input", path)
        assert whole["log_prob"] == pytest.approx(total, abs=1e-3)
        assert (whole["file"], whole["bytes"]) == (path, size)
        assert whole["bits_per_byte"] == pytest.approx(-total / math.log(2) / size, abs=1e-4)
        tokens = rows(capsys, "--input", path, "--per", "token")
        assert [row["id"] for row in tokens] == [id_ for scores in expected for id_ in scores.ids]
        assert sum(row["log_prob"] for row in tokens) == pytest.approx(total, abs=1e-3)
    lines = rows(capsys, "--input", str(tmp_path / "a.txt"), "--per", "line")
    assert (lines[0]["document"], lines[0]["line"]) == (1, 1)
    assert {row["document"] for row in lines} == {1, 2}
    assert sum(row["bytes"] for row in lines) == size
    assert sum(row["log_prob"] for row in lines) == pytest.approx(total, abs=1e-3)
    records = rows(capsys, "--input", str(tmp_path / "b.jsonl"), "--per", "line")
    assert [row["log_prob"] for row in records] == pytest.approx([scores.total for scores in expected], abs=1e-3)
    assert main(["score", "--input", str(tmp_path / "a.txt"), "--output", str(tmp_path / "out.jsonl")]) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text()) == rows(capsys, "--input", str(tmp_path / "a.txt"))[0]


def test_special_tokens_are_scored_as_they_were_trained_and_each_file_alone(model, tmp_path):
    tokenizer = tslm.Tokenizer({n: bytes([n]) for n in range(256)}, [], [END, "<u>"])
    loaded = LoadedModel(model, tokenizer, tmp_path, 1, [256])
    (tmp_path / "a.txt").write_text(f"<u>Hi{END}\n<u>")
    (tmp_path / "b.jsonl").write_text('{"text": "<u>Hi"}\n{"text": "<u>"}\n')
    corpora = {(name, allow): Corpus(tmp_path / name, allow_special=allow)
               for name in ("a.txt", "b.jsonl") for allow in (False, True)}
    ids = {key: [row["id"] for row in score_rows(corpus, "token", loaded)] for key, corpus in corpora.items()}
    assert ids["a.txt", False] == ids["a.txt", True] == ids["b.jsonl", True] == [257, *b"Hi", 257]
    assert ids["b.jsonl", False] == [*b"<u>Hi<u>"]
    corpus = Corpus(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("another text" * 9)
    with pytest.raises(UserError, match=r"a\.txt was changed or replaced while it was read"):
        next(score_rows(corpus, "file", loaded))
    (tmp_path / "a.txt").write_text(f"<u>Hi{END}\n<u>")
    twice = list(score_rows(Corpus([tmp_path / "a.txt"] * 2), "file", loaded))
    assert [row["tokens"] for row in twice] == [4, 4]


def test_mistakes_in_scoring_are_sentences(runs, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(runs)
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"good\n\xff")
    for options, sentence in [
        (["--input", str(bad)], "bad.txt is not UTF-8: byte 0xff at offset 5"),
        (["--input", "nowhere.txt"], "nowhere.txt does not exist"),
        (["--input", str(bad), "--per", "word"], "per"),
        (["--input", str(bad), "--join_files", "true"], "unknown option --join_files"),
        (["--input", str(bad), "--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
        (["--input", str(bad), "--output", str(bad)], "is also an input"),
    ]:
        assert main(["score", *options]) == 2
        err = capsys.readouterr().err
        assert "Traceback" not in err
        assert sentence in err


class Instance:
    """A request of the harness."""

    def __init__(self, *args):
        self.args = args


def test_the_three_calls_of_the_harness(runs, monkeypatch):  # noqa: F811
    monkeypatch.chdir(runs)
    model, run = HarnessModel("best", max_new_tokens=6), tslm.load_run("best")
    pairs = [("One day", " there was"), ("", "The end"), ("One ", "day"), ("The", "")]
    found = model.loglikelihood([Instance(*pair) for pair in pairs])
    for (context, continuation), (log_prob, _) in zip(pairs, found, strict=True):
        whole = tslm.score(run.model, run.tokenizer, context + continuation, prefix=run.prefix)
        front = len(run.tokenizer.encode(context.rstrip()))
        assert log_prob == pytest.approx(sum(whole.log_probs[front:]), abs=1e-3)
    text = "Once upon a time"
    (rolling,) = model.loglikelihood_rolling([Instance(text)])
    assert rolling == pytest.approx(tslm.score(run.model, run.tokenizer, text, prefix=run.prefix).total, abs=1e-3)
    (greedy,) = model.generate_until([Instance(text, {"until": []})])
    expected = tslm.complete(run.model, run.tokenizer, [text], 6, temperature=0.0, prefix=run.prefix)[0].text
    assert greedy == expected
    if "\ufffd" not in greedy and run.tokenizer.encode(text + greedy)[: len(run.tokenizer.encode(text))] == (
        run.tokenizer.encode(text)
    ):
        assert model.loglikelihood([Instance(text, greedy)])[0][1]
    assert not model.loglikelihood([Instance(text, "字")])[0][1]
    letter = next((each for each in expected if each.strip()), None)
    if letter is not None:
        (cut,) = model.generate_until([Instance(text, {"until": [letter], "max_gen_toks": 6, "do_sample": False})])
        assert cut == expected.split(letter)[0]


@pytest.mark.parametrize(("arguments", "sentence"), [
    ({"model": "best"}, "model is a str, but it must be a TransformerLM"),
    ({"tokenizer": "best"}, "tokenizer is a str, but it must be a Tokenizer"),
    ({"text": ["a"]}, "text is a list, but it must be a text"),
    ({"num_alternatives": -1}, "num_alternatives is -1; it must be a whole number of at least 0"),
    ({"prefix": [-1]}, r"prefix is \[-1\], but it must be a list of token ids"),
    ({"prefix": "ab"}, "prefix is ab, but it must be a list of token ids"),
])
def test_wrong_arguments_of_score_are_sentences(model, tokenizer, arguments, sentence):
    with pytest.raises(UserError, match=f"^{sentence}"):
        tslm.score(**({"model": model, "tokenizer": tokenizer, "text": "a"} | arguments))
