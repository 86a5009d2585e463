"""The trainer's options take effect: precision, compiling, memory, recomputation, chunks of the loss."""

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator

from tests.loops.conftest import data  # noqa: F401 (a fixture)
from tests.loops.test_lightning import make_trainer, weights
from tslm.generation import generate
from tslm.model import transformer
from tslm.training import machine, module, trainer
from tslm.training.module import LanguageModule
from tslm.training.trainer import StepTrainer

SIZES = {"vocab_size": 300, "context_length": 32, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32}


def make(**options):
    torch.manual_seed(0)
    return LanguageModule(**SIZES, **options)


@pytest.mark.parametrize(("fast", "precision", "words"), [
    (True, "bf16-mixed", "computes in bfloat16"), (False, "32-true", "does not compute in bfloat16")])
def test_auto_precision_is_bfloat16_if_the_processor_is_fast(tmp_path, monkeypatch, capsys, fast, precision, words):
    monkeypatch.setattr(machine, "cpu_multiplies_bfloat16", lambda: fast)
    made = make_trainer(tmp_path, 1, precision="auto")
    assert made.precision == precision
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Precision")]
    assert line == f"Precision: {precision} (this processor {words})"


def test_the_options_of_a_run_reach_the_step(tmp_path, data, monkeypatch):  # noqa: F811
    calls = []

    def spy(where, name, replacement=None):
        original = getattr(where, name)

        def called(*arguments, **named):
            calls.append(name)
            return (replacement or original)(*arguments, **named)

        monkeypatch.setattr(where, name, called)

    spy(trainer, "keep_freed_memory")
    spy(LanguageModule, "compile_step", lambda of: None)
    spy(transformer, "checkpoint")
    chunks = []
    loss = module.linear_cross_entropy
    monkeypatch.setattr(module, "linear_cross_entropy", lambda *args: chunks.append(args[3]) or loss(*args))
    options = {"limit_val_batches": 0, "compile": True}
    make_trainer(tmp_path, 1, **options).fit(make(recompute=True, loss_chunk_size=7), datamodule=data())
    assert calls == ["compile_step", "keep_freed_memory", "checkpoint", "checkpoint"]  # one checkpoint a block
    assert chunks == [7]
    calls.clear(), chunks.clear()
    make_trainer(tmp_path, 1, **options | {"compile": "auto"}).fit(make(), datamodule=data())
    assert calls == ["keep_freed_memory"]
    assert chunks == [None]


def test_recomputing_is_bit_identical(tmp_path, data):  # noqa: F811
    ends = []
    for recompute in (False, True):
        trained = make(recompute=recompute)
        make_trainer(tmp_path / str(recompute), 3).fit(trained, datamodule=data())
        ends.append(weights(trained))
    assert torch.equal(*ends)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_other_precisions_train_and_generate(tmp_path, data, precision):  # noqa: F811
    """With a `-true` precision Lightning changes torch's default dtype around each step."""
    start, trained = weights(make()), make()
    made = make_trainer(tmp_path, 5, precision=precision)
    made.fit(trained, datamodule=data())
    assert torch.isfinite(weights(trained)).all()
    assert not torch.equal(weights(trained).float(), start)
    losses = made.callback_metrics["valid_loss"]
    assert 4 < float(losses) < 6  # ln 300 = 5.7
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype({"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, default))
        (under,) = generate(make().model.float(), [1, 2], 5, temperature=0)
    finally:
        torch.set_default_dtype(default)
    assert len(under) == 5


def test_apples_gpus_are_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    options = {"max_steps": 1, "default_root_dir": str(tmp_path), "precision": "32-true"}
    assert isinstance(StepTrainer(**options).accelerator, CPUAccelerator)
    for name in ("mps", "gpu"):
        with pytest.raises(ValueError, match=f"trainer.accelerator is '{name}'.* --trainer.accelerator cpu"):
            StepTrainer(accelerator=name, **options)
