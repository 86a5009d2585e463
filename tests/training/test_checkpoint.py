import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch

import tslm
from tslm.errors import UserError
from tslm.files import remove_leftovers
from tslm.model import TransformerConfig, TransformerLM
from tslm.optim import Muon
from tslm.training import checkpoint as files
from tslm.training.writing import WriteError, link_atomically

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


@pytest.mark.parametrize(("saved", "other"), [
    (tslm.AdamW, tslm.SGD), (tslm.SGD, tslm.AdamW), (tslm.AdamW, Muon), (Muon, tslm.SGD),
])
def test_checkpointing_refuses_the_state_of_another_kind_of_optimizer(tmp_path, saved, other):
    model = trained(0)[0]
    optimizer = saved(model.parameters(), lr=0.5)
    step(model, optimizer, 1)
    tslm.save_checkpoint(model, optimizer, 1, tmp_path / "a.pt")
    unchanged, _ = trained(2)
    optimizer = other(unchanged.parameters(), lr=0.25)
    before = optimizer.state_dict()
    with pytest.raises(UserError, match=f"those of {other.__name__} .*: build the optimizer that was saved"):
        tslm.load_checkpoint(tmp_path / "a.pt", unchanged, optimizer)
    assert optimizer.state_dict() == before
    assert same(unchanged, trained(2)[0])


def test_checkpointing_takes_what_a_scheduler_has_added(tmp_path):
    model, optimizer = trained()
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    tslm.save_checkpoint(model, optimizer, 3, tmp_path / "a.pt")
    assert tslm.load_checkpoint(tmp_path / "a.pt", *trained(0)) == 3


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


KILLED = """
import os, signal, sys
from pathlib import Path
from tslm.training.writing import WriteError, link_atomically, replace_atomically

def write(file):
    file.write(b"half of a checkpoint")
    file.flush()
    print("writing", flush=True)
    signal.pause()

replace_atomically(Path(sys.argv[1]), write)
"""


def test_leftovers_of_killed_writes_are_removed_but_not_those_of_living_processes(tmp_path):
    path = tmp_path / "step-00000002.ckpt"
    mine = [tmp_path / ".hidden.new", tmp_path / "a.ckpt.1.new", tmp_path / "step-00000001.ckpt"]
    for other in mine:
        other.write_bytes(b"of the user")
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        temporary = next(tmp_path.glob(f".{path.name}.*.new"), path)
        assert temporary.is_file()
        remove_leftovers(tmp_path)
        assert temporary.is_file()
        process.send_signal(signal.SIGKILL)
        process.wait()
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(mine)


def test_a_name_is_linked_again_and_leaves_nothing_behind(tmp_path, monkeypatch):
    for number in (1, 2):
        (tmp_path / f"{number}.ckpt").write_text(str(number))
    for number, link in ((1, os.link), (1, os.link), (2, os.link), (1, None)):
        if link is None:  # a file system without links
            monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError("no links")))
        link_atomically(tmp_path / f"{number}.ckpt", tmp_path / "best.ckpt")
        assert (tmp_path / "best.ckpt").read_text() == str(number)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1.ckpt", "2.ckpt", "best.ckpt"]


@pytest.mark.parametrize("limit", [100, 20_000])
def test_a_full_disk_is_reported_with_the_path_and_keeps_the_old_file(tmp_path, limit):
    path = tmp_path / "a.pt"
    tslm.save_checkpoint(*trained(), 1, path)
    before = path.read_bytes()
    assert len(before) > limit
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(WriteError, match=r"a\.pt could not be written \(File too large\)"):
            tslm.save_checkpoint(*trained(), 2, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_missing_folder_is_reported_with_the_path(tmp_path):
    with pytest.raises(WriteError, match=r"nowhere/a\.pt could not be written \(No such file or directory\)"):
        tslm.save_checkpoint(*trained(), 1, tmp_path / "nowhere" / "a.pt")


def test_an_unreadable_checkpoint_is_not_called_damaged():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pt"
        tslm.save_checkpoint(*trained(), 1, path)
        os.chmod(folder, 0o755)
        path.chmod(0)
        user = os.geteuid()
        try:
            os.seteuid(65534 if user == 0 else user)  # root may read everything
            with pytest.raises(UserError, match=r"a\.pt cannot be read \(Permission denied\): change its permissions"):
                tslm.load_checkpoint(path, *trained(0))
        finally:
            os.seteuid(user)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("kind", ["compressed", "overlapping", "bytearray"])
def test_an_archive_that_needs_more_memory_than_its_size_is_refused_before_it_is_read(tmp_path, mmap, kind):
    path = tmp_path / "a.ckpt"
    torch.save({"x": bytearray(9) if kind == "bytearray" else torch.ones(2)}, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        if kind != "bytearray":
            archive.writestr("a/data/9", bytes(1 << 20))
        if kind == "overlapping":
            archive.filelist.extend(archive.filelist[:1] * 100)
    assert not files.is_intact(path)
    with pytest.raises(UserError, match=r"a\.ckpt is damaged or no checkpoint"):
        files.read_checkpoint(path, mmap=mmap)


@pytest.mark.parametrize("spoil", [
    lambda state: state.update(iteration="x"), lambda state: state.update(optimizer=5),
    lambda state: state["optimizer"]["param_groups"].clear(), lambda state: state.update(model=[1]),
    lambda state: state["model"].update(a=5), lambda state: state.update(optimizer={}),
])
def test_a_part_of_another_form_is_named_and_changes_nothing(tmp_path, spoil):
    model, optimizer = trained(3)
    tslm.save_checkpoint(model, optimizer, 3, tmp_path / "a.pt")
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    spoil(state)
    torch.save(state, tmp_path / "a.pt")
    other, its_optimizer = trained(1)
    before = {name: weight.clone() for name, weight in other.state_dict().items()}
    with pytest.raises(UserError, match=r"a\.pt (holds|does not fit)"):
        tslm.load_checkpoint(tmp_path / "a.pt", other, its_optimizer)
    assert all(torch.equal(weight, before[name]) for name, weight in other.state_dict().items())
