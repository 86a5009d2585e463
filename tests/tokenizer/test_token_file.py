import json
import os

import numpy as np
import pytest

from tslm import TokenFile
from tslm.errors import UserError
from tslm.tokenizer import TokenFileWriter


def write(path, ids=(1, 2, 65_535, 0), vocab_size=1 << 16, **more):
    with TokenFileWriter(path, vocab_size, "hash", **more) as writer:
        for id_ in ids:
            writer.append(np.atleast_1d(id_), source_bytes=2)
    return path


def test_tokenizer_token_file_gives_back_what_was_written(tmp_path):
    path = write(tmp_path / "new" / "ids.bin", special_ids={"<|e|>": 0})
    file = TokenFile.open(str(path))
    assert file.ids.tolist() == [1, 2, 65_535, 0]
    assert len(file) == 4
    assert (file.vocab_size, file.tokenizer_hash, file.source_bytes) == (1 << 16, "hash", 8)
    assert file.special_ids == {"<|e|>": 0}
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["ids.bin", "ids.bin.json"]
    file.verify()
    with pytest.raises(ValueError, match="read-only"):
        file.ids[0] = 3


def test_tokenizer_token_file_is_as_narrow_as_the_vocabulary_allows(tmp_path):
    assert TokenFile.open(write(tmp_path / "a")).dtype == np.uint16
    wide = TokenFile.open(write(tmp_path / "b", [1, 65_536], vocab_size=(1 << 16) + 1))
    assert wide.dtype == np.uint32
    assert wide.ids.tolist() == [1, 65_536]
    assert len(TokenFile.open(write(tmp_path / "c", [])).ids) == 0


def test_tokenizer_token_file_that_changed_is_refused(tmp_path):
    path = write(tmp_path / "ids.bin")
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(ValueError, match="has 7 bytes, but its sidecar names 4 ids of 2 bytes"):
        TokenFile.open(path)
    path.write_bytes(data[:2] + b"\x07" + data[3:])
    with pytest.raises(ValueError, match="was changed since it was written"):
        TokenFile.open(path)
    path.write_bytes(data)  # the same content at another time: read through once, then remembered
    os.utime(path, ns=(1, 1))
    assert TokenFile.open(path).ids.tolist() == [1, 2, 65_535, 0]
    assert json.loads((tmp_path / "ids.bin.json").read_text())["mtime_ns"] == 1


def test_tokenizer_token_file_that_is_large_is_read_only_if_its_times_differ(tmp_path):
    path, sidecar = write(tmp_path / "ids.bin"), tmp_path / "ids.bin.json"
    right = json.loads(sidecar.read_text())
    wrong = {**right, "sha256": "of something else"}
    del right["sidecar_sha256"], wrong["sidecar_sha256"]
    sidecar.write_text(json.dumps(wrong))
    assert len(TokenFile.open(path, always_read=0)) == 4  # not read, so the wrong hash is not noticed
    with pytest.raises(UserError, match="was changed since it was written"):
        TokenFile.open(path, always_read=8)
    for times in ((1, 1), (right["mtime_ns"],) * 2):  # the modification time can be set back, the change time cannot
        os.utime(path, ns=times)
        with pytest.raises(UserError, match="was changed since it was written"):
            TokenFile.open(path, always_read=0)
    sidecar.write_text(json.dumps(right))
    TokenFile.open(path, always_read=0)
    assert json.loads(sidecar.read_text())["ctime_ns"] == path.stat().st_ctime_ns != right["ctime_ns"]


def test_tokenizer_token_file_of_another_tokenizer_is_refused(tmp_path):
    path = write(tmp_path / "ids.bin")
    assert TokenFile.open(path, tokenizer_hash="hash").tokenizer_hash == "hash"
    with pytest.raises(ValueError, match=r"made with another tokenizer \(hash hash, not other\)"):
        TokenFile.open(path, tokenizer_hash="other")


def test_tokenizer_token_file_id_over_the_vocabulary_is_named_at_first_use(tmp_path):
    path, sidecar = write(tmp_path / "ids.bin", [1, 2, 300, 4, 400], vocab_size=500), tmp_path / "ids.bin.json"
    fields = json.loads(sidecar.read_text()) | {"vocab_size": 300}
    del fields["sidecar_sha256"]
    sidecar.write_text(json.dumps(fields))
    file = TokenFile.open(path)
    with pytest.raises(ValueError, match="holds the id 300 at position 2, but its vocabulary has 300 entries"):
        _ = file.ids


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dtype": "<u4"}, "its dtype <u4 does not go with 65536 entries"),
        ({"dtype": "|O"}, "no valid sidecar"),
        ({"source_bytes": 10**400}, "no valid sidecar"),
        ({"source_bytes": -1}, "no valid sidecar"),
        ({"format": 9}, "its format is 9, this program reads format 1"),
        ({"count": None}, "its count is None"),
        ({"count": 5}, "names 5 ids"),
    ],
)
def test_tokenizer_token_file_with_a_wrong_sidecar_is_refused(tmp_path, change, sentence):
    path = write(tmp_path / "ids.bin")
    sidecar = tmp_path / "ids.bin.json"
    fields = json.loads(sidecar.read_text()) | change
    del fields["sidecar_sha256"]  # as in files of earlier versions
    sidecar.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=sentence):
        TokenFile.open(path)


def test_tokenizer_token_file_that_is_not_there_is_named(tmp_path):
    path = write(tmp_path / "ids.bin")
    for text in ("", "{", "[1]", '{"format": 1}'):
        (tmp_path / "ids.bin.json").write_text(text)
        with pytest.raises(ValueError, match="no valid sidecar"):
            TokenFile.open(path)
    (tmp_path / "ids.bin.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"ids\.bin\.json, a sidecar of a token file, does not exist"):
        TokenFile.open(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere, a token file, does not exist"):
        TokenFile.open(tmp_path / "nowhere")


def test_tokenizer_token_file_that_fails_leaves_nothing(tmp_path):
    def fail_half_way():
        with TokenFileWriter(tmp_path / "ids.bin", 300, "hash") as writer:
            writer.append(np.arange(9))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "ids.bin")
    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert len(TokenFile.open(tmp_path / "ids.bin")) == 4  # the older file stays


def test_tokenizer_token_file_with_any_damaged_byte_of_its_sidecar_is_refused_or_the_same(tmp_path):
    path = write(tmp_path / "ids.bin", special_ids={"<|e|>": 0})
    sidecar = tmp_path / "ids.bin.json"
    data, refused = sidecar.read_bytes(), 0
    for at in range(len(data)):
        sidecar.write_bytes(data[:at] + (b"7" if data[at : at + 1] != b"7" else b"8") + data[at + 1 :])
        try:
            file = TokenFile.open(path)
        except UserError:
            refused += 1
        else:
            assert (file.source_bytes, file.special_ids, file.tokenizer_hash) == (8, {"<|e|>": 0}, "hash")
    assert refused > 0.8 * len(data)


@pytest.mark.parametrize("id_", [-1, 300, 1 << 16, 1 << 32])
def test_tokenizer_token_file_refuses_ids_outside_the_vocabulary(tmp_path, id_):
    with pytest.raises(UserError, match=rf"ids\.bin must be 0 to 299, but they are {min(id_, 5)} to {max(id_, 5)}"):
        write(tmp_path / "ids.bin", [[5, id_]], vocab_size=300)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"ids below 2\^32, but the vocabulary has 4,294,967,297"):
        TokenFileWriter(tmp_path / "ids.bin", (1 << 32) + 1, "hash")
