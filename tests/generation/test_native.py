"""The C kernel against the model itself: logits, choices, what it refuses, and what it does not disturb."""

import shutil
import signal

import pytest
import torch

from tslm.generation import decoding, generate, native
from tslm.generation.native import BFLOAT16_FROM, NativeModel, kernel_dtype, native_model, relative_error
from tslm.generation.sampling import SamplingRule
from tslm.model import TransformerConfig, TransformerLM
from tslm.model.hardware import cpu_multiplies_bfloat16
from tslm.model.native import build

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="without a C compiler there is no kernel")
CONFIG = TransformerConfig(vocab_size=61, context_length=16, d_model=32, num_layers=2, num_heads=4, d_ff=48)
# Sizes that fill no panel, an odd d_ff, and heads wider than those of the course.
UNEVEN = TransformerConfig(vocab_size=131, context_length=70, d_model=84, num_layers=1, num_heads=2, d_ff=67)
# Error of the logits in their standard deviations, as measured: 1e-6, and 4e-3 (eight bits of mantissa).
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
DTYPES = [dtype for dtype in CLOSE if dtype == torch.float32 or cpu_multiplies_bfloat16()]


def _model(config):
    torch.manual_seed(0)
    model = TransformerLM(config)
    with torch.no_grad():
        model.lm_head.weight *= 8  # an untrained model is almost indifferent; this one has opinions
    return model


def _native(model, dtype, batch_size=1, max_length=None):
    library = build.load(native.SOURCES, dtype, "text is generated")
    return NativeModel(library, model, dtype, batch_size, max_length or model.config.context_length)


def _sequences(config, lengths):
    ids = torch.Generator().manual_seed(3)
    return {row: torch.randint(0, config.vocab_size, (length,), generator=ids).tolist()
            for row, length in enumerate(lengths)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", [CONFIG, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 13])
def test_logits_are_the_models_over_ragged_prompts_and_past_the_context(dtype, config, rows):
    model, steps = _model(config), 8
    lengths = [1 + (config.context_length - 1) * row // max(1, rows - 1) for row in range(rows)][::-1]
    growing = _sequences(config, lengths)
    kernel, more = _native(model, dtype, rows), _sequences(config, [steps] * rows)
    for step in range(steps):
        if step == 4 and rows > 2:
            del growing[1]
        with torch.inference_mode():
            logits, expected = kernel.logits(growing).clone(), decoding.uncached_logits(model, growing)
        assert ((logits - expected).square().mean().sqrt() / expected.std()).item() < CLOSE[dtype]
        for row, tokens in growing.items():
            tokens.append(more[row][step])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_depends_on_neither_its_neighbours_nor_the_threads(dtype):
    model, growing = _model(UNEVEN), _sequences(UNEVEN, [5, 70, 1, 33, 64, 8, 9])
    together = _native(model, dtype, len(growing)).logits(growing).clone()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for row, tokens in growing.items():
            assert torch.equal(_native(model, dtype).logits({0: tokens})[0], together[row])
    finally:
        torch.set_num_threads(threads)


def test_more_tokens_than_one_call_takes(monkeypatch):
    model, growing = _model(UNEVEN), _sequences(UNEVEN, [50, 3, 20, 1])
    whole = _native(model, torch.float32, 4).logits(growing).clone()
    monkeypatch.setattr(native, "CALL", 7)
    assert torch.equal(_native(model, torch.float32, 4).logits(growing), whole)


def test_generation_takes_the_kernel_and_gives_what_the_model_gives(monkeypatch):
    model, prompts = _model(CONFIG), [[1, 2, 3], [4], list(range(10)), [7] * 16]
    expected = generate(model, prompts, 24, temperature=0, use_cache=False)
    monkeypatch.setattr(decoding, "CachedLogits", None)
    assert generate(model, prompts, 24, temperature=0) == expected


RULES = {"plain": {}, "top_p": {"top_p": 0.9}, "top_k": {"top_k": 40, "temperature": 0.7}, "tiny_p": {"top_p": 1e-9},
         "both": {"top_k": 500, "top_p": 0.95, "temperature": 1.3}, "cold": {"temperature": 1e-30},
         "greedy": {"temperature": 0}}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("spread", [0.3, 4.0])
def test_choices_are_those_of_the_torch_form(rule, spread):
    config = TransformerConfig(vocab_size=3001, context_length=4, d_model=4, num_layers=1, num_heads=1, d_ff=4)
    rows, rule, random = 1000, SamplingRule(**rule), torch.Generator().manual_seed(4)
    kernel = _native(_model(config), torch.float32)
    logits = torch.randn(rows, 3001, generator=random) * spread
    uniform = torch.rand(rows, dtype=torch.float64, generator=random)
    expected = rule.choose(logits, uniform)
    chosen = torch.tensor(kernel.choose(rule, logits.clone(), None if rule.greedy else uniform))
    # A point within a rounding of the border between two tokens may fall to either.
    assert (chosen != expected).sum() <= 1
    assert chosen.unique().numel() > 20


def test_frequencies_pass_the_chi_square_test():
    kernel, rule, rows = _native(_model(CONFIG), torch.float32), SamplingRule(temperature=0.8, top_p=0.9), 50_000
    logits = torch.randn(1, 61, generator=torch.Generator().manual_seed(5)) * 2
    uniform = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    counts = torch.bincount(torch.tensor(kernel.choose(rule, logits.repeat(rows, 1), uniform)), minlength=61)
    expected = rule.probabilities(logits)[0].double() * rows
    kept = expected > 0
    assert counts[~kept].sum() == 0
    degrees = kept.sum().item() - 1
    chi_square = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum().item()
    assert degrees > 5
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5  # four standard deviations


@pytest.mark.parametrize("rule", [{"top_k": 3}, {"top_p": 0.0489}])  # 0.0489 · 61 = 2.98
def test_of_equal_tokens_the_lowest_ids_are_kept(rule):
    kernel = _native(_model(CONFIG), torch.float32)
    uniform = torch.linspace(0, 1 - 2**-53, 30, dtype=torch.float64)
    assert set(kernel.choose(SamplingRule(**rule), torch.zeros(30, 61), uniform)) == {0, 1, 2}


def test_the_ends_of_the_unit_interval():
    kernel, ends = _native(_model(CONFIG), torch.float32), torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    logits = torch.full((2, 61), -1e30)
    logits[:, 7:9] = 1.0
    assert kernel.choose(SamplingRule(top_p=0.9), logits, ends) == [7, 8]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("rule", [{}, {"temperature": 0}])
def test_logits_that_are_not_finite_are_not_chosen_from(wrong, rule):
    logits = torch.zeros(2, 61)
    logits[1, 60] = wrong
    uniform = torch.full((2,), 0.5, dtype=torch.float64)
    assert _native(_model(CONFIG), torch.float32).choose(SamplingRule(**rule), logits, uniform)[1] == -1


def test_weights_that_change_between_two_runs_are_seen():
    model = _model(CONFIG)
    before = generate(model, [1, 2], 12, temperature=0)
    model.lm_head.weight.data[before[0][0]] = -model.lm_head.weight.data[before[0][0]]
    after = generate(model, [1, 2], 12, temperature=0)
    assert before != after == generate(model, [1, 2], 12, temperature=0, use_cache=False)


def test_a_small_model_keeps_its_dtype_and_a_large_one_takes_the_processors():
    fast = torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32
    assert kernel_dtype(_model(CONFIG)) == torch.float32
    assert kernel_dtype(_model(CONFIG).bfloat16()) == fast
    with torch.autocast("cpu", torch.bfloat16):
        assert kernel_dtype(_model(CONFIG)) == fast
    large = TransformerConfig(BFLOAT16_FROM // 256, 8, d_model=128, num_layers=1, num_heads=4, d_ff=64)
    with torch.device("meta"):
        large = TransformerLM(large)
    assert large.num_parameters() >= BFLOAT16_FROM
    assert kernel_dtype(large.to_empty(device="cpu")) == fast


def test_models_that_are_not_for_the_kernel():
    assert kernel_dtype(_model(CONFIG).double()) is None
    with torch.device("meta"):
        assert kernel_dtype(TransformerLM(CONFIG)) is None
    watched = _model(CONFIG)
    watched.layers[0].register_forward_hook(lambda *_: None)
    assert kernel_dtype(watched) is None
    changed = _model(CONFIG)
    changed.layers[0].ffn = type("Mine", (type(changed.layers[0].ffn),), {})(32, 48)
    assert kernel_dtype(changed) is None


@pytest.fixture
def _forgetful():
    build.load.cache_clear()
    native._agrees.clear()
    yield
    build.load.cache_clear()
    native._agrees.clear()


@pytest.mark.usefixtures("_forgetful")
def test_without_a_compiler_torch_does_it(monkeypatch, recwarn):
    model, prompts = _model(CONFIG), [[1, 2, 3], [4]]
    expected = generate(model, prompts, 20, temperature=0)
    build.load.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.warns(UserWarning, match="the C kernel is missing"):
        assert generate(model, prompts, 20, temperature=0) == expected
    assert generate(model, prompts, 20, temperature=0) == expected
    assert len(recwarn) == 0


@pytest.mark.usefixtures("_forgetful")
@pytest.mark.parametrize(("right", "wrong"), [
    ("a * cosine - b * sine", "a * cosine + b * sine"), ("positions[row] + 1, query", "positions[row] + 2, query"),
    ("/ size + m->eps", "+ m->eps"), ("layer->down, size, m->x, 1", "layer->down, size, m->x, 0")])
def test_a_kernel_that_computes_something_else_is_refused(tmp_path, monkeypatch, right, wrong):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    copies = tuple(tmp_path / source.name for source in native.SOURCES)
    for source, copy in zip(native.SOURCES, copies, strict=True):
        text = source.read_text(encoding="utf-8").replace("../model/native/kernel.h", str(build.HEADER))
        copy.write_text(text.replace(right, wrong), encoding="utf-8")
    assert right not in copies[0].read_text(encoding="utf-8")
    monkeypatch.setattr(native, "SOURCES", copies)
    model = _model(CONFIG)
    with pytest.warns(UserWarning, match="the C kernel's logits are not the model's"):
        assert native_model(model, 1, 16) is None
    assert native_model(model, 1, 16) is None  # remembered, and not said again


def test_the_check_measures_in_standard_deviations():
    model = _model(CONFIG)
    kernel = _native(model, torch.float32)
    assert relative_error(kernel, model) < 1e-5
    with torch.no_grad():
        model.lm_head.weight *= 2  # the kernel has the weights as they were, and half the logits
    assert relative_error(kernel, model) == pytest.approx(0.5, rel=0.1)  # their mean is not quite 0


def test_ctrl_c_ends_a_long_run_and_leaves_the_model_as_it_was():
    model = _model(CONFIG).train()

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            generate(model, [1, 2], 10**9)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert model.training
    assert generate(model, [1, 2], 5, temperature=0) == generate(model, [1, 2], 5, temperature=0, use_cache=False)
