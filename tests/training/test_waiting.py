"""A step on a GPU makes nobody wait: it asks the device for no number and sends it none. On a CPU, by what it calls."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tslm.data.datamodule import TextDataModule
from tslm.loops.step import StepLoop
from tslm.optim import adamw, adamw_device
from tslm.training import LanguageModule, StepTrainer

# Reading a number; a Python number made a tensor, as torch.where does and then sends it; sizes that depend on numbers.
WAITING = ("_local_scalar_dense", "scalar_tensor", "lift_fresh", "nonzero", "masked_select", "aten.equal")


class Waits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in WAITING):
            self.calls.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("operation", [lambda x: x.sum().item(), lambda x: torch.where(x > 0, x, 0.0),
                                       lambda x: x.new_tensor([1.0]), lambda x: bool(x[0] > 0)])
def test_what_waits_is_found(operation):
    with Waits() as waits:
        operation(torch.ones(3))
    assert waits.calls


@pytest.mark.parametrize("align_documents", [False, True])
def test_a_step_waits_for_nothing(tmp_path, monkeypatch, align_documents):
    waits, advance = Waits(), StepLoop.advance

    def watched(loop):
        if loop.step in (2, 3):
            with waits:
                advance(loop)
        else:
            advance(loop)

    monkeypatch.setattr(StepLoop, "advance", watched)
    monkeypatch.setattr(adamw, "_is_on_cpu", lambda tensor: False)
    monkeypatch.setattr(adamw_device, "_update_for", lambda *sides: lambda *arguments: None)  # runs on GPUs only
    # On a CPU this operator reads its scalar tensor, on a GPU it does not.
    monkeypatch.setattr(torch, "_foreach_add_", lambda tensors, x: [each.add_(x) for each in tensors])
    data = TextDataModule(toy_stories=300, vocab_size=300, context_length=16, batch_size=2, on_device=True,
                          align_documents=align_documents, cache_dir=str(tmp_path / "cache"), num_workers=1)
    trainer = StepTrainer(max_steps=6, log_every_n_steps=5, precision="bf16-mixed", accelerator="cpu",
                          default_root_dir=str(tmp_path), limit_val_batches=1)
    module = LanguageModule(vocab_size=300, context_length=16, d_model=16, num_layers=1, num_heads=2, d_ff=32)
    trainer.fit(module, datamodule=data)
    assert waits.calls == []
    assert trainer.global_step == 6
