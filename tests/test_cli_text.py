"""What people bring as text: folders, archives, records, several files; through the command line."""

import gzip
import json

import numpy as np
import pytest
import torch

import tslm.generation.text
from tests.conftest import ROOT
from tests.test_cli import complaint
from tslm.__main__ import main
from tslm.tokenizer import TokenFile, Tokenizer
from tslm.training.runs import load_model

TEXT = str(ROOT / "configs" / "text.yaml")
STORIES = [f"Story {n}: once there was a cat who had {n % 7} hats. The end." for n in range(600)]


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    """Train a tiny model in a fresh folder; return the exit code and what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(*options, command="fit"):
        tiny = [
            "--data.vocab_size=300", "--data.context_length=16", "--data.num_workers=1", "--model.d_model=16",
            "--model.num_layers=1", "--model.num_heads=2", "--model.d_ff=32", "--trainer.max_steps=1",
            "--data.batch_size=2", "--trainer.precision=32-true", "--trainer.accelerator=cpu",
            "--generation.max_new_tokens=2", "--trainer.val_every_n_steps=0", "--trainer.limit_val_batches=1",
        ]  # fmt: skip
        code = main([command, *(["--config", TEXT, *tiny] if command == "fit" else []), *options])
        return code, capsys.readouterr().out

    return run


def prepared(tmp_path):
    """The tokenizer and the ids of all token files in the cache, the longest first."""
    files = sorted((tmp_path / ".cache/tslm/tokens").glob("*.bin"), key=lambda path: -path.stat().st_size)
    (folder,) = (tmp_path / ".cache/tslm/tokenizers").iterdir()
    return Tokenizer.from_dir(folder), [TokenFile.open(path).ids for path in files]


def write_records(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def test_a_folder_of_small_files_holds_out_whole_files(fit, tmp_path):
    (tmp_path / "many").mkdir()
    for number in range(200):
        (tmp_path / "many" / f"{number:03}.txt").write_text(STORIES[number] * 2)
    code, out = fit("--data.train_files", '["many"]')
    assert code == 0, out
    tokenizer, (train, valid) = prepared(tmp_path)
    texts = [tokenizer.decode(ids).split("<|endoftext|>") for ids in (train, valid)]
    assert sorted(texts[0] + texts[1]) == sorted([story * 2 for story in STORIES[:200]] + ["", ""])
    assert 9 <= len(texts[1]) <= 14
    assert fit("--data.train_files", '["many/*.txt"]')[0] == 0
    assert len(list((tmp_path / ".cache/tslm/tokens").glob("*.bin"))) == 2  # the same data


@pytest.mark.parametrize("separator", ["<eos>", "<|endoftext|>"])
def test_records_are_separated_by_the_first_special_token(fit, tmp_path, separator):
    write_records(tmp_path / "a.jsonl", [*STORIES, f"a record that mentions {separator} in its text"])
    special = json.dumps([separator, "<other>"])
    options = "--data.special_tokens", special, "--data.align_documents=true"
    code, out = fit("--data.train_files", '["a.jsonl"]', *options)
    assert code == 0, out
    tokenizer, ids = prepared(tmp_path)
    assert sum(int(np.sum(each == tokenizer.separator)) for each in ids) == 601


def test_compressed_records_with_another_field_train_as_they_are(fit, tmp_path):
    lines = "".join(json.dumps({"content": story}) + "\n" for story in STORIES)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    arguments = "--data.train_files", '["a.jsonl.gz"]', "--data.text_field", "content"
    code, out = fit(*arguments)
    assert code == 0, out
    tokenizer, ids = prepared(tmp_path)
    texts = [text for each in ids for text in tokenizer.decode(each).split("<|endoftext|>") if text]
    assert sorted(texts) == sorted(STORIES)
    (copy,) = (tmp_path / ".cache/tslm/unpacked").rglob("*.jsonl")
    copy.write_bytes(copy.read_bytes().replace(b"cat", b"dog"))
    code, out = fit(*arguments)
    assert code == 0, out
    assert "a.jsonl.gz is unpacked again" in out
    assert b"dog" not in copy.read_bytes()


def test_text_that_is_not_utf8_is_refused_or_replaced(fit, tmp_path):
    (tmp_path / "a.txt").write_bytes("<|endoftext|>\n".join(STORIES).encode() + b" caf\xe9")
    assert fit("--data.train_files", '["a.txt"]')[0] == 2
    code, out = fit("--data.train_files", '["a.txt"]', "--data.errors", "replace")
    assert code == 0, out
    assert "a.txt: 1 bytes or characters that are not UTF-8 were replaced by U+FFFD." in out


def test_copies_are_noticed(fit, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("<|endoftext|>\n".join(STORIES))
    code, out = fit("--data.train_files", '["a.txt", "b.txt"]', "--data.valid_files", '["a.txt"]')
    assert code == 0, out
    assert "b.txt, with the content of a.txt, is twice in the training text: 600 documents." in out
    assert "a.txt is in the training and the validation text: 600 documents." in out


def test_another_text_is_validated_with_a_model_of_the_embedded_corpus(fit, tmp_path):
    code, out = fit("--data.corpus=toy", "--data.toy_stories=50", "--data.special_tokens", '["<|endoftext|>"]')
    assert code == 0, out
    (tmp_path / "other.txt").write_text("<|endoftext|>\n".join(STORIES[:50]))
    code, out = fit("--data.valid_files", '["other.txt"]', command="validate")
    assert code == 0, out
    assert "\ntext                    other.txt: " in out
    assert out.splitlines()[-4].endswith(" tokens, all of it")
    code, out = fit("--trainer.limit_val_batches=2", command="validate")
    assert "text                    held-out stories of the embedded corpus: " in out
    assert "tokens, the first 2 of its " in out


@pytest.mark.parametrize("special", [["<eos>"], []])
def test_the_special_tokens_of_an_existing_tokenizer_divide_the_text(fit, tmp_path, capsys, special):
    (tmp_path / "a.txt").write_text((special or ["<|endoftext|>"])[0].join(STORIES))
    assert main(["train-tokenizer", "--input", "a.txt", "--vocab_size=300", "--output=own", "--num_workers=1",
                 "--special_tokens", json.dumps(special)]) == 0  # fmt: skip
    options = "--data.train_files", '["a.txt"]', "--data.tokenizer=own"
    code, out = fit(*options, *["--data.align_documents=true"] * bool(special))
    assert code == 0, out
    assert ("is a single document" in out) == (not special)
    assert main(["generate", "--prompt=Story", "--max_new_tokens=1"]) == 0
    assert main(["compare", "version_0", "version_0"]) == 0
    assert (": 1 documents" in capsys.readouterr().out) == (not special)
    assert fit("--data.tokenizer=own", "--data.corpus=toy", "--data.toy_stories=20")[0] == (2 if special else 0)
    for more, sentence in [
        (["--data.special_tokens", '["<x>"]'], f"special_tokens is ['<x>'], but the tokenizer has {special}: leave"),
        (["--data.align_documents=true", "--data.special_tokens", '["<|endoftext|>"]'], "has no special token"),
    ][: 2 - bool(special)]:
        assert main(["fit", "--config", TEXT, *options, *more]) == 2
        assert sentence in complaint(capsys)


def test_a_list_without_files_is_refused(capsys):
    for name in ("train_files", "valid_files"):
        assert main(["fit", "--config", TEXT, f"--data.{name}=[]"]) == 2
        assert f"data.{name} is an empty list: give at least one file" in complaint(capsys)


def test_a_held_out_text_that_has_changed_is_noticed(fit, tmp_path):
    (tmp_path / "a.txt").write_text("<|endoftext|>\n".join(STORIES))
    assert fit("--data.train_files", '["a.txt"]')[0] == 0
    notice = "Changed: the held-out text is not that of lightning_logs/version_0/checkpoints/best.ckpt"
    code, out = fit(command="validate")
    assert (code, notice in out) == (0, False)
    (tmp_path / "a.txt").write_text("<|endoftext|>\n".join(STORIES * 2))
    code, out = fit(command="validate")
    assert (code, notice in out) == (0, True)
    code, out = fit("--data.valid_files", '["a.txt"]', command="validate")
    assert (code, notice in out) == (0, False)


def test_the_embedded_corpus_has_its_own_separator(capsys):
    assert main(["fit", "--config", TEXT, "--data.corpus=toy", "--data.special_tokens", '["<eos>"]']) == 2
    assert "data.corpus 'toy' separates its stories by <|endoftext|>" in complaint(capsys)


@pytest.mark.parametrize(
    ("name", "text", "front"),
    [
        ("a.jsonl", "".join(json.dumps({"text": story}) + "\n" for story in STORIES), "<|endoftext|>"),
        ("a.txt", "<|endoftext|>\r\n".join(STORIES), "<|endoftext|>\r\n"),
        ("b.txt", "<|endoftext|>\n".join(STORIES), "<|endoftext|>\n"),
        ("c.txt", "\n".join(STORIES), ""),
    ],
)
def test_a_model_is_asked_as_it_was_trained(fit, tmp_path, monkeypatch, capsys, name, text, front):
    (tmp_path / name).write_text(text, newline="")
    code, out = fit("--data.train_files", json.dumps([name]), "--data.context_length=32")
    assert code == 0, out
    asked = []

    def remembered(model, prompt_ids, *arguments, **options):
        asked.append(prompt_ids)
        return stream(model, prompt_ids, *arguments, **options)

    stream = tslm.generation.text.stream
    monkeypatch.setattr("tslm.generation.text.stream", remembered)
    tokenizer, _ = prepared(tmp_path)
    for words, expected in [
        (["--prompt", "Story"], front + "Story"),
        (["--prompt", "a<|endoftext|>b"], front + "a<|endoftext|>b"),
        (["--prompt", "a<|endoftext|>b", "--allow_special", "true"], front + "a<|endoftext|>b"),
    ]:
        assert main(["generate", "--max_new_tokens=2", *words]) == 0
        assert tokenizer.decode(asked[-1]) == expected
        number = asked[-1].count(tokenizer.separator)
        assert number == bool(front) + (words[-1] == "true")
    capsys.readouterr()
    assert main(["generate", "--max_new_tokens=2"]) == (0 if front else 2)


def test_a_run_starts_from_the_weights_of_another_on_other_text(fit, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("<eos>".join(STORIES))
    (tmp_path / "b.txt").write_text("<eos>".join(story.replace("cat", "dog") for story in STORIES))
    special = ["--data.special_tokens", '["<eos>"]']
    assert fit("--data.train_files", '["a.txt"]', *special, "--trainer.max_steps=3", "--optimizer.lr=0.01")[0] == 0
    first = load_model(tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt")
    options = ["fit", "--init_from", "lightning_logs/version_0", "--data.train_files", '["b.txt"]',
               "--trainer.max_steps=2", "--optimizer.lr=0", "--data.num_workers=1", "--data.batch_size=2",
               "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--generation.max_new_tokens=2"]  # fmt: skip
    assert main(options) == 0, complaint(capsys)
    run = tmp_path / "lightning_logs" / "version_1"
    second = load_model(run / "checkpoints" / "last.ckpt")
    assert second.step == 2
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name  # the learning rate is 0
    assert second.tokenizer.hash == first.tokenizer.hash
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["started_from"], summary["continues"]) == ("lightning_logs/version_0", None)
    assert "init_from: lightning_logs/version_0" in (run / "config.yaml").read_text()
    capsys.readouterr()
    for more, sentence in [
        (["--ckpt_path=last"], "--ckpt_path resumes a run, and --init_from starts a new one"),
        (["--model.d_model=32"], "model.d_model is 32, but lightning_logs/version_0/checkpoints/best.ckpt was trained"),
        (["--init_from=nowhere.ckpt"], "nowhere.ckpt"),
    ]:
        assert main([*options, *more]) == 2
        assert sentence in complaint(capsys)
    assert main(["validate", "--init_from=last"]) == 2
    assert "--init_from belongs to fit" in complaint(capsys)
    assert main(["fit", "--ckpt_path=last", "--trainer.max_steps=3"]) == 0  # it resumes, and starts from nothing else
    assert json.loads((tmp_path / "lightning_logs/version_1-continued/summary.json").read_text())["steps"] == 3


def test_a_text_too_short_to_hold_out_a_window_is_named(fit, tmp_path):
    (tmp_path / "a.txt").write_text(STORIES[0] + "<|endoftext|>" + " ".join(STORIES[1:]))
    code, out = fit("--data.train_files", '["a.txt"]', "--data.context_length=64")
    assert code == 0, out
    assert "less than a window of 64, because the text is short: the validation loss is uncertain." in out
