"""The compiled step equals the step as written, and the fallbacks to the step as written."""

import pytest
import torch
from torch._inductor.exc import InductorError

from tslm.training import compiling
from tslm.training.module import LanguageModule

SIZES = {"vocab_size": 64, "context_length": 12, "d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 64}


def _module(separator=None, **options):
    torch.manual_seed(0)
    module = LanguageModule(**SIZES, **options)
    module.separator = separator
    return module


def _batch():
    return torch.randint(0, 64, (2, 3, 12), generator=torch.Generator().manual_seed(1)).unbind(0)


def _step(module, dtype):
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = module.training_step(_batch(), 0)
    loss.backward()
    return loss.detach(), torch.cat([each.grad.flatten() for each in module.parameters()])


@pytest.mark.parametrize(("dtype", "separator"), [(torch.float32, None), (torch.float32, 5), (torch.bfloat16, None)])
def test_the_compiled_step_equals_the_step_as_written(dtype, separator, capsys):
    torch.compiler.reset()
    assert separator is None or (_batch()[0] == separator).any()
    plain_loss, plain_gradient = _step(_module(separator), dtype)
    compiled = _module(separator)
    compiled.compile_step()
    loss, gradient = _step(compiled, dtype)
    assert "Compiled the training step in" in capsys.readouterr().out
    again = _step(compiled, dtype)
    assert torch.equal(loss, again[0])
    assert torch.equal(gradient, again[1])
    if dtype == torch.float32:
        torch.testing.assert_close((loss, gradient), (plain_loss, plain_gradient))
        assert not torch.equal(gradient, plain_gradient), "bit-identical, so nothing was compiled"
    else:  # the compiler keeps more digits between two passes than bfloat16 has, so each is compared with float32
        _, exact = _step(_module(), torch.float32)
        error, plain_error = ((each - exact).norm() / exact.norm() for each in (gradient, plain_gradient))
        assert plain_error < 0.02  # bfloat16 has 8 bits
        assert error < 1.1 * plain_error


def test_validation_and_generation_are_not_compiled(monkeypatch):
    module = _module()
    monkeypatch.setattr(torch, "compile", lambda function, **options: pytest.fail)
    module.use_compiled(True)
    with torch.no_grad():
        module.mean_loss(*_batch())
        module.model(torch.zeros(1, 3, dtype=torch.long))
    module.use_compiled(False)
    module.mean_loss(*_batch())


def test_without_a_compiler_the_step_runs_as_written(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    module, plain = _module(), _module()
    module.compile_step()
    assert torch.equal(_step(module, torch.float32)[1], _step(plain, torch.float32)[1])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert "no C++ compiler called no-such-compiler" in said[0]


def test_when_the_compiler_fails_the_step_runs_as_written(monkeypatch, capsys):
    def fails(*arguments):
        raise InductorError(RuntimeError("a header is missing\nand more"), lambda: None)

    monkeypatch.setattr(torch, "compile", lambda function, **options: fails)
    module, plain = _module(), _module()
    module.compile_step()
    assert torch.equal(_step(module, torch.float32)[1], _step(plain, torch.float32)[1])
    assert "Not compiled, so that steps take somewhat longer: InductorError" in capsys.readouterr().out


def test_errors_of_the_module_are_not_caught(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    module = _module()
    module.compile_step()
    with pytest.raises(IndexError):
        module.training_step((torch.tensor([[64]]), torch.tensor([[0]])), 0)


@pytest.mark.parametrize(
    ("choice", "flops", "device", "expected"),
    [("auto", 1e20, "cpu", False), ("auto", 1e15, "cuda", False),
     ("auto", 1e17, "cuda", True), ("auto", 1e20, "mps", False), (True, 1.0, "cpu", True), (False, 1e20, "cpu", False)],
)  # fmt: skip
def test_compiling_is_chosen_where_it_pays(choice, flops, device, expected):
    assert compiling.pays(choice, flops, device) is expected
