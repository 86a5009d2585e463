import gzip
import json
import lzma
import random

import pytest
import zstandard

from tests.tokenizer.test_sources import decoded
from tslm.errors import UserError
from tslm.tokenizer.corpus import Corpus

PACK = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}
RECORDS = "".join(json.dumps({"text": f"document {n}"}) + "\n" for n in range(3)).encode()


def lines_of(path):
    corpus = Corpus(path)  # its copies last as long as it does
    return corpus.spans[0].path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("ending", PACK)
def test_compressed_files_are_read(tmp_path, ending):
    (tmp_path / f"a.txt{ending}").write_bytes(PACK[ending](b"one<e>two"))
    (tmp_path / f"b.jsonl{ending.upper()}").write_bytes(PACK[ending](RECORDS))
    assert decoded(tmp_path, tmp_path) == "one¦two¦document 0¦document 1¦document 2¦"
    two_members = PACK[ending](b"one") + bytes(8) + PACK[ending](b" two") + bytes(4096)
    (tmp_path / f"c.txt{ending}").write_bytes(two_members)
    assert decoded(tmp_path / f"c.txt{ending}", tmp_path) == "one two"


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("damage", ["cut", "cut late", "second stream", "header", "middle", "empty"])
def test_damaged_compressed_files_are_named(tmp_path, ending, damage):
    packed = PACK[ending](random.Random(1).randbytes(200_000).hex().encode())  # several blocks of each format
    middle = bytearray(packed)
    middle[len(packed) // 2] ^= 0xFF
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes({"cut": packed[: len(packed) // 2], "cut late": packed[:-1], "header": b"plain text", "empty": b"",
                      "middle": middle, "second stream": packed + b"\1" + packed[1:]}[damage])
    sentence = "is empty" if damage == "empty" else "cannot be unpacked"
    with pytest.raises(UserError, match=rf"a\.txt\.\w+ {sentence}"):
        decoded(path, tmp_path)


def test_errors_of_a_compressed_file_name_it_and_its_line(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(RECORDS + b'{"txt": 1}\n'))
    with pytest.raises(UserError, match=r"/a\.jsonl\.gz, line 4, has no field \"text\""):
        decoded(path, tmp_path)
    path = tmp_path / "b.txt.gz"
    path.write_bytes(gzip.compress(b"ab\xff"))
    with pytest.raises(UserError, match=r"/b\.txt\.gz is not UTF-8: byte 0xff at offset 2"):
        decoded(path, tmp_path)


def test_parquet_files_are_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = ["one|1", "", "two\nlines é"]
    table = pyarrow.table({"id": [1, 2, 3], "text": texts, "body": ["x", "y", "z"], "holes": ["a", None, "b"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert [json.loads(line)["text"] for line in lines_of(tmp_path / "a.parquet")] == texts
    assert decoded(tmp_path / "a.parquet", tmp_path, text_field="body") == "x¦y¦z¦"
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert decoded(tmp_path / "b.parquet.gz", tmp_path, text_field="body") == "x¦y¦z¦"
    for field, sentence in [
        ("txt", "a.parquet has no column 'txt' but 'id', 'text', 'body', 'holes'; name the column"),
        ("id", "a.parquet, row 1, has 1 in the column 'id', not a string"),
        ("holes", "a.parquet, row 2, has None in the column 'holes', not a string"),
    ]:
        with pytest.raises(UserError, match=sentence):
            Corpus(tmp_path / "a.parquet", text_field=field)
    packed = (tmp_path / "a.parquet").read_bytes()
    at = packed.index(b"lines")
    for damaged in (packed[:-9], packed[: at - 40] + bytes(60) + packed[at + 20 :]):
        (tmp_path / "c.parquet").write_bytes(damaged)
        with pytest.raises(UserError, match=r"c\.parquet cannot be read as Parquet \("):
            Corpus(tmp_path / "c.parquet", text_field="text")


def test_bytes_that_are_not_utf8_are_replaced_on_request(tmp_path):
    (tmp_path / "a.txt").write_bytes("good \ufffd".encode() + b"\xff<e>bad\xe2\x82 \xc3")
    (tmp_path / "b.jsonl").write_bytes(
        RECORDS + b'{"text": "\xe9"}\n' + rb'{"text": "\ud83d\ude00 \ud83d \udc00x", "id": 1}' + b"\n"
    )
    corpus = Corpus([tmp_path / "a.txt", tmp_path / "b.jsonl"], errors="replace")
    numbers = [notice.split(": ")[1] for notice in corpus.notices]
    assert numbers == [f"{n} bytes or characters that are not UTF-8 were replaced by U+FFFD." for n in (3, 3)]
    assert decoded(corpus, tmp_path) == (
        "good ��¦bad� �¦document 0¦document 1¦document 2¦�¦😀 � �x¦"
    )
    for name, sentence in [("a.txt", "offset 8"), ("b.jsonl", "line 4, is not UTF-8")]:
        with pytest.raises(UserError, match=sentence):
            decoded(tmp_path / name, tmp_path)
    good = Corpus(tmp_path / "a.txt", errors="replace")
    assert good.spans[0].name == str(tmp_path / "a.txt")


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 1 << 20])
def test_replacing_does_not_depend_on_the_size_of_parts(tmp_path, chunk, monkeypatch):
    monkeypatch.setattr("tslm.tokenizer.plain._CHUNK", chunk)
    data = b"a\xef\xbf\xbd\xef\xbf\xff\xef\xbf\xbd\xbd\xf0\x9f\x98\x80\xf0\x9f\x98" * 3
    (tmp_path / "a.txt").write_bytes(data)
    corpus = Corpus(tmp_path / "a.txt", errors="replace")
    text = data.decode(errors="replace")
    assert corpus.spans[0].path.read_text(encoding="utf-8") == text
    assert corpus.notices[0].split(": ")[1].startswith(f"{text.count(chr(0xFFFD)) - 6} bytes")
