"""The cache of prepared data, and the division of the user's files into training and validation text."""

import errno
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from tslm.data.cache import Cache
from tslm.data.prepare import prepare
from tslm.data.texts import (
    TOY_VALID_STORIES,
    Texts,
    file_span,
    files_corpus,
    read_prompts,
    tinystories_corpus,
    toy_corpus,
)
from tslm.data.tinystories import TRAIN, VALID
from tslm.errors import MissingFileError, UserError
from tslm.tokenizer import TokenFile, Tokenizer
from tslm.tokenizer.pretokenize import unicode_hash

END = "<|endoftext|>"


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def make(story_file, cache):
    """Prepare the stories; return the tokenizer and the opened token files."""
    def prepared(texts=None, **options):
        settings = {"vocab_size": 300, "special_tokens": [END], "num_workers": 1}
        texts = texts or files_corpus([str(story_file)], None, END, cache)
        with cache.lock():
            tokenizer, train, valid = prepare(texts, cache, **(settings | options))
        return tokenizer, TokenFile.open(train), TokenFile.open(valid)
    return prepared


def modification_times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "lock"}


def test_a_second_run_reuses_every_file_and_prints_nothing(make, cache, capsys):
    make()
    before = modification_times(cache.folder)
    capsys.readouterr()
    make()
    assert modification_times(cache.folder) == before
    assert capsys.readouterr() == ("", "")


def test_another_vocabulary_size_makes_another_tokenizer_and_other_token_files(make):
    (first, first_train, _), (second, second_train, _) = make(), make(vocab_size=310)
    assert (first.vocab_size, second.vocab_size) == (300, 310)
    assert first_train.path != second_train.path


def test_another_pattern_makes_another_tokenizer_and_must_be_that_of_a_given_one(make):
    (first, first_train, _), (second, second_train, _) = make(pattern="gpt2"), make(pattern="cl100k")
    assert (first.pattern, second.pattern) == ("gpt2", "cl100k")
    assert first_train.path != second_train.path
    assert make()[0].hash == first.hash
    assert make(tokenizer=second)[0].pattern == make(tokenizer=second, pattern="cl100k")[0].pattern == "cl100k"
    with pytest.raises(UserError, match=r"data\.pattern is 'none', but the tokenizer was trained with 'cl100k'"):
        make(tokenizer=second, pattern="none")


def test_other_unicode_tables_make_another_tokenizer_and_other_token_files(make, monkeypatch):
    (_, first, _), before = make(), unicode_hash()
    monkeypatch.setattr("tslm.data.cache.unicode_hash", lambda: before[::-1])
    assert make()[1].path != first.path


def test_a_changed_text_is_encoded_again(make, tmp_path, cache):
    text = tmp_path / "text.txt"
    lengths = set()
    for story in ("Once upon a time.", "Once upon a time, twice."):
        text.write_text(f"{story}{END}\n" * 200)
        lengths.add(len(make(files_corpus([str(text)], None, END, cache))[1]))
    assert len(lengths) == 2


def test_the_content_hash_is_remembered_until_the_file_changes(tmp_path, cache):
    cache.folder.mkdir()
    path = tmp_path / "a.txt"
    path.write_text("once")
    first = cache.content_hash(path)
    remembered = json.loads((cache.folder / "hashes.json").read_text())
    (cache.folder / "hashes.json").write_text(json.dumps(dict.fromkeys(remembered, "from memory")))
    assert cache.content_hash(path) == "from memory"
    times = path.stat()
    path.write_text("also")  # the same size; a copy of a file can have the same modification time as well
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert cache.content_hash(path) not in (first, "from memory")


def test_a_text_that_is_replaced_before_it_is_encoded_is_not_kept_under_the_hash_of_the_other(make, tmp_path, cache):
    text, other = tmp_path / "a.txt", tmp_path / "b.txt"
    text.write_text(f"Once upon a time.{END}\n" * 200)
    tokenizer, *_ = make(files_corpus([str(text)], None, END, cache))
    other.write_text(f"Once upon a rime.{END}\n" * 200)

    class TokenizerThatInterferes(Tokenizer):
        def encode_bytes(self, block, **options):
            if other.exists():
                other.replace(text)
            return super().encode_bytes(block, **options)

    before = set(cache.folder.rglob("*.bin"))
    slow = TokenizerThatInterferes({**tokenizer.vocab, 299: b"<|x|>"}, tokenizer.merges, [END, "<|x|>"])
    with pytest.raises(UserError, match=r"a\.txt was changed or replaced while it was read"):
        make(files_corpus([str(text)], None, END, cache), tokenizer=slow)
    assert set(cache.folder.rglob("*.bin")) == before


@pytest.mark.parametrize("damaged", ["[]", "{", "3", "", "[" * 100_000, "\xff"])
def test_a_damaged_file_of_hashes_is_made_again(tmp_path, cache, damaged):
    cache.folder.mkdir()
    (tmp_path / "a.txt").write_text("once")
    first = cache.content_hash(tmp_path / "a.txt")
    (cache.folder / "hashes.json").write_text(damaged, encoding="latin1")
    assert cache.content_hash(tmp_path / "a.txt") == first
    assert list(json.loads((cache.folder / "hashes.json").read_text()).values()) == [first]


def test_a_named_pipe_in_the_cache_is_replaced_and_blocks_nothing(cache, capsys):
    (span,), _ = toy_corpus(cache, 3, seed=0)
    train = Path(span.path)
    text, times = train.read_bytes(), train.stat()
    for path in (cache.folder / "hashes.json", train, train.with_name("train.txt.sha256")):
        path.unlink()
        os.mkfifo(path)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        toy_corpus(cache, 3, seed=0)
        assert path.is_file()
        assert train.read_bytes() == text


def test_a_damaged_text_of_the_embedded_corpus_is_written_again_with_a_notice(cache, capsys):
    train, valid = (Path(spans[0].path) for spans in toy_corpus(cache, 3, seed=0))
    texts = train.read_bytes(), valid.read_bytes()
    capsys.readouterr()
    for path, text in zip((train, valid), texts, strict=True):
        times = path.stat()
        path.write_bytes(text.replace(b"a", b"b", 1))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        toy_corpus(cache, 3, seed=0)
        assert path.read_bytes() == text
        assert capsys.readouterr().out == f"{path} is written again, because it was changed or damaged.\n"
    train.with_name("train.txt.sha256").write_text("damaged")
    toy_corpus(cache, 3, seed=0)
    assert "is written again" in capsys.readouterr().out
    toy_corpus(cache, 3, seed=0)
    assert (train.read_bytes(), valid.read_bytes()) == texts
    assert capsys.readouterr().out == ""


def test_a_changed_text_of_tinystories_is_refused(cache):
    folder = cache.folder / "tinystories"
    folder.mkdir(parents=True)
    for name in (TRAIN, VALID):
        (folder / name).write_text(f"A story.{END}\n")
    tinystories_corpus(cache)
    (folder / VALID).write_text(f"Another.{END}\n")
    with pytest.raises(UserError, match=rf"{VALID} was changed since it was downloaded: remove it"):
        tinystories_corpus(cache)


def test_a_damaged_tokenizer_is_trained_again_with_a_notice(make, cache, capsys):
    first, train, _ = make()
    folder = next((cache.folder / "tokenizers").iterdir())
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        for damage in (lambda path: os.truncate(path, path.stat().st_size // 2), Path.unlink):
            damage(folder / name)
            capsys.readouterr()
            tokenizer, again, _ = make()
            assert (tokenizer.hash, again.path) == (first.hash, train.path)
            notice = capsys.readouterr().out
            assert damage is Path.unlink or notice.startswith("The tokenizer is trained again, because")


def test_a_damaged_token_file_is_encoded_again_with_a_notice(make, capsys):
    _, train, _ = make()
    ids = np.array(train.ids)
    os.truncate(train.path, 100)
    capsys.readouterr()
    assert np.array_equal(make()[1].ids, ids)
    assert "The training text is encoded again" in capsys.readouterr().out


def test_one_process_prepares_while_another_waits_with_a_notice(tmp_path, capsys):
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with Cache(tmp_path).lock():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(10)
    threading.Timer(0.1, leave.set).start()
    with Cache(tmp_path).lock(notice_after=0.01):
        assert leave.is_set()
    thread.join()
    assert "Another process prepares data" in capsys.readouterr().out


def test_a_cache_folder_that_cannot_be_created_is_refused(tmp_path):
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file" / "cache")
    sentence = r"data cannot be kept in .*cache \(Not a directory\): .* or give --data\.cache_dir"
    with pytest.raises(UserError, match=sentence), cache.lock():
        pass


@pytest.fixture
def read_only(cache):
    """Return a function that forbids this process to write to the cache; root acts as a user who owns nothing."""
    def forbid():
        for path in (cache.folder, *cache.folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        if is_root:
            for parent in cache.folder.parents[:4]:  # the folders of this test, which only root may enter
                parent.chmod(0o755)
            os.seteuid(65_534)

    is_root = os.geteuid() == 0
    yield forbid
    if is_root:
        os.seteuid(0)
    for path in (cache.folder, *cache.folder.rglob("*")):
        path.chmod(0o755)


def test_a_complete_cache_that_is_read_only_is_used_without_a_lock(make, cache, read_only, capsys):
    with cache.lock():
        texts = toy_corpus(cache, 20, seed=0)
    first, train, _ = make(texts)
    (cache.folder / "hashes.json").unlink()  # even the hashes are computed again
    capsys.readouterr()
    read_only()
    with cache.lock():
        assert toy_corpus(cache, 20, seed=0) == texts
    again, same, _ = make(texts)
    assert (again.hash, same.path) == (first.hash, train.path)
    assert capsys.readouterr() == ("", "")
    assert not (cache.folder / "hashes.json").exists()


def test_an_incomplete_cache_that_is_read_only_is_refused_with_the_path(make, cache, read_only, story_file):
    copy = cache.folder.with_name("stories.txt")
    copy.write_bytes(story_file.read_bytes())
    texts = files_corpus([str(copy)], None, END, cache)
    make(texts)
    read_only()
    sentence = rf"data cannot be kept in {cache.folder}/tokenizers\S* \(Permission denied\): .* --data\.cache_dir"
    with pytest.raises(UserError, match=sentence):
        make(texts, vocab_size=310)
    with pytest.raises(UserError, match=rf"data cannot be kept in {cache.folder}/toy "), cache.lock():
        toy_corpus(cache, 20, seed=0)


def test_what_killed_writers_left_in_the_cache_is_removed(make, cache):
    make()
    files = set(cache.folder.rglob("*"))
    (cache.folder / "tokens" / ".ids.bin.4711.tmp").write_text("half of it")
    (cache.folder / "tokenizers" / ".key.x1y2.tmp").mkdir()
    (cache.folder / "tokenizers" / ".key.x1y2.tmp" / "vocab.json").touch()
    make()
    assert set(cache.folder.rglob("*")) == files


def test_a_full_disk_is_named_with_the_path(make, cache, monkeypatch):
    def fail(_file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    make()
    files = set(cache.folder.rglob("*"))
    monkeypatch.setattr("os.fsync", fail)
    sentence = rf"data cannot be kept in {cache.folder}/tokenizers/\S+ \(No space left on device\): make room"
    with pytest.raises(UserError, match=sentence):
        make(vocab_size=310)
    assert set(cache.folder.rglob("*")) == files


def test_the_embedded_corpus_has_at_least_one_story(cache):
    with pytest.raises(UserError, match=r"data\.toy_stories is 0"):
        toy_corpus(cache, 0, seed=0)
    train, valid = toy_corpus(cache, 3, seed=0)
    assert (cache.folder / "toy") in Path(train[0].path).parents
    assert Path(train[0].path).read_text().count(END) == 3
    assert Path(valid[0].path).read_text().count(END) == TOY_VALID_STORIES


def test_without_validation_files_some_documents_are_held_out(story_file, cache):
    train, valid = files_corpus([str(story_file)], None, END, cache)
    content = story_file.read_bytes()
    assert sorted((span.start, span.stop) for span in valid + train)[0][0] == 0
    assert sum(span.stop - span.start for span in valid + train) == len(content)
    assert all(content[: span.stop].rstrip().endswith(END.encode()) for span in valid + train)
    assert 0.04 < sum(span.stop - span.start for span in valid) / len(content) < 0.1


def test_some_records_of_a_jsonl_file_are_held_out(make, story_file, tmp_path, cache):
    stories = [story for story in story_file.read_text(encoding="utf-8").split(END) if story]
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories), encoding="utf-8")
    tokenizer, train, valid = make(files_corpus([str(path)], None, END, cache))
    texts = tokenizer.decode([*train.ids, *valid.ids]).split(END)
    assert sorted(texts) == sorted([*stories, ""])
    assert train.source_bytes + valid.source_bytes == len("".join(stories).encode())


def test_a_jsonl_file_with_a_single_record_is_refused(tmp_path, cache):
    path = tmp_path / "one.jsonl"
    path.write_text('{"text": "a story"}\n')
    with pytest.raises(ValueError, match="single document"):
        files_corpus([str(path)], None, END, cache)
    path.write_text('[{"text": "an array"}]\n')
    with pytest.raises(ValueError, match=r"one\.jsonl, line 1, is an array"):  # the more useful error comes first
        files_corpus([str(path)], None, END, cache)


def test_the_file_format_is_part_of_the_cache_key(tmp_path, cache):
    cache.folder.mkdir()
    paths = [tmp_path / "a.txt", tmp_path / "a.jsonl"]
    for path in paths:
        path.write_text('{"text": "a"}\n')
    assert len({cache.key([file_span(path)]) for path in paths}) == 2


def test_evaluation_needs_no_training_file(story_file, cache):
    cache.folder.mkdir()
    texts = files_corpus(["on-another-machine.txt"], [str(story_file)], END, cache, evaluating=True)
    assert texts == Texts((), (file_span(story_file),))
    with pytest.raises(MissingFileError, match=r"on-another-machine\.txt does not exist"):
        files_corpus(["on-another-machine.txt"], [str(story_file)], END, cache)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"a\.txt is empty"):
        file_span(tmp_path / "a.txt")


def test_a_tokenizer_larger_than_the_vocabulary_size_is_refused(make):
    large, *_ = make(vocab_size=320)
    with pytest.raises(UserError, match=r"has 320 entries, but data\.vocab_size is 300"):
        make(tokenizer=large)
    assert make(tokenizer=large, vocab_size=320)[1].tokenizer_hash == large.hash


@pytest.mark.parametrize("name", ["lock", "tokens", "hashes.json", "toy/text/train.txt"])
def test_a_link_in_the_cache_is_refused_and_a_linked_cache_is_used(tmp_path, name):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "cache" / name).parent.mkdir(parents=True)
    (tmp_path / "cache" / name).symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=rf"{name} is a symbolic link, by which"), Cache(tmp_path / "cache").lock():
        pass
    assert (tmp_path / "precious").read_text() == "precious"
    (tmp_path / "other").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "other")
    with Cache(tmp_path / "linked").lock():
        assert (tmp_path / "other").is_dir()


def test_prompts_are_lines_that_end_with_a_line_feed(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffOne\u2028two\r\n\r\n \nthree\x85four\x0cfive\rsix\n".encode())
    assert read_prompts(str(path)) == ["One\u2028two", "three\x85four\x0cfive\rsix"]
