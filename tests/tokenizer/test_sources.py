import bz2
import gzip
import json
import lzma
import os
import re
import tarfile
import zipfile

import pytest
import zstandard

from tslm.errors import MissingFileError, UserError
from tslm.tokenizer import Tokenizer, encode_files, merge_pretokens
from tslm.tokenizer.corpus import Corpus
from tslm.tokenizer.encode import encode_corpus
from tslm.tokenizer.sources import find_documents

BOM = "\ufeff"


def make_tokenizer(*specials):
    return Tokenizer(*merge_pretokens({b"the": 2, b" end": 3}, 300, list(specials)), list(specials))


def ids_of(source, folder, tokenizer, **options):
    return encode_corpus(tokenizer, Corpus(source, **options), folder / "ids.bin", num_workers=1)


def decoded(source, folder, **options):
    """The text of all tokens, with separators as ¦."""
    tokenizer = make_tokenizer("<e>")
    return tokenizer.decode(ids_of(source, folder, tokenizer, **options).ids).replace("<e>", "¦")


def write(folder, **texts):
    for name, text in texts.items():
        path = folder / name.replace("_", ".").replace("..", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.replace("¦", "<e>").encode())


def test_several_files_are_documents_unless_they_are_one_text_in_parts(tmp_path):
    write(tmp_path, a_txt="The end.", b_txt="Once upon a time¦\n", c_txt="And¦so on")
    files = [tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt"]
    assert decoded(files, tmp_path) == "The end.¦Once upon a time¦\nAnd¦so on¦"
    assert decoded(files, tmp_path, joined=True) == "The end.Once upon a time¦\nAnd¦so on"
    assert decoded(files[:1], tmp_path) == "The end."  # the ids of one file are those of its text


def test_a_folder_gives_its_files_in_the_order_of_their_names(tmp_path):
    texts = {"b_txt": "two", "a_jsonl": '{"text": "one"}', "sub__c_TXT": "three", "notes_md": "no", "_hidden_txt": "no"}
    write(tmp_path, **texts)
    (tmp_path / "empty.txt").touch()
    corpus = Corpus(tmp_path)
    assert [os.path.relpath(span.path, tmp_path) for span in corpus.spans] == ["a.jsonl", "b.txt", "sub/c.TXT"]
    left_out = f"{tmp_path}: 1 of 5 files are left out, such as {tmp_path}/notes.md; known endings are .txt, "
    assert corpus.notices[0].startswith(left_out)
    assert corpus.notices[1:] == ["1 empty file is left out."]
    assert decoded(f"{tmp_path}/*.txt", tmp_path) == "two"
    assert decoded(f"{tmp_path}/**/*.[tT]*", tmp_path) == "two¦three¦"
    assert decoded(tmp_path / "notes.md", tmp_path) == "no"  # a file that is named may have any ending
    with pytest.raises(MissingFileError, match=r"no file matches .*\*\.csv"):
        Corpus(f"{tmp_path}/*.csv")


@pytest.mark.parametrize("text", ["[1, 2]", ' \n{"text": "a"}'])
def test_json_is_named_also_where_it_is_compressed(tmp_path, text):
    write(tmp_path, a_json=text)
    with pytest.raises(UserError, match=r"a\.json is (a JSON array|JSON);"):
        Corpus(tmp_path / "a.json")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(UserError, match=r"a\.json\.gz is (a JSON array|JSON);"):
        Corpus(tmp_path / "a.json.gz")


def test_files_that_are_no_text_are_named_although_their_bytes_may_be_utf8(tmp_path):
    write(tmp_path, a_txt="Once upon a time. " * 20)
    text = (tmp_path / "a.txt").read_bytes()
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        archive.add(tmp_path / "a.txt", "a.txt")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(tmp_path / "a.txt")
    tar = (tmp_path / "b.tar").read_bytes()
    assert tar.decode()
    files = {"b.tar": tar, "c.tar.gz": gzip.compress(tar), "b.zip": (tmp_path / "b.zip").read_bytes(),
             "d.txt": gzip.compress(text), "e.txt": lzma.compress(text), "f.txt": zstandard.compress(text),
             "g.bz2": bz2.compress(text), "h.txt": text.decode().encode("utf-16"), "j.txt": b"PAR1" + text,
             "i.txt": text.decode().encode("utf-16-le"), "k.jsonl": text.decode().encode("utf-16-be")}
    found = {}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        for errors in ("strict", "replace"):
            with pytest.raises(UserError, match=re.escape(f"/{name} is ")) as caught:
                Corpus(tmp_path / name, errors=errors)
        found[name] = str(caught.value).split(f"{name} is ")[1].split(";")[0].split(",")[0]
    assert found == {
        "b.tar": "an archive of tar", "c.tar.gz": "an archive of tar", "b.zip": "an archive of zip",
        "d.txt": "compressed by gzip", "e.txt": "compressed by xz", "f.txt": "compressed by zstd",
        "g.bz2": "compressed by bzip2", "h.txt": "UTF-16", "i.txt": "UTF-16", "j.txt": "Parquet", "k.jsonl": "UTF-16",
    }  # fmt: skip
    write(tmp_path, z_txt="a\0b\0" * 3 + "\0\0 zeros are text")
    assert decoded(tmp_path / "z.txt", tmp_path).startswith("a\0b\0")


def test_links_are_followed_and_each_file_is_taken_once(tmp_path):
    write(tmp_path, tree__a_txt="one", other__c_txt="three", tree__b_txt="two")
    tree = tmp_path / "tree"
    (tree / "again.txt").symlink_to("b.txt")
    (tree / "loop").symlink_to(".")  # glob would follow the two loops along 2 to the power of 40 paths
    (tree / "self").symlink_to("../tree")
    (tree / "linked").symlink_to("../other")
    for source in (tree, f"{tree}/**", f"{tmp_path}/tr*/**/*.txt", f"{tree}/**/**/*.txt"):
        assert sorted(decoded(source, tmp_path).split("¦")) == ["", "one", "three", "two"]
    assert decoded(f"{tree}/*.txt", tmp_path) == "one¦two¦"
    assert decoded([tree / "a.txt", tree / "a.txt"], tmp_path) == "one¦one¦"  # as the user wants


def test_patterns_are_found_from_the_current_folder_and_with_their_characters_escaped(tmp_path, monkeypatch):
    write(tmp_path, a_txt="one", x__b_txt="two")
    (tmp_path / "x[1]").mkdir()
    (tmp_path / "x[1]" / "c.txt").write_text("three")
    monkeypatch.chdir(tmp_path)
    deep = ["x/b.txt", "x[1]/c.txt"]
    for pattern, names in [("**/*.txt", ["a.txt", *deep]), ("x*/**", deep), ("**", ["a.txt", *deep]),
                           ("./**/b*", ["./x/b.txt"]), ("x/**", ["x/b.txt"])]:
        assert sorted(span.label for span in Corpus(pattern).spans) == names


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path, monkeypatch):
    write(tmp_path, a_txt="one", sub__b_txt="two")
    scandir = os.scandir

    def forbidden(path):
        if os.fspath(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    for source in (tmp_path, f"{tmp_path}/**/*.txt"):
        with pytest.raises(PermissionError, match=r"Permission denied: '.*/sub'"):
            Corpus(source)


def test_a_pipe_in_a_folder_is_no_empty_file(tmp_path):
    write(tmp_path, a_txt="one")
    os.mkfifo(tmp_path / "b.txt")
    with pytest.raises(UserError, match=r"b\.txt is no regular file"):
        Corpus(tmp_path)


def test_a_byte_order_mark_is_dropped_with_a_notice(tmp_path):
    write(tmp_path, a_txt=f"{BOM}one{BOM}", b_jsonl=f'{BOM}{{"text": "two"}}\n', c_txt=BOM)
    corpus = Corpus([tmp_path / "a.txt", tmp_path / "b.jsonl"])
    assert [notice.split(": ")[1] for notice in corpus.notices] == ["the byte order mark at its start is dropped."] * 2
    assert decoded(corpus, tmp_path) == f"one{BOM}¦two¦"
    with pytest.raises(UserError, match=r"c\.txt is empty"):
        Corpus(tmp_path / "c.txt")


def test_the_text_of_a_record_may_have_another_field(tmp_path):
    write(tmp_path, a_jsonl='{"text": 1, "content": "one"}\n{"content": "two"}')
    assert decoded(tmp_path / "a.jsonl", tmp_path, text_field="content") == "one¦two¦"
    with pytest.raises(UserError, match=r'a\.jsonl, line 1, has no field "body" but .*; each line holds .*"body"'):
        decoded(tmp_path / "a.jsonl", tmp_path, text_field="body")


def test_the_separator_in_a_record_is_text(tmp_path):
    write(tmp_path, a_jsonl="".join(json.dumps({"text": text}) + "\n" for text in ("a<e>b", "", "<e>")))
    tokenizer = make_tokenizer("<e>")
    ids = ids_of(tmp_path / "a.jsonl", tmp_path, tokenizer).ids.tolist()
    assert tokenizer.decode(ids) == "a<e>b<e><e><e><e>"
    assert ids.count(tokenizer.separator) == 3
    allowed = ids_of(tmp_path / "a.jsonl", tmp_path, tokenizer, allow_special=True)
    assert tokenizer.decode(allowed.ids) == "a<e>b<e><e><e>"


@pytest.mark.parametrize("separator", ["<eos>", "<|endoftext|>", "\n\n", "§"])
def test_the_first_special_token_separates_whatever_its_spelling(tmp_path, separator):
    tokenizer = make_tokenizer(separator, "<other>")
    write(tmp_path, a_jsonl="".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(600)))
    ids = encode_files(tokenizer, tmp_path / "a.jsonl", tmp_path / "ids.bin").ids
    assert int((ids == tokenizer.separator).sum()) == 600
    assert tokenizer.decode(ids) == "".join(f"text {n}{separator}" for n in range(600))


@pytest.mark.parametrize("separator", ["<|endoftext|>", "<eos>"])
def test_one_text_has_the_same_document_bytes_in_every_form(tmp_path, separator):
    documents = ["", "The end.\n", "an é", " two\nlines\n", ""]
    tokenizer = make_tokenizer(separator)
    write(tmp_path, a_jsonl="".join(json.dumps({"text": text}) + "\n" for text in documents),
          b_txt="".join(text + separator for text in documents),
          c_txt="".join(f"{text}{separator}\n" for text in documents))
    records, plain, lines = (encode_files(tokenizer, tmp_path / name, tmp_path / "ids.bin")
                             for name in ("a.jsonl", "b.txt", "c.txt"))
    assert records.ids.tolist() == plain.ids.tolist()
    assert len({file.document_bytes for file in (records, plain, lines)}) == 1
    assert records.document_bytes == sum(len(text.encode()) for text in documents)
    assert lines.source_bytes == (tmp_path / "c.txt").stat().st_size


def test_document_bytes_do_not_depend_on_the_sizes_of_parts(tmp_path):
    tokenizer = make_tokenizer("<|e|>")
    write(tmp_path, a_txt="word <|e|>\n\n" * 50, b_txt="more words<|e|>" * 30, c_jsonl='{"text": "\\nrecord"}\n' * 20)
    sizes = set()
    for task_bytes in (7, 40, 10_000):
        for block_bytes in (1, 13, 10_000):
            corpus = Corpus([tmp_path / name for name in ("a.txt", "b.txt", "c.jsonl")])
            file = encode_corpus(tokenizer, corpus, tmp_path / "ids.bin", num_workers=1, task_bytes=task_bytes,
                                 block_bytes=block_bytes)
            sizes.add(file.document_bytes)
    assert sizes == {50 * 6 + 30 * 10 + 20 * 7}


def test_documents_of_a_text_file_end_with_the_separator_and_line_breaks(tmp_path):
    write(tmp_path, a_txt="¦\n¦one¦\r\n\ntwo¦ ¦three¦¦", b_jsonl='\n{"text": 1}\n\n {"text": 2}')
    text, records = Corpus([tmp_path / "a.txt", tmp_path / "b.jsonl"]).spans
    content = (tmp_path / "a.txt").read_bytes()
    documents = list(find_documents(text, b"<e>"))
    assert [document.text for document in documents] == [b"one", b"two", b"three", b""]
    assert [content[each.start : each.stop] for each in documents] == [document.text for document in documents]
    assert [content[each.end :][:4] for each in documents] == [b"two<", b" <e>", b"<e>", b""]
    assert [document.text for document in find_documents(text, b"")] == [content]
    assert [document.text for document in find_documents(records, b"x")] == [b'{"text": 1}', b'{"text": 2}']
