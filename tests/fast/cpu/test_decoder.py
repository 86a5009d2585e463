"""The C decoder against the model itself, and the C choice of tokens against its definition."""

import signal

import pytest
import torch

from tests.conftest import needs_compiler, needs_open_door
from tests.fast.cpu.test_kernels import faulty_copies
from tslm import fast
from tslm.fast import DisagreementWarning, door
from tslm.fast.cpu import build, decoder, sampling
from tslm.fast.cpu.decoder import BFLOAT16_FROM, Decoder, kernel_dtype
from tslm.fast.forms import cpu_multiplies_bfloat16
from tslm.generation import decoding, generate
from tslm.generation.sampling import SamplingRule, choose_tokens
from tslm.model import TransformerConfig, TransformerLM

pytestmark = [needs_compiler, needs_open_door]
CONFIG = TransformerConfig(vocab_size=61, context_length=16, d_model=32, num_layers=2, num_heads=4, d_ff=48)
# Sizes that fill no panel, an odd d_ff, and wide heads.
UNEVEN = TransformerConfig(vocab_size=131, context_length=70, d_model=84, num_layers=1, num_heads=2, d_ff=67)
# Errors of the logits in their standard deviations. Measured: 1e-6, and 4e-3 (eight bits of mantissa).
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
DTYPES = [dtype for dtype in CLOSE if dtype == torch.float32 or cpu_multiplies_bfloat16()]


def _model(config):
    torch.manual_seed(0)
    model = TransformerLM(config)
    with torch.no_grad():
        model.lm_head.weight *= 8  # an untrained model gives nearly equal logits
    return model


def _decoder(model, dtype, batch_size=1, max_length=None):
    return Decoder(model, batch_size, max_length or model.config.context_length, dtype)


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
    logits_of, more = _decoder(model, dtype, rows), _sequences(config, [steps] * rows)
    for step in range(steps):
        if step == 4 and rows > 2:
            del growing[1]
        with torch.inference_mode():
            logits, expected = logits_of(growing).clone(), decoding.uncached_logits(model, growing)
        assert ((logits - expected).square().mean().sqrt() / expected.std()).item() < CLOSE[dtype]
        for row, tokens in growing.items():
            tokens.append(more[row][step])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_depends_on_neither_its_neighbours_nor_the_threads(dtype):
    model, growing = _model(UNEVEN), _sequences(UNEVEN, [5, 70, 1, 33, 64, 8, 9])
    together = _decoder(model, dtype, len(growing))(growing).clone()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for row, tokens in growing.items():
            assert torch.equal(_decoder(model, dtype)({0: tokens})[0], together[row])
    finally:
        torch.set_num_threads(threads)


def test_more_tokens_than_one_call_takes(monkeypatch):
    model, growing = _model(UNEVEN), _sequences(UNEVEN, [50, 3, 20, 1])
    whole = _decoder(model, torch.float32, 4)(growing).clone()
    monkeypatch.setattr(decoder, "MAX_CALL", 7)
    assert torch.equal(_decoder(model, torch.float32, 4)(growing), whole)


def test_generation_uses_the_decoder_and_gives_the_models_tokens():
    model, prompts = _model(CONFIG), [[1, 2, 3], [4], list(range(10)), [7] * 16]
    assert isinstance(decoding.next_logits(model, 4, 16), Decoder)
    expected = generate(model, prompts, 24, temperature=0, use_cache=False)
    assert generate(model, prompts, 24, temperature=0) == expected
    with fast.shut():
        assert isinstance(decoding.next_logits(model, 4, 16), decoding.CachedLogits)
        assert generate(model, prompts, 24, temperature=0) == expected


RULES = {"plain": {}, "top_p": {"top_p": 0.9}, "top_k": {"top_k": 40, "temperature": 0.7}, "tiny_p": {"top_p": 1e-9},
         "both": {"top_k": 500, "top_p": 0.95, "temperature": 1.3}, "cold": {"temperature": 1e-30},
         "greedy": {"temperature": 0}}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("spread", [0.3, 4.0])
def test_choices_are_those_of_the_definition(rule, spread):
    rows, rule, random = 1000, SamplingRule(**rule), torch.Generator().manual_seed(4)
    logits = torch.randn(rows, 3001, generator=random) * spread
    uniform = torch.rand(rows, dtype=torch.float64, generator=random)
    expected = torch.tensor(_choose(choose_tokens.plain, rule, logits, uniform))
    chosen = torch.tensor(_choose(sampling.choose_tokens, rule, logits, uniform))
    # A point within a rounding of the boundary between two tokens may fall to either.
    assert (chosen != expected).sum() <= 1
    assert chosen.unique().numel() > 20


def _choose(function, rule, logits, uniform):
    return function(logits, rule.temperature, rule.top_p, rule.top_k, None if rule.greedy else uniform)


def test_frequencies_pass_the_chi_square_test():
    rule, rows = SamplingRule(temperature=0.8, top_p=0.9), 50_000
    logits = torch.randn(1, 61, generator=torch.Generator().manual_seed(5)) * 2
    uniform = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    chosen = _choose(sampling.choose_tokens, rule, logits.repeat(rows, 1), uniform)
    counts = torch.bincount(torch.tensor(chosen), minlength=61)
    expected = rule.probabilities(logits)[0].double() * rows
    kept = expected > 0
    assert counts[~kept].sum() == 0
    degrees = kept.sum().item() - 1
    chi_square = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum().item()
    assert degrees > 5
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5  # four standard deviations


@pytest.mark.parametrize("choose", [sampling.choose_tokens, choose_tokens.plain])
@pytest.mark.parametrize("rule", [{"top_k": 3}, {"top_p": 0.0489}])  # 0.0489 · 61 = 2.98
def test_of_equal_tokens_the_lowest_ids_are_kept(choose, rule):
    uniform = torch.linspace(0, 1 - 2**-53, 30, dtype=torch.float64)
    assert set(_choose(choose, SamplingRule(**rule), torch.zeros(30, 61), uniform)) == {0, 1, 2}


@pytest.mark.parametrize("choose", [sampling.choose_tokens, choose_tokens.plain])
def test_both_ends_of_the_unit_interval_choose_a_kept_token(choose):
    ends, logits = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), torch.full((2, 61), -1e30)
    logits[:, 7:9] = 1.0
    assert _choose(choose, SamplingRule(top_p=0.9), logits, ends) == [7, 8]


@pytest.mark.parametrize("choose", [sampling.choose_tokens, choose_tokens.plain])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("rule", [{}, {"temperature": 0}])
def test_no_token_is_chosen_from_logits_that_are_not_finite(choose, wrong, rule):
    logits = torch.zeros(2, 61)
    logits[1, 60] = wrong
    uniform = torch.full((2,), 0.5, dtype=torch.float64)
    assert _choose(choose, SamplingRule(**rule), logits, uniform)[1] == -1


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


def test_models_that_the_kernel_does_not_support():
    assert kernel_dtype(_model(CONFIG).double()) is None
    with torch.device("meta"):
        assert kernel_dtype(TransformerLM(CONFIG)) is None
    watched = _model(CONFIG)
    watched.layers[0].register_forward_hook(lambda *_: None)
    assert kernel_dtype(watched) is None
    extended = _model(CONFIG)
    extended.layers[0].register_parameter("more", torch.nn.Parameter(torch.ones(3)))
    assert kernel_dtype(extended) is None


def test_another_eps_in_one_norm_is_not_decoded_with_the_others():
    model = _model(CONFIG)
    assert kernel_dtype(model) is not None
    model.layers[0].ln1.eps = 0.1
    assert kernel_dtype(model) is None


def test_a_layer_of_another_class_is_compared_again(fresh_door):
    class Doubled(type(_model(CONFIG).layers[0].ffn)):
        def forward(self, x):
            return 2 * super().forward(x)

    plain, changed = _model(CONFIG), _model(CONFIG)
    ffn = changed.layers[0].ffn
    changed.layers[0].ffn = Doubled(32, 48)
    changed.layers[0].ffn.load_state_dict(ffn.state_dict())
    assert isinstance(decoding.next_logits(plain, 1, 16), Decoder)
    with pytest.warns(DisagreementWarning, match="next_logits runs as it is written"):
        assert isinstance(decoding.next_logits(changed, 1, 16), decoding.CachedLogits)


@pytest.mark.parametrize("multiplies", sorted({cpu_multiplies_bfloat16(), False}))
def test_a_model_with_weights_in_bfloat16_agrees(monkeypatch, fresh_door, multiplies):
    """Also where the formula is checked with float32 products: the weights are the same, their products are not."""
    monkeypatch.setattr(decoder, "cpu_multiplies_bfloat16", lambda: multiplies)
    assert isinstance(decoding.next_logits(_model(CONFIG).bfloat16(), 1, 16), Decoder)


@pytest.fixture
def fresh_door():
    build.load.cache_clear()
    door.forget()
    yield
    build.load.cache_clear()
    door.forget()


def test_without_a_compiler_generation_gives_the_same_tokens(monkeypatch, fresh_door):
    model, prompts = _model(CONFIG), [[1, 2, 3], [4]]
    expected = generate(model, prompts, 20, temperature=0)
    build.load.cache_clear()
    door.forget()
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.warns(DisagreementWarning, match="the C kernels are missing") as seen:
        found = [generate(model, prompts, 20, temperature=0) for _ in range(2)]
    assert found == [expected] * 2
    assert len(seen) == 1


@pytest.mark.parametrize(("right", "wrong"), [
    ("a * cosine - b * sine", "a * cosine + b * sine"), ("positions[row] + 1, query", "positions[row] + 2, query"),
    ("squares / size + eps", "squares + eps"), ("layer->down, size, m->x, 1", "layer->down, size, m->x, 0")])
def test_a_faulty_decoder_is_not_used_and_named_once(tmp_path, monkeypatch, fresh_door, right, wrong):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(decoder, "SOURCES", faulty_copies(decoder.SOURCES, tmp_path, right, wrong))
    model = _model(CONFIG)
    with pytest.warns(DisagreementWarning, match="next_logits runs as it is written") as seen:
        found = [decoding.next_logits(model, 1, 16) for _ in range(2)]
    assert all(isinstance(each, decoding.CachedLogits) for each in found)
    assert len(seen) == 1


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
