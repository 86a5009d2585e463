"""Decoding: with the cache equal to without it, alone equal to in a batch, the sliding window, ends and errors."""

import contextlib

import pytest
import torch

from tslm import fast
from tslm.generation import generate, stream
from tslm.model import TransformerConfig, TransformerLM

CONFIG = TransformerConfig(vocab_size=61, context_length=16, d_model=32, num_layers=2, num_heads=4, d_ff=48)
PROMPTS = [[1, 2, 3], [4], list(range(10)), [7] * 16]
SEEDED = {"plain": {}, "top_p": {"top_p": 0.8}, "top_k": {"top_k": 5, "temperature": 0.7}}


@pytest.fixture(autouse=True, params=["open", "shut"])
def _door(request):
    with fast.shut() if request.param == "shut" else contextlib.nullcontext():
        yield


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = TransformerLM(CONFIG)
    with torch.no_grad():
        model.lm_head.weight *= 8  # an untrained model gives nearly equal logits
    return model


def _seed(seed=5):
    return torch.Generator().manual_seed(seed)


def _greedy_by_definition(model, prompt, steps):
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            tokens.append(model(torch.tensor(tokens[-CONFIG.context_length :]))[-1].argmax().item())
    return tokens[len(prompt) :]


def test_greedy_follows_the_definition_past_the_context(model):
    expected = [_greedy_by_definition(model, prompt, 24) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in expected}) == len(PROMPTS)
    assert generate(model, PROMPTS, 24, temperature=0) == expected
    assert generate(model, PROMPTS, 24, temperature=0, use_cache=False) == expected


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_in_a_ragged_batch_gives_what_it_gives_alone(model, prompt):
    together = generate(model, PROMPTS, 20, temperature=0)[PROMPTS.index(prompt)]
    assert generate(model, prompt, 20, temperature=0) == [together]


@pytest.mark.parametrize("options", SEEDED.values(), ids=SEEDED.keys())
@pytest.mark.parametrize("stop_token", [None, 8])
def test_cached_sampling_equals_uncached_sampling(model, options, stop_token):
    prompts = PROMPTS * 3
    cached, uncached = (generate(model, prompts, 24, stop_token=stop_token, generator=_seed(), use_cache=use, **options)
                        for use in (True, False))
    assert cached == uncached
    assert len({tuple(tokens) for tokens in cached}) > len(PROMPTS)  # the draws differ between equal prompts


def test_the_stop_token_ends_a_sequence_and_is_left_out(model):
    free = generate(model, PROMPTS, 12, temperature=0)
    stop = free[0][4]
    expected = [tokens[: tokens.index(stop)] if stop in tokens else tokens for tokens in free]
    assert len(expected[0]) <= 4
    assert generate(model, PROMPTS, 12, temperature=0, stop_token=stop) == expected


def test_the_end_of_one_sequence_does_not_change_the_others(model):
    free = generate(model, PROMPTS, 12, generator=_seed())
    stop = free[1][3]
    stopped = generate(model, PROMPTS, 12, generator=_seed(), stop_token=stop)
    assert stopped == [tokens[: tokens.index(stop)] if stop in tokens else tokens for tokens in free]


def test_stream_yields_step_by_step_what_generate_collects(model):
    free = generate(model, PROMPTS, 12, temperature=0)
    stop = free[2][5]
    steps = list(stream(model, PROMPTS, 12, temperature=0, stop_token=stop))
    collected = [[step[row] for step in steps if step[row] is not None] for row in range(len(PROMPTS))]
    assert collected == generate(model, PROMPTS, 12, temperature=0, stop_token=stop)
    for row in range(len(PROMPTS)):
        ended = [step[row] is None for step in steps]
        assert ended == sorted(ended)  # once None, always None


def test_the_same_generator_gives_the_same_tokens_and_another_seed_gives_others(model):
    first, again, other = (generate(model, PROMPTS, 8, generator=_seed(seed)) for seed in (1, 1, 2))
    assert first == again != other
    torch.manual_seed(3)
    from_global = generate(model, PROMPTS, 8)
    torch.manual_seed(3)
    assert generate(model, PROMPTS, 8) == from_global


@pytest.mark.parametrize("training", [True, False])
def test_the_model_gets_its_mode_back_and_no_gradient(model, training):
    model.train(training)
    steps = stream(model, [1, 2], 5)
    next(steps)
    assert not model.training
    assert torch.is_grad_enabled()  # between two steps the caller's setting holds
    steps.close()
    assert model.training is training
    generate(model, [1, 2], 3)
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_generation_under_bfloat16_autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        cached, uncached = (generate(model, PROMPTS, 3, temperature=0, use_cache=use) for use in (True, False))
    assert cached == uncached


def test_only_ids_below_vocab_size_are_chosen(model):
    free = generate(model, PROMPTS, 20, generator=_seed())
    limited = generate(model, PROMPTS, 20, generator=_seed(), vocab_size=20)
    assert max(map(max, free)) >= 20 > max(map(max, limited))


def test_nothing_to_do(model):
    assert generate(model, [], 5) == []
    assert generate(model, [[1], [2]], 0) == [[], []]
    assert list(stream(model, [], 5)) == []


def test_a_prompt_beyond_the_context_keeps_its_end_with_a_warning(model):
    long = [index % CONFIG.vocab_size for index in range(40)]
    with pytest.warns(UserWarning, match="a prompt of 40 tokens is longer than the model's context of 16"):
        cut = generate(model, [long, [3]], 5, temperature=0)
    assert cut == generate(model, [long[-16:], [3]], 5, temperature=0)


@pytest.mark.parametrize(("prompt", "tokens", "options", "message"), [
    ([[1], []], 5, {}, "a prompt is empty"), ([], -1, {}, "max_new_tokens is -1"),
    ([[1, 61]], 5, {}, "the token id 61.*from 0 to 60"), ([[-1]], 5, {}, "the token id -1"),
    ([1], 5, {"temperature": -1.0}, "temperature is -1.0"), ([1], 5, {"top_p": 2.0}, "top_p is 2.0"),
    ([1], 5, {"top_k": 0}, "top_k is 0"), ([1], 5, {"vocab_size": 62}, "vocab_size is 62"),
    ([1], 5, {"stop_token": 61}, "stop_token is 61")])
def test_bad_arguments_are_refused_before_the_first_step(model, prompt, tokens, options, message):
    with pytest.raises(ValueError, match=message):
        stream(model, prompt, tokens, **options)


def test_a_broken_model_is_named_instead_of_sampled_from(model):
    with torch.no_grad():
        model.ln_final.weight[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        generate(model, [1], 5)
