"""Windows drawn with torch's int64 arithmetic on a device, here a CPU, against those of numpy's uint64."""

import numpy as np
import pytest
import torch

from tslm.data import device_windows, windows
from tslm.data.datamodule import TextDataModule
from tslm.data.device_windows import DeviceWindows, copy_ids
from tslm.data.windows import WindowStream

CPU = torch.device("cpu")
IDS = np.random.default_rng(0).integers(0, 2**16, 1000, dtype=np.uint16)


@pytest.mark.parametrize("seed", [0, 1, -3, 2**63 - 1, 2**70])
@pytest.mark.parametrize("size", [8, 9, 100, 1000])
def test_starts_are_those_of_the_window_stream(seed, size):
    stream = WindowStream(IDS[:size], 7, seed)
    indices = np.concatenate([np.arange(5000), 2 ** np.arange(1, 62, dtype=np.int64), [2**62 + 12345]])
    assert DeviceWindows(stream, CPU).starts(torch.from_numpy(indices)).tolist() == stream.starts(indices).tolist()


@pytest.mark.parametrize("number", [1, 2, 93, 2**32 - 1, 2**32, 2**32 + 12345, 2**40 + 7, 2**63 - 1])
def test_the_arithmetic_has_the_bits_of_uint64(number):
    random = np.random.default_rng(1).integers(0, 2**64, 1000, dtype=np.uint64)
    random[:6] = [0, 1, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
    as_torch = torch.from_numpy(random.view(np.int64))
    assert device_windows._scale(as_torch, number).tolist() == windows._scale(random, number).tolist()
    assert device_windows._mix(as_torch).tolist() == windows._mix(random).view(np.int64).tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 2), (1, 2), (2, 3)])
def test_batches_are_those_of_the_window_stream(dtype, rank, world_size):
    ids = (IDS.astype(np.int64) * 65_537 % 2 ** min(32, 8 * np.dtype(dtype).itemsize)).astype(dtype)
    stream = WindowStream(ids, 7, seed=3)
    on_device = DeviceWindows(stream, CPU)
    assert on_device.ids.element_size() == np.dtype(dtype).itemsize
    for step in (0, 1, 10**12):
        ours = on_device.batch(step, 16, rank=rank, world_size=world_size)
        theirs = stream.batch(step, 16, rank=rank, world_size=world_size)
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == torch.int64
            assert one.is_contiguous()
            assert torch.equal(one, other)


def test_a_memory_map_is_copied_piece_by_piece(tmp_path, monkeypatch):
    IDS.tofile(tmp_path / "ids")
    mapped = np.memmap(tmp_path / "ids", dtype=np.uint16, mode="r")
    monkeypatch.setattr(device_windows, "COPIED_AT_ONCE", 300)
    assert np.array_equal(copy_ids(mapped, CPU).numpy().view(np.uint16), IDS)


@pytest.mark.parametrize(("device", "on_device", "kind"), [
    ("cpu", None, WindowStream), ("cuda", None, DeviceWindows), ("cpu", True, DeviceWindows),
    ("cuda", False, WindowStream),
])
def test_the_data_module_draws_on_a_gpu_unless_told_otherwise(monkeypatch, device, on_device, kind):
    class Trainer:
        global_step, accumulate_grad_batches, global_rank, world_size = 5, 2, 0, 1

        class strategy:
            root_device = torch.device(device)

    monkeypatch.setattr(device_windows, "copy_ids", lambda ids, device: copy_ids(ids, CPU))
    monkeypatch.setattr(torch, "arange", lambda *args, device=None, arange=torch.arange: arange(*args))
    data = TextDataModule(on_device=on_device, context_length=7, batch_size=4)
    data.trainer, data.windows = Trainer(), WindowStream(IDS, 7, seed=0)
    batches = data.train_dataloader()
    assert type(batches.windows) is kind
    for ours, theirs in zip(next(iter(batches)), data.windows.batch(10, 4), strict=True):
        assert torch.equal(ours, theirs)
