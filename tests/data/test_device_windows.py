"""Windows gathered on a device, here a CPU, equal those of the stream."""

import numpy as np
import pytest
import torch

from tslm.data.datamodule import TextDataModule
from tslm.data.device_windows import DeviceWindows, copy_ids
from tslm.data.windows import WindowStream

CPU = torch.device("cpu")
IDS = np.random.default_rng(0).integers(0, 2**16, 1000, dtype=np.uint16)


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


def test_a_memory_map_is_copied_in_pieces(tmp_path):
    IDS.tofile(tmp_path / "ids")
    mapped = np.memmap(tmp_path / "ids", dtype=np.uint16, mode="r")
    assert np.array_equal(copy_ids(mapped, CPU, piece_size=300).numpy().view(np.uint16), IDS)


class Trainer:
    global_step, accumulate_grad_batches, global_rank, world_size = 5, 2, 1, 2

    class strategy:
        root_device = CPU


@pytest.mark.parametrize(("on_device", "kind"), [(None, WindowStream), (True, DeviceWindows), (False, WindowStream)])
def test_the_data_module_serves_the_micro_batches_of_the_current_step(on_device, kind):
    data = TextDataModule(on_device=on_device, context_length=7, batch_size=16)
    data.trainer, data.windows = Trainer(), WindowStream(IDS, 7, seed=0)
    batches = data.train_dataloader()
    assert type(batches.windows) is kind
    inputs, _ = data.windows.batch(5, 16)  # the whole step
    served = iter(batches)
    for number in (1, 3):  # parts 0 and 2 are of the other process
        assert torch.equal(next(served)[0], inputs[4 * number : 4 * number + 4])


def test_a_stock_trainer_must_be_able_to_divide_the_batch():
    data = TextDataModule(context_length=7, batch_size=6)
    data.trainer, data.windows = Trainer(), WindowStream(IDS, 7, seed=0)
    with pytest.raises(ValueError, match=r"batch_size is 6, .* 2 processes and 2 micro-batches: .* a multiple of 4"):
        data.train_dataloader()
