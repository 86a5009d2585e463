"""Prepared data: made once, found again, made again where damaged; validation windows; the embedded corpus's floor."""

import json
import math
import threading

import numpy as np
import pytest
import torch

from tslm.data import TextDataModule
from tslm.data.batches import valid_batches
from tslm.data.datamodule import read_prompts
from tslm.data.prepare import Cache, files_corpus, whole
from tslm.data.toy import sample_stories
from tslm.tokenizer import Tokenizer
from tslm.training import LanguageModule
from tslm.training.entropy_floor import measure_floor


@pytest.fixture
def make(story_file, tmp_path):
    def data(**options):
        settings = {
            "train_files": [str(story_file)], "cache_dir": str(tmp_path / "cache"), "vocab_size": 300,
            "context_length": 32, "batch_size": 4, "num_workers": 1,
        }
        return TextDataModule(**(settings | options))
    return data


def files(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "lock"}


def test_a_second_run_makes_nothing_again(make, tmp_path, capsys):
    make().load()
    before = files(tmp_path / "cache")
    capsys.readouterr()
    make().load()
    assert files(tmp_path / "cache") == before
    assert capsys.readouterr() == ("", "")  # no bar, no word


def test_other_settings_make_other_files(make):
    first, second = make(), make(vocab_size=310)
    first.load()
    second.load()
    assert first.tokenizer.vocab_size == 300
    assert second.tokenizer.vocab_size == 310
    assert first.train_tokens.path != second.train_tokens.path


def test_changed_text_is_noticed(make, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time.<|endoftext|>\n" * 200)
    first = make(train_files=[str(text)])
    first.load()
    text.write_text("Once upon a time, twice.<|endoftext|>\n" * 200)
    second = make(train_files=[str(text)])
    second.load()
    assert len(first.train_tokens) != len(second.train_tokens)


def test_the_content_hash_is_remembered_by_path_size_and_time(tmp_path, monkeypatch):
    cache, path = Cache(tmp_path), tmp_path / "a.txt"
    path.write_text("once")
    expected = cache.content_hash(path)
    monkeypatch.setattr("hashlib.file_digest", lambda *rest: pytest.fail("read again"))
    assert cache.content_hash(path) == expected


def test_a_damaged_token_file_is_made_again_and_that_is_said(make, capsys):
    data = make()
    data.load()
    good = np.array(data.train_tokens.ids)
    path = data.train_tokens.path
    with open(path, "r+b") as file:
        file.truncate(100)
    again = make()
    again.load()
    assert np.array_equal(again.train_tokens.ids, good)
    assert "made again" in capsys.readouterr().out


def test_one_process_prepares_while_another_waits(tmp_path, capsys):
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with Cache(tmp_path).lock():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(10)
    threading.Timer(1.3, leave.set).start()
    with Cache(tmp_path).lock():
        assert leave.is_set()
    thread.join()
    assert "Another process prepares data" in capsys.readouterr().out


def test_without_validation_files_the_last_documents_are_held_out(story_file):
    train, valid = files_corpus([str(story_file)], None, "<|endoftext|>")
    content = story_file.read_bytes()
    assert train[-1].stop == valid[0].start
    assert valid[0].stop == len(content)
    assert content[: train[-1].stop].rstrip().endswith(b"<|endoftext|>")
    assert 0.01 < (valid[0].stop - valid[0].start) / len(content) < 0.1


def test_the_last_records_of_json_lines_are_held_out(make, story_file, tmp_path):
    stories = [story for story in story_file.read_text(encoding="utf-8").split("<|endoftext|>") if story]
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories), encoding="utf-8")
    data = make(train_files=[str(path)])
    data.load()
    ids = [*data.train_tokens.ids, *data.valid_tokens.ids]
    assert data.tokenizer.decode(ids) == "".join(f"{story}<|endoftext|>" for story in stories)
    assert data.tokenizer.decode(data.valid_tokens.ids[:5]) == stories[-int(np.sum(data.valid_tokens.ids == 0))][:5]
    assert data.train_tokens.source_bytes + data.valid_tokens.source_bytes == len("".join(stories).encode())


def test_a_single_record_is_no_training_text(tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text('{"text": "a story"}\n')
    with pytest.raises(ValueError, match="has a single record"):
        files_corpus([str(path)], None, "<|endoftext|>")
    path.write_text('[{"text": "an array"}]\n')
    with pytest.raises(ValueError, match=r"one\.jsonl, line 1, is an array"):  # what is no record is said first
        files_corpus([str(path)], None, "<|endoftext|>")


def test_the_name_that_says_json_lines_is_part_of_the_key(tmp_path):
    keys = set()
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}\n')
        keys.add(Cache(tmp_path).key([whole(tmp_path / name)]))
    assert len(keys) == 2


def test_evaluation_needs_no_training_file(story_file):
    train, valid = files_corpus(["on-another-machine.txt"], [str(story_file)], "<|endoftext|>", evaluating=True)
    assert train == ()
    assert len(valid) == 1


def test_a_tokenizer_that_is_too_large_is_refused(make, tmp_path):
    large = make(vocab_size=320)
    large.load()
    large.tokenizer.save(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"has 320 entries, but data\.vocab_size is 300"):
        make(tokenizer=str(tmp_path / "tokenizer")).load()
    fits = make(tokenizer=str(tmp_path / "tokenizer"), vocab_size=320)
    fits.load()
    assert fits.tokenizer.hash == large.tokenizer.hash


def test_another_tokenizer_than_the_checkpoints_is_refused(make, tmp_path):
    own = make()
    own.load()
    own.tokenizer.save(tmp_path / "tokenizer")
    data = make(tokenizer=str(tmp_path / "tokenizer"))
    data.use_tokenizer(Tokenizer.from_dir(tmp_path / "tokenizer"))
    with pytest.raises(ValueError, match=r"not the one that the checkpoint was trained with"):
        data.use_tokenizer(Tokenizer({i: bytes([i]) for i in range(256)}, []))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("length", [2, 32, 33, 34, 100, 257])
def test_validation_shows_each_target_exactly_once(length, world_size):
    ids = np.arange(length, dtype=np.uint16)
    targets = []
    for rank in range(world_size):
        batches = valid_batches(ids, 32, 2, rank, world_size)
        assert len(list(batches)) == len(batches)
        for inputs, shifted in batches:
            assert torch.equal(inputs + 1, shifted)
            targets += shifted.flatten().tolist()
    assert sorted(targets) == list(range(1, length))


def test_bits_per_byte_count_the_bytes_of_the_targets(make):
    data = make()
    data.load()
    ids = np.array(data.valid_tokens.ids)
    size = sum(len(data.tokenizer.vocab[int(id_)]) for id_ in ids[1:])
    assert data.valid_bytes_per_token * (len(ids) - 1) == pytest.approx(size)


@pytest.mark.parametrize(("content", "part"), [(b"", "holds no prompt"), (b"\n\n", "holds no prompt"),
                                               (b"One\n\xff", "not UTF-8 at byte 4")])
def test_a_useless_prompts_file_is_named(tmp_path, content, part):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=part):
        read_prompts(str(path))


def uniform(vocab_size):
    """A model that gives every token the same probability: with gains of zero all logits are zero."""
    module = LanguageModule(vocab_size, 256, 8, 1, 1, 8)
    torch.nn.init.zeros_(module.model.ln_final.weight)
    return module.model


def test_the_floor_compares_sums_over_whole_stories(tmp_path):
    data = TextDataModule(corpus="toy", toy_stories=400, vocab_size=1000, cache_dir=str(tmp_path), num_workers=1)
    data.load()
    stories = sample_stories(20, seed=99)
    report = measure_floor(uniform(1000), data.tokenizer, stories, np.array(data.train_tokens.ids), batch_size=3)
    tokens = sum(len(data.tokenizer.encode(f"\n{story.text}\n<|endoftext|>")) for story in stories)
    assert report.tokens == tokens
    assert report.floor_nats == pytest.approx(-sum(story.log_prob for story in stories))
    assert report.model_nats == pytest.approx(tokens * math.log(1000), rel=1e-5)
    assert report.floor_gap == pytest.approx(report.model_nats / report.floor_nats - 1)
    assert 0.3 < report.ngram_gap < 5


def test_a_story_that_is_longer_than_the_context_cannot_be_compared(tmp_path):
    data = TextDataModule(corpus="toy", toy_stories=50, vocab_size=300, cache_dir=str(tmp_path), num_workers=1)
    data.load()
    small = LanguageModule(300, 16, 8, 1, 1, 8).model
    with pytest.raises(ValueError, match=r"but the context is 16"):
        measure_floor(small, data.tokenizer, sample_stories(2, 1), np.array(data.train_tokens.ids))


def test_a_run_on_the_embedded_corpus_ends_with_its_floor(project, cache_dir, capsys):
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
    for part in ("exact floor", "5-gram model", "bits per byte", "python -m tslm generate", "tensorboard"):
        assert part in out
