"""Checkpoints through the adapters, under the name of the course's own test file."""

import io

import pytest
import torch

from tests import adapters


@pytest.mark.parametrize("to_file", [False, True])
def test_checkpointing(tmp_path, to_file):
    def made():
        layer = torch.nn.Linear(3, 2)
        return layer, adapters.get_adamw_cls()(layer.parameters(), lr=0.1)

    (layer, optimizer), (other, other_optimizer) = made(), made()
    layer(torch.rand(3)).sum().backward()
    optimizer.step()
    out = io.BytesIO() if to_file else tmp_path / "checkpoint.pt"
    adapters.run_save_checkpoint(layer, optimizer, 10, out)
    src = io.BytesIO(out.getvalue()) if to_file else out
    assert adapters.run_load_checkpoint(src, other, other_optimizer) == 10
    assert torch.equal(other.weight, layer.weight)
    ours, theirs = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert ours.keys() == theirs.keys() != set()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
