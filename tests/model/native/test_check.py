"""The check before the first use of the kernels: it believes the right ones and names the wrong ones."""

import shutil

import pytest
import torch

from tslm import TransformerConfig, TransformerLM
from tslm.model.hardware import cpu_multiplies_bfloat16
from tslm.model.native import build, functions
from tslm.model.native.check import wrong_kernels

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="without a C compiler there are no kernels")
DTYPES = [torch.float32, *([torch.bfloat16] if cpu_multiplies_bfloat16() else [])]


@pytest.fixture
def _forgetful(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(functions, "_libraries", {})
    build.load.cache_clear()
    yield
    build.load.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_are_believed_also_in_inference_and_under_autocast(dtype):
    assert functions.library(dtype) is not None
    state = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert wrong_kernels(dtype) == []
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_kernels_get_their_room_whatever_dtype_new_tensors_have(dtype, default):
    assert functions.library(dtype) is not None
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)  # as Lightning does around each step of `bf16-true` and `64-true`
        assert wrong_kernels(dtype) == []
    finally:
        torch.set_default_dtype(before)


def test_the_first_use_may_lie_in_a_block_that_is_computed_again(monkeypatch):
    model = TransformerLM(TransformerConfig(vocab_size=20, context_length=8, d_model=16, num_layers=2, num_heads=2,
                                            d_ff=24))
    model.recompute = True
    monkeypatch.setattr(functions, "_libraries", {})
    model(torch.zeros(2, 8, dtype=torch.long)).sum().backward()
    assert functions._libraries[torch.float32] is not None


@pytest.mark.usefixtures("_forgetful")
@pytest.mark.parametrize(("right", "wrong", "name"), [
    ("key + r <= first + i ? p : 0", "key + r < first + i ? p : 0", "self_attention"),
    ("begins[end] <= first", "begins[end] >= 0", "self_attention"),
    ("a * cosine - b * sine", "a * cosine + b * sine", "self_attention"),
    ("sqrtf(squares / size + eps)", "sqrtf(squares + eps)", "rms_norm"),
    ("from[i] * rate * mean", "from[i] * mean", "rms_norm"),
    ("sigmoid + activated * (1 - sigmoid)", "sigmoid", "swiglu_linear"),
    ("both[i] = set(activated * u)", "both[i] = set(activated)", "swiglu_linear"),
    ("exps[target] -= total", "exps[target] -= 1", "losses_and_gradient")])
def test_a_kernel_that_computes_something_else_is_refused(tmp_path, monkeypatch, recwarn, right, wrong, name):
    copies = tuple(tmp_path / source.name for source in functions.SOURCES)
    before = "".join(source.read_text(encoding="utf-8") for source in functions.SOURCES)
    for source, copy in zip(functions.SOURCES, copies, strict=True):
        text = source.read_text(encoding="utf-8").replace('"kernel.h"', f'"{build.HEADER}"')
        copy.write_text(text.replace(right, wrong), encoding="utf-8")
    assert right in before
    monkeypatch.setattr(functions, "SOURCES", copies)
    with pytest.warns(UserWarning, match=rf"computes something else \({name} in torch.float32\)"):
        assert functions.library(torch.float32) is None
    assert functions.library(torch.float32) is None
    assert len(recwarn) == 0
