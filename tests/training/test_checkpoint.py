import io
import os
import shutil

import pytest
import torch

import tslm
from tslm.model import TransformerConfig, TransformerLM
from tslm.training import checkpoint as files

CONFIG = TransformerConfig(vocab_size=40, context_length=8, d_model=16, num_layers=1, num_heads=2, d_ff=32)


def trained(steps=3, config=CONFIG):
    torch.manual_seed(0)
    model = TransformerLM(config)
    optimizer = tslm.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    step(model, optimizer, steps)
    return model, optimizer


def step(model, optimizer, steps):
    for number in range(steps):
        tokens = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        tslm.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).backward()
        optimizer.step()


def same(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_checkpointing_goes_on_bit_for_bit(tmp_path):
    model, optimizer = trained()
    tslm.save_checkpoint(model, optimizer, 3, tmp_path / "a.pt")
    step(model, optimizer, 2)
    other, other_optimizer = trained(1)
    assert tslm.load_checkpoint(tmp_path / "a.pt", other, other_optimizer) == 3
    step(other, other_optimizer, 2)
    assert same(model, other)


def test_checkpointing_takes_binary_files():
    model, optimizer = trained()
    buffer = io.BytesIO()
    tslm.save_checkpoint(model, optimizer, 7, buffer)
    buffer.seek(0)
    other, other_optimizer = trained(0)
    assert tslm.load_checkpoint(buffer, other, other_optimizer) == 7
    assert same(model, other)


def test_checkpointing_says_which_weight_has_another_shape(tmp_path):
    model, optimizer = trained()
    tslm.save_checkpoint(model, optimizer, 1, tmp_path / "a.pt")
    wide = TransformerConfig(vocab_size=50, context_length=8, d_model=16, num_layers=1, num_heads=2, d_ff=32)
    with pytest.raises(ValueError, match=r"lm_head\.weight is \(40, 16\) in the checkpoint and \(50, 16\)"):
        tslm.load_checkpoint(tmp_path / "a.pt", *trained(0, wide))


def test_checkpointing_never_runs_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save({"model": Bomb(), "optimizer": {}, "iteration": 0}, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        tslm.load_checkpoint(tmp_path / "bomb.pt", *trained(0))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_checkpointing_names_a_damaged_file(tmp_path, damage):
    path = tmp_path / "a.pt"
    tslm.save_checkpoint(*trained(), 1, path)
    assert files.is_intact(path)
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"once upon a time"}[damage])
    assert not files.is_intact(path)
    with pytest.raises(ValueError, match=r"a\.pt is damaged or no checkpoint"):
        tslm.load_checkpoint(path, *trained(0))


def test_checkpointing_notices_a_single_changed_byte(tmp_path):
    path = tmp_path / "a.pt"
    tslm.save_checkpoint(*trained(), 1, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert not files.is_intact(path)
    with pytest.raises(ValueError, match="damaged"):
        tslm.load_checkpoint(path, *trained(0))


def test_checkpointing_survives_every_kind_of_damaged_archive(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"x": torch.ones(2)}, path)
    content = path.read_bytes()
    directory = content.index(b"PK\x01\x02")  # the archive's table of contents, which the reader trusts
    for place in range(directory, len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0x40
        path.write_bytes(damaged)
        assert files.is_intact(path) in (True, False)


def test_checkpointing_says_where_no_file_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nowhere\.pt"):
        tslm.load_checkpoint(tmp_path / "nowhere.pt", *trained(0))


def test_checkpointing_keeps_the_old_file_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    tslm.save_checkpoint(*trained(), 1, path)
    before = path.read_bytes()

    def broken(state, file):
        file.write(b"half of")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="No space left"):
        tslm.save_checkpoint(*trained(), 2, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pt"]


def test_checkpointing_asks_for_room_before_it_writes(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(OSError, match="make room"):
        tslm.save_checkpoint(*trained(), 1, tmp_path / "a.pt")
    assert os.listdir(tmp_path) == []
