"""The door: an edited formula runs, in training and in generation, and one warning names it."""

import math
import os
import subprocess
import sys
import warnings

import pytest
import torch

from tests.conftest import ROOT, needs_compiler, needs_open_door
from tslm import AdamW, TransformerConfig, TransformerLM, fast, generate
from tslm.fast import DisagreementWarning, door, table
from tslm.fast.door import Case, Substitute, UnavailableError
from tslm.fast.forms import cpu_multiplies_bfloat16
from tslm.generation import decoding, sampling
from tslm.model import ops
from tslm.objective import linear_cross_entropy

pytestmark = needs_open_door
CONFIG = TransformerConfig(vocab_size=61, context_length=16, d_model=32, num_layers=2, num_heads=4, d_ff=48)


@pytest.fixture(autouse=True)
def _fresh_door():
    door.forget()
    yield
    door.forget()


def model_and_batch():
    torch.manual_seed(0)
    model = TransformerLM(CONFIG)
    with torch.no_grad():
        model.lm_head.weight *= 8  # an untrained model gives nearly equal logits
    return model, torch.randint(0, 61, (2, 16)), torch.randint(0, 61, (2, 16))


def loss_and_gradients(dtype=None):
    model, inputs, targets = model_and_batch()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        loss = linear_cross_entropy(model.hidden(inputs), model.lm_head.weight, targets)
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters()]


def greedy_tokens(temperature=0.0):
    model, _, _ = model_and_batch()
    generator = torch.Generator().manual_seed(0)
    return generate(model, [[1, 2, 3], [4]], 40, temperature=temperature, top_k=5, generator=generator)


def weights_after_three_steps():
    model, inputs, targets = model_and_batch()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        linear_cross_entropy(model.hidden(inputs), model.lm_head.weight, targets).backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def negated(next_logits):
    return lambda growing: -next_logits(growing)


# What a researcher might change in each function on the CPU's path: an edited form, made from the original one.
EDITS = {
    "tslm.model.ops.rms_norm": lambda plain: lambda x, gain, eps: 1.01 * plain(x, gain, eps),
    "tslm.model.ops.self_attention": lambda plain: lambda qkv, *rest: 1.01 * plain(qkv, *rest),
    "tslm.model.ops.swiglu_linear": lambda plain: lambda gate_up, weight: plain(gate_up.relu(), weight),
    "tslm.objective.linear_and_loss": lambda plain: lambda *arguments: plain(*arguments) + 0.01,
    "tslm.optim.adamw.adamw_step": lambda plain: lambda *arguments: plain(*arguments[:4], 0.5 * arguments[4],
                                                                          *arguments[5:]),
    "tslm.generation.decoding.next_logits": lambda plain: lambda *arguments: negated(plain(*arguments)),
    "tslm.generation.sampling.choose_tokens": lambda plain: lambda logits, *rest: plain(-logits, *rest),
}
# What shows that an edited function ran.
EFFECTS = {
    "tslm.optim.adamw.adamw_step": weights_after_three_steps,
    "tslm.generation.decoding.next_logits": greedy_tokens,
    "tslm.generation.sampling.choose_tokens": lambda: greedy_tokens(temperature=1.0),
}


def differs(one, other):
    if isinstance(one, list):
        return one != other
    return not torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("name", EDITS)
def test_an_edited_function_runs_and_one_warning_names_it(monkeypatch, name):
    effect = EFFECTS.get(name, lambda: loss_and_gradients()[0])
    before = effect()
    function = door.functions()[name]
    monkeypatch.setattr(function, "plain", EDITS[name](function.plain))
    door.forget()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        after, again = effect(), effect()
    assert differs(before, after)
    assert not differs(after, again)
    with fast.shut():
        assert not differs(effect(), after)
    messages = [str(each.message) for each in seen if issubclass(each.category, DisagreementWarning)]
    on_cpu = any(place.device != "cuda" for place in table.SUBSTITUTES[name])
    assert len(messages) == on_cpu
    assert all(name in message for message in messages)


@needs_compiler
def test_the_second_process_of_a_training_repeats_no_warning(monkeypatch):
    before = loss_and_gradients()[0]
    function = door.functions()["tslm.model.ops.rms_norm"]
    monkeypatch.setattr(function, "plain", EDITS["tslm.model.ops.rms_norm"](function.plain))
    monkeypatch.setenv("LOCAL_RANK", "1")
    door.forget()
    assert differs(before, loss_and_gradients()[0])  # and a warning would be an error


@needs_compiler
@pytest.mark.parametrize("name", ["rms_norm", "self_attention", "swiglu_linear"])
def test_an_edited_formula_changes_generation(monkeypatch, name):
    before = greedy_tokens()
    function = getattr(ops, name)
    plain = function.plain
    monkeypatch.setattr(function, "plain", lambda x, *rest: plain(-x, *rest) + 0.5)
    door.forget()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DisagreementWarning)
        after = greedy_tokens()
    assert after != before
    with fast.shut():
        assert after == greedy_tokens()


@needs_compiler
@pytest.mark.skipif(not cpu_multiplies_bfloat16(), reason="the processor does not multiply bfloat16")
def test_an_edit_below_the_rounding_of_bfloat16_is_noticed_too(monkeypatch):
    plain = ops.rms_norm.plain
    monkeypatch.setattr(ops.rms_norm, "plain", lambda *arguments: 1.001 * plain(*arguments))
    with pytest.warns(DisagreementWarning, match=r"ops\.rms_norm runs as it is written"):
        loss_and_gradients(torch.bfloat16)


@needs_compiler
def test_a_window_of_attention_is_noticed_in_training_and_in_generation(monkeypatch):
    plain = ops.causal_mask

    def windowed(length, device=None):
        positions = torch.arange(length, device=device)
        return plain(length, device) & (positions[:, None] - positions < 200)

    monkeypatch.setattr(ops, "causal_mask", windowed)
    torch.manual_seed(0)
    model = TransformerLM(TransformerConfig(61, 256, d_model=32, num_layers=1, num_heads=2, d_ff=48))
    tokens = torch.randint(0, 61, (1, 256))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model(tokens).sum().backward()
        generate(model, tokens[0].tolist(), 1, temperature=0)
    messages = " ".join(str(each.message) for each in seen)
    assert "self_attention runs as it is written" in messages
    assert "next_logits runs as it is written" in messages


@needs_compiler
def test_every_function_has_an_edit_here():
    tslm_functions = {name for name in table.SUBSTITUTES if not name.startswith("tslm.tokenizer.")}
    assert tslm_functions == set(EDITS)


def test_twenty_steps_with_the_door_open_and_shut_agree_to_rounding():
    def twenty_steps():
        model, inputs, targets = model_and_batch()
        optimizer, losses = AdamW(model.parameters(), lr=3e-3), []
        for _ in range(20):
            optimizer.zero_grad()
            loss = linear_cross_entropy(model.hidden(inputs), model.lm_head.weight, targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    opened = twenty_steps()
    with fast.shut():
        closed = twenty_steps()
    torch.testing.assert_close(opened, closed, rtol=2e-5, atol=0)
    assert opened[-1] < 0.7 * opened[0]


@needs_compiler
@pytest.mark.parametrize("surroundings", [
    torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_first_call_may_happen_anywhere(surroundings):
    model, inputs, _ = model_and_batch()
    state = torch.get_rng_state()
    with surroundings():
        model(inputs)
    assert torch.equal(state, torch.get_rng_state())
    assert set(door._disagreements.values()) == {""}


@needs_compiler
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_default_dtype_does_not_matter(default):
    before = torch.get_default_dtype()
    model, inputs, _ = model_and_batch()
    try:
        torch.set_default_dtype(default)  # as Lightning does around each step of `bf16-true` and `64-true`
        model.hidden(inputs)
    finally:
        torch.set_default_dtype(before)
    assert set(door._disagreements.values()) == {""}


@needs_compiler
def test_the_first_call_may_happen_in_a_block_that_is_recomputed():
    model, inputs, _ = model_and_batch()
    model.recompute = True
    model(inputs).sum().backward()
    assert set(door._disagreements.values()) == {""}


@pytest.mark.parametrize(("value", "is_open"), [("0", "False"), ("1", "True")])
def test_tslm_fast_0_shuts_the_door(value, is_open):
    source = "from tslm.fast import door; print(door.is_open())"
    done = subprocess.run([sys.executable, "-c", source], env=os.environ | {"TSLM_FAST": value}, check=True,
                          capture_output=True, text=True)
    assert done.stdout.strip() == is_open


def test_with_the_door_shut_nothing_is_compared():
    with fast.shut():
        loss_and_gradients()
    assert door._disagreements == {}


def test_shutting_the_door_twice_keeps_it_shut():
    with fast.shut():
        with fast.shut():
            pass
        assert not door.is_open()
    assert door.is_open()


def test_an_unavailable_substitute_is_reported_once_for_all_functions(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    from tslm.fast.cpu import build

    build.load.cache_clear()
    try:
        with pytest.warns(DisagreementWarning, match="no-such-compiler is not found") as seen:
            [loss_and_gradients() for _ in range(2)]
    finally:
        build.load.cache_clear()
    assert len(seen) == 1


def made_up(function, tolerance=0.0, **options):
    probes = [Case((torch.tensor([1.0, 2.0], requires_grad=True), 3))]
    return Substitute(function, lambda x, n: "key", lambda key: probes, lambda key: tolerance, **options)


def scaled(x, n):
    return x * n


@pytest.mark.parametrize(("substitute", "reason"), [
    (lambda x, n: x * n, ""),
    (lambda x, n: x * n + 1, "on a probe it gives"),
    (lambda x, n: (x * n).detach() + 0 * x, "relative error"),  # the right value with a wrong gradient
    (lambda x, n: (x * n, x), "values"),
    (lambda x, n: torch.full_like(x, math.nan) * x, "relative error"),
    (lambda x, n: x.view(7, 7), "its substitute raises RuntimeError"),
])
def test_values_and_gradients_are_compared(substitute, reason):
    from tslm.fast.agreement import difference

    found = difference(scaled, made_up(substitute), "key")
    assert (reason in found) if reason else found == ""


def test_what_a_substitute_writes_into_its_arguments_is_compared():
    from tslm.fast.agreement import difference

    def add(values, state, n):
        values.add_(n)
        state["step"] += 1

    def forgets_the_state(values, state, n):
        values.add_(n)

    probes = [Case((torch.ones(3), {"step": 1}, 2))]
    for function, agrees in ((add, True), (forgets_the_state, False)):
        substitute = Substitute(function, lambda *args: "key", lambda key: probes, lambda key: 0.0)
        assert (difference(add, substitute, "key") == "") is agrees


def test_a_comparison_that_is_interrupted_is_no_agreement(monkeypatch):
    calls = []

    def interrupted(plain, substitute, key):
        calls.append(key)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return ""

    monkeypatch.setattr("tslm.fast.agreement.difference", interrupted)
    x, gain = torch.randn(3, 8), torch.ones(8)
    with pytest.raises(KeyboardInterrupt):
        ops.rms_norm(x, gain, 1e-5)
    assert door._disagreements == {}
    ops.rms_norm(x, gain, 1e-5)
    assert len(calls) == 2


def test_keyword_arguments_reach_the_substitute():
    x, gain = torch.randn(3, 8), torch.ones(8)
    assert torch.equal(ops.rms_norm(x=x, gain=gain, eps=1e-5), ops.rms_norm(x, gain, 1e-5))
    assert len(door._disagreements) == 1


def test_both_packages_agree_on_the_dtype_of_a_matmul():
    from tslm.fast.forms import form_of
    from tslm.model.dtypes import matmul_dtype

    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for autocast in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                assert matmul_dtype(torch.ones(1, dtype=dtype)) == form_of(torch.ones(1, dtype=dtype)).compute_dtype


def test_an_unavailable_probe_is_no_agreement():
    def unavailable(key):
        raise UnavailableError("there is no compiler")

    from tslm.fast.agreement import difference

    substitute = Substitute(scaled, lambda x, n: "key", unavailable, lambda key: 0.0)
    with pytest.raises(UnavailableError):
        difference(scaled, substitute, "key")


def test_editing_the_source_changes_what_a_training_computes(tmp_path):
    """The real thing: a copy of the package, one changed line, and the command line of a user."""
    source = ROOT / "tslm"
    script = """
import sys, shutil
from pathlib import Path
copy = Path(sys.argv[1]) / "tslm"
shutil.copytree(sys.argv[2], copy, ignore=shutil.ignore_patterns("__pycache__"))
ops = copy / "model" / "ops.py"
text = ops.read_text(encoding="utf-8")
assert text.count("torch.sigmoid(x)") == 1
ops.write_text(text.replace("torch.sigmoid(x)", "torch.tanh(x)"), encoding="utf-8")
sys.path.insert(0, sys.argv[1])
import torch, tslm.model
from tslm.objective import linear_cross_entropy
assert tslm.model.__file__.startswith(sys.argv[1])
torch.manual_seed(0)
model = tslm.model.TransformerLM(tslm.model.TransformerConfig(61, 16, 32, 2, 4, 48))
tokens = torch.arange(32).view(2, 16)
print(linear_cross_entropy(model.hidden(tokens), model.lm_head.weight, tokens).item())
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), str(source)], capture_output=True, text=True,
                          timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    torch.manual_seed(0)
    model, tokens = TransformerLM(CONFIG), torch.arange(32).view(2, 16)
    original = linear_cross_entropy(model.hidden(tokens), model.lm_head.weight, tokens).item()
    assert abs(float(done.stdout) - original) > 1e-3
    assert done.stderr.count("runs as it is written") <= 1
    assert "swiglu_linear runs as it is written" in done.stderr or "run as they are written" in done.stderr


def test_the_probes_of_choices_are_pickleable_by_name():
    import pickle

    assert pickle.loads(pickle.dumps(ops.rms_norm)) is ops.rms_norm
    assert pickle.loads(pickle.dumps(decoding.next_logits)) is decoding.next_logits
    assert pickle.loads(pickle.dumps(sampling.choose_tokens)) is sampling.choose_tokens
