"""The decoding loop: prompts of token ids are continued by one token per sequence and step.

`generate` collects what `stream` yields. The logits of a step come from a `NextLogits`: with a key-value cache
(`CachedLogits`, or its substitute in C), or without one (`uncached_logits`, the definition).

Shapes: B sequences, T positions, D d_model, V vocab_size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from operator import index
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from tslm.errors import UserError
from tslm.fast import replaceable
from tslm.generation.sampling import SamplingRule, choose_tokens, is_whole
from tslm.model import TransformerConfig, TransformerLM
from tslm.model.dtypes import matmul_dtype
from tslm.model.kv_cache import KeyValueCache

# Logits (B, V) of the next token of each unfinished sequence, given {row: all its tokens so far}.
NextLogits = Callable[[dict[int, list[int]]], Tensor]


def generate(
    model: TransformerLM, prompt_ids: Sequence[int] | Sequence[Sequence[int]], max_new_tokens: int = 256, *,
    temperature: float = 1.0, top_p: float = 1.0, top_k: int | None = None, stop_token: int | None = None,
    generator: torch.Generator | None = None, vocab_size: int | None = None, use_cache: bool = True,
) -> list[list[int]]:
    """Continue each prompt by up to `max_new_tokens` tokens; `stream` yields the same tokens step by step.

    Args:
        model: a TransformerLM; it runs in eval mode and without gradients, and gets its mode back.
        prompt_ids: one prompt or several of any lengths, each a list of token ids.
        max_new_tokens: at most this many tokens for each prompt.
        temperature: the logits are divided by it; 0 takes the most likely token. See `SamplingRule`.
        top_p: draw from the smallest set of most likely tokens whose probabilities reach this sum.
        top_k: draw from this many most likely tokens.
        stop_token: the id that ends a sequence.
        generator: source of the random numbers, torch's global one by default.
        vocab_size: only ids below this are chosen.
        use_cache: whether keys and values of earlier tokens are kept.

    Returns:
        For each prompt the new tokens only, without the stop token. One prompt gives a list of one.

    Raises:
        UserError: as in `stream`.

    Example:
        >>> generate(model, [[5, 7], [5]], max_new_tokens=3, temperature=0)  # doctest: +SKIP
        [[11, 2, 2], [7, 11, 2]]
    """
    prompts = _as_prompts(prompt_ids)
    new: list[list[int]] = [[] for _ in prompts]
    for tokens in stream(model, prompts, max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
                         stop_token=stop_token, generator=generator, vocab_size=vocab_size, use_cache=use_cache):
        for sequence, token in zip(new, tokens, strict=True):
            if token is not None:
                sequence.append(token)
    return new


def stream(
    model: TransformerLM, prompt_ids: Sequence[int] | Sequence[Sequence[int]], max_new_tokens: int = 256, *,
    temperature: float = 1.0, top_p: float = 1.0, top_k: int | None = None, stop_token: int | None = None,
    generator: torch.Generator | None = None, vocab_size: int | None = None, use_cache: bool = True,
) -> Iterator[list[int | None]]:
    """Yield, step by step, the next token of each sequence, and None for a sequence that has reached its stop token.

    A token is predicted from at most the last `context_length` tokens, at positions 0, 1, …. Once a sequence is longer,
    its window slides, and the keys of all its tokens change with their positions. So the cache serves a sequence of up
    to context_length tokens; after that, each step computes the whole window.

    On a CPU a C kernel may compute the steps (fast/cpu/decoder.py), and multiplies a model of millions of weights in
    bfloat16 if the processor does. The same seed gives the same tokens on the same machine. The kernel uses the weights
    as they are at the first step.

    Args:
        model: a TransformerLM; it runs in eval mode and without gradients, and gets its mode back.
        prompt_ids: one prompt or several of any lengths, each a list of token ids.
        max_new_tokens: at most this many steps.
        temperature: see `SamplingRule`, as for top_p and top_k.
        top_p: share of probability kept.
        top_k: number of tokens kept.
        stop_token: the id that ends a sequence; it is not yielded.
        generator: source of the random numbers, torch's global one by default. Each step takes one number per prompt,
            also for finished sequences, so the end of one sequence does not change the others.
        vocab_size: only ids below this are chosen; for a tokenizer with fewer entries than the model has rows.
        use_cache: False computes every step from the tokens alone, in the model's own dtype: slow, and the same result
            up to rounding.

    Raises:
        UserError: an option is out of range, a prompt is empty or holds an id outside the vocabulary, or the model
            gives logits that are not finite.
    """
    rule = SamplingRule(temperature, top_p, top_k)
    check_model(model)
    rows, context = model.config.vocab_size, model.config.context_length
    vocab_size = rows if vocab_size is None else vocab_size
    if not 1 <= vocab_size <= rows:
        raise UserError(f"vocab_size is {vocab_size}; the model has {rows} rows, so it must be 1 to {rows}")
    if not is_whole(max_new_tokens):
        raise UserError(f"max_new_tokens is {max_new_tokens}; it must be a whole number of at least 0")
    if stop_token is not None and not is_whole(stop_token, 0, vocab_size - 1):
        raise UserError(f"stop_token is {stop_token}; the token ids go from 0 to {vocab_size - 1}")
    prompts = _as_prompts(prompt_ids)
    for prompt in prompts:
        if not prompt:
            raise UserError("a prompt is empty; put at least one token into it, such as the id of <|endoftext|>")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            wrong = next(token for token in prompt if not 0 <= token < vocab_size)
            raise UserError(f"a prompt holds the token id {wrong}; the token ids go from 0 to {vocab_size - 1}, so the "
                            "prompt may come from another tokenizer")
    longest = max(map(len, prompts), default=0)
    if longest > context:
        warnings.warn(f"a prompt of {longest} tokens is longer than the model's context of {context}; only its last "
                      f"{context} tokens are used", stacklevel=2)
    sequences = [prompt[-context:] for prompt in prompts]
    return _steps(model, sequences, max_new_tokens, rule, stop_token, generator, vocab_size, use_cache)


@torch.inference_mode()
def _steps(model: TransformerLM, sequences: list[list[int]], max_new_tokens: int, rule: SamplingRule,
           stop_token: int | None, generator: torch.Generator | None, vocab_size: int, use_cache: bool,
           ) -> Iterator[list[int | None]]:
    growing = dict(enumerate(sequences))
    was_training = model.training
    model.eval()
    try:
        max_length = min(model.config.context_length, max(map(len, sequences), default=0) + max_new_tokens)
        logits_of = next_logits(model, len(sequences), max_length) if use_cache else partial(uncached_logits, model)
        for _ in range(max_new_tokens):
            if not growing:
                return
            logits = logits_of(growing)[:, :vocab_size]
            uniform = None
            if not rule.greedy:
                device = "cpu" if generator is None else generator.device
                uniform = torch.rand(len(sequences), dtype=torch.float64, generator=generator, device=device)
                if len(growing) < len(sequences):
                    uniform = uniform[list(growing)]
            chosen = choose_tokens(logits, rule.temperature, rule.top_p, rule.top_k, uniform)
            if min(chosen) < 0:
                raise UserError("the model's logits are not finite, because its training diverged or its file is "
                                "damaged: use an earlier checkpoint")
            tokens: list[int | None] = [None] * len(sequences)
            for row, token in zip(list(growing), chosen, strict=True):
                if token == stop_token:
                    del growing[row]
                else:
                    growing[row].append(token)
                    tokens[row] = token
            if growing:
                yield tokens
    finally:
        model.train(was_training)


@replaceable
def next_logits(model: TransformerLM, batch_size: int, max_length: int) -> NextLogits:
    """Return what computes the logits of each step of a run, with a key-value cache.

    Args:
        model: computes the logits.
        batch_size: number of sequences, B.
        max_length: the largest length of a sequence, at most context_length.
    """
    return CachedLogits(model, max_length)


class CachedLogits:
    """`NextLogits` with a cache: the first call computes the prompts, each later one only the newest tokens."""

    def __init__(self, model: TransformerLM, max_length: int) -> None:
        self.model, self.max_length = model, max_length
        self.cache: KeyValueCache | None = None
        self.rows: list[int] = []  # the sequences in the cache

    def __call__(self, growing: dict[int, list[int]]) -> Tensor:
        """Logits (B, V) after each sequence, in the order of `growing`."""
        if self.cache is None:
            return self._read_prompts(growing)
        context = self.model.config.context_length
        cached = {row: tokens for row, tokens in growing.items() if len(tokens) <= context}
        if not cached:
            return uncached_logits(self.model, growing)
        logits = self._advance(self.cache, cached)
        if len(cached) == len(growing):
            return logits
        slid = {row: tokens for row, tokens in growing.items() if row not in cached}
        by_row = dict(zip([*cached, *slid], [*logits, *uncached_logits(self.model, slid)], strict=True))
        return torch.stack([by_row[row] for row in growing])

    def _read_prompts(self, growing: dict[int, list[int]]) -> Tensor:
        self.rows, weight = list(growing), self.model.lm_head.weight
        self.cache = KeyValueCache(self.model.config, len(self.rows), self.max_length, matmul_dtype(weight),
                                   weight.device)
        self.cache.length = max(map(len, growing.values()))
        return _last_logits(self.model, list(growing.values()), self.cache)

    def _advance(self, cache: KeyValueCache, growing: dict[int, list[int]]) -> Tensor:
        if len(growing) < len(self.rows):
            cache.keep([self.rows.index(row) for row in growing])
            self.rows = list(growing)
        sequences, device = list(growing.values()), self.model.lm_head.weight.device
        newest = torch.tensor([tokens[-1:] for tokens in sequences], device=device)  # (B, 1)
        positions = torch.tensor([[len(tokens) - 1] for tokens in sequences], device=device)
        cache.length = max(map(len, sequences))
        return self.model(newest, positions, cache)[:, -1]  # type: ignore[no-any-return]


def uncached_logits(model: TransformerLM, growing: dict[int, list[int]]) -> Tensor:
    """`NextLogits` from the last context_length tokens of each sequence, without a cache: the definition."""
    return _last_logits(model, [tokens[-model.config.context_length :] for tokens in growing.values()], None)


def _last_logits(model: TransformerLM, sequences: list[list[int]], cache: KeyValueCache | None) -> Tensor:
    """Logits (B, V) after the last token of each sequence, from one pass over all of them, padded on the right.

    Attention is causal, so the padding after a sequence's last token does not change its logits.
    """
    device = model.lm_head.weight.device
    length = max(map(len, sequences))
    padded = torch.tensor([tokens + [0] * (length - len(tokens)) for tokens in sequences], device=device)  # (B, T)
    last = torch.tensor([len(tokens) - 1 for tokens in sequences], device=device)
    hidden = model.hidden(padded, cache=cache)[torch.arange(len(sequences), device=device), last]  # (B, D)
    return model.lm_head(hidden)  # type: ignore[no-any-return]


def check_model(model: object) -> None:
    """Check that a model is one, and not a run or a path.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(getattr(model, "config", None), TransformerConfig):
        raise UserError(f"model is a {type(model).__name__}, but it must be a TransformerLM, such as "
                        "tslm.load_run('best').model")


def _as_prompts(prompt_ids: Sequence[int] | Sequence[Sequence[int]]) -> list[list[int]]:
    """Return prompts as lists of ids; a tensor or an array of ids is taken, too."""
    values: Any = prompt_ids.tolist() if hasattr(prompt_ids, "tolist") else prompt_ids
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        prompts = [values] if values and isinstance(values[0], SupportsIndex) else values
        with suppress(TypeError):  # of what is no list, and of what is no id
            return [list(map(index, prompt)) for prompt in prompts]
    found = str(prompt_ids)
    raise UserError(f"prompt_ids is {found if len(found) <= 60 else found[:60] + ' …'}, but it must be token ids: give "
                    "tokenizer.encode(text), or use tslm.complete(model, tokenizer, [text]) for texts")
