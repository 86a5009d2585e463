"""The from-scratch rule at run time: the compiler must not put a fused attention where ours is written out."""

import pytest
import torch

from tslm.training.module import LanguageModule

FUSED = ("scaled_dot_product", "flash_attention", "efficient_attention", "_softmax", "fused_adam", "layer_norm")


def names_of(run):
    """The operators that a profile of the second run sees; the first one compiles."""
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return {event.key for event in profile.key_averages()}


def fused(names):
    return {name for name in names if any(part in name for part in FUSED)}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at it while it traces
def test_a_compiled_training_step_has_nothing_ready_made_in_it():
    torch.compiler.reset()
    torch.manual_seed(0)
    module = LanguageModule(64, context_length=32, d_model=32, num_layers=1, num_heads=2, d_ff=64)
    module.use_compiled(True)
    tokens = torch.randint(0, 64, (2, 33))

    def step():
        module.training_step((tokens[:, :-1], tokens[:, 1:]), 0).backward()

    names = names_of(step)
    assert any("Compiled" in name or "compiled" in name.lower() for name in names), "nothing was compiled"
    assert fused(names) == set()


def test_the_profile_would_show_a_fused_attention():
    """Without this the test above could not fail: the same attention with a ready-made softmax is replaced."""
    torch.compiler.reset()

    @torch.compile
    def attention(q, k, v):
        return torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-2, -1)).div(4.0), dim=-1), v)

    q, k, v = torch.randn(3, 2, 4, 16, 16).unbind(0)
    with torch.no_grad():
        names = names_of(lambda: attention(q, k, v))
    assert fused(names)
