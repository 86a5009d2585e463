"""Generation of text from text prompts, whole or piece by piece."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch

from tslm.errors import UserError
from tslm.generation.decoding import check_model, generate, stream
from tslm.generation.sampling import is_whole
from tslm.model import TransformerLM
from tslm.tokenizer import Tokenizer


class Completion(NamedTuple):
    """One generated text.

    Attributes:
        prompt: the prompt as it was given.
        text: what the model added.
        tokens: number of tokens that were generated up to the end, including those of a text in `stop`.
        stop_reason: "stop_token" if the model ended the text itself, "length" if max_new_tokens cut it, "stop" if a
            text in `stop` ended it.
    """

    prompt: str
    text: str
    tokens: int
    stop_reason: Literal["stop_token", "length", "stop"]


def complete(model: TransformerLM, tokenizer: Tokenizer, prompts: Iterable[str], max_new_tokens: int = 256, *,
             temperature: float = 1.0, top_p: float = 1.0, top_k: int | None = None, seed: int | None = None,
             batch_size: int = 32, prefix: Sequence[int] | None = None, allow_special: bool = False,
             stop: Sequence[str] = ()) -> list[Completion]:
    """Continue every prompt up to the tokenizer's first special token, a text in `stop` or `max_new_tokens`.

    Args:
        model: the language model.
        tokenizer: the tokenizer that it was trained with.
        prompts: texts; an empty one asks for a text from its beginning.
        max_new_tokens: at most this many tokens per prompt.
        temperature: see `SamplingRule`, as for top_p and top_k.
        top_p: share of probability kept.
        top_k: number of tokens kept.
        seed: fixes the random numbers of the whole call; None takes torch's global generator.
        batch_size: prompts that run together.
        prefix: the ids that preceded documents in training; None for `default_prefix`.
        allow_special: whether special tokens are recognized in prompts; else their spelling is text.
        stop: texts that end a continuation, which does not include them; see `cut_at`.

    Returns:
        One `Completion` per prompt, in order.

    Raises:
        UserError: `prompts` is one text or holds something else, a text in `stop` is empty, `batch_size` is no whole
            number of at least 1, or as `stream` and `encode_prompt` do.
    """
    if isinstance(prompts, str):
        raise UserError(f"prompts is the text {prompts[:40]!r}; give a list of texts, such as [{prompts[:40]!r}]")
    prompts = list(prompts)
    if wrong := [str(prompt)[:40] for prompt in prompts if not isinstance(prompt, str)]:
        raise UserError(f"prompts holds {wrong[0]}, which is no text; give a list of texts")
    if not is_whole(batch_size, 1):
        raise UserError(f"batch_size is {batch_size}; it must be a whole number of at least 1")
    check_model(model)
    generator = _generator(seed)
    completions = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        new = generate(model, [encode_prompt(tokenizer, prompt, prefix, allow_special) for prompt in batch],
                       max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
                       stop_token=tokenizer.separator,
                       generator=generator, vocab_size=tokenizer.vocab_size)
        for prompt, ids in zip(batch, new, strict=True):
            rest = iter(ids)
            text = "".join(cut_at(decode_stream(tokenizer, rest), stop))
            reason: Literal["stop_token", "length", "stop"] = "stop_token" if len(ids) < max_new_tokens else "length"
            if len(text) < len(tokenizer.decode(ids)):
                reason = "stop"
            completions.append(Completion(prompt, text, len(ids) - len(list(rest)), reason))
    return completions


def stream_text(model: TransformerLM, tokenizer: Tokenizer, prompt: str, max_new_tokens: int = 256, *,
                temperature: float = 1.0, top_p: float = 1.0, top_k: int | None = None,
                seed: int | None = None, prefix: Sequence[int] | None = None, allow_special: bool = False,
                stop: Sequence[str] = ()) -> Iterator[str]:
    """Yield the continuation of one prompt as soon as it is readable; the pieces join to the text of `complete`.

    The arguments and errors are those of `complete`.
    """
    generator = _generator(seed)
    ids = encode_prompt(tokenizer, prompt, prefix, allow_special)
    steps = stream(model, ids, max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
                   stop_token=tokenizer.separator, generator=generator, vocab_size=tokenizer.vocab_size)
    return cut_at(decode_stream(tokenizer, (token for (token,) in steps if token is not None)), stop)


def cut_at(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Yield pieces of a text up to the first text in `stop`, which may span pieces; no part of it is yielded.

    Of several texts, the one that is complete first ends the text; of those that end at one place, the longest. So the
    result depends on the text alone, not on how it is divided. Characters that may begin a text in `stop` are held
    back until it is known that they do not. Nothing is read after a text in `stop`.

    Raises:
        UserError: a text in `stop` is empty.

    Example: the pieces "a st", "op b" with "stop" give "a ".
    """
    if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
        raise UserError(f"stop is {stop!r}; give a list of texts of at least one character each")
    return _cut_at(iter(pieces), stop)


def _cut_at(pieces: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    held = ""
    for piece in pieces:
        held += piece
        places = [(start + len(text), start) for text in stop if (start := held.find(text)) >= 0]
        if places:
            held = held[: min(places)[1]]
            break
        kept = max((size for text in stop for size in range(1, len(text)) if held.endswith(text[:size])), default=0)
        if shown := held[: len(held) - kept]:
            yield shown
        held = held[len(shown) :]
    if held:
        yield held


def decode_stream(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Decode token by token; bytes of an incomplete character are held back until the character is complete.

    The pieces join to `tokenizer.decode(ids)`, and none of them is empty.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in ids:
        if piece := decoder.decode(tokenizer.vocab[token]):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def encode_prompt(
    tokenizer: Tokenizer, prompt: str, prefix: Sequence[int] | None = None, allow_special: bool = False
) -> list[int]:
    """Return the ids of a prompt, after those that preceded documents in training.

    A prompt that starts with the first special token is taken as it is, if special tokens are recognized.

    Args:
        tokenizer: the tokenizer.
        prompt: the beginning of a text; an empty one asks for a text from its beginning.
        prefix: the ids that preceded documents; None for `default_prefix`.
        allow_special: whether special tokens are recognized in the prompt; else their spelling is text.

    Raises:
        UserError: there are no ids, because the prompt is empty and nothing preceded documents.
    """
    check_tokenizer(tokenizer)
    ids = tokenizer.encode(prompt, allow_special=allow_special)
    if not (allow_special and ids and ids[0] == tokenizer.separator):
        ids = [*(default_prefix(tokenizer) if prefix is None else prefix), *ids]
    if not ids:
        raise UserError("the prompt is empty, and nothing preceded the texts that the model was trained on, "
                        "so it cannot begin a text: give at least one character")
    return ids


def check_tokenizer(tokenizer: object) -> None:
    """Check that a tokenizer is one.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(f"tokenizer is a {type(tokenizer).__name__}, but it must be a Tokenizer, such as "
                        "tslm.load_run('best').tokenizer")


def _generator(seed: int | None) -> torch.Generator | None:
    if seed is not None and not is_whole(seed, -(2**63), 2**64 - 1):
        raise UserError(f"seed is {seed}; it must be a whole number from {-(2**63)} to {2**64 - 1}")
    return None if seed is None else torch.Generator().manual_seed(seed)


def default_prefix(tokenizer: Tokenizer) -> list[int]:
    r"""Return what precedes documents in the embedded corpus and in TinyStories.

    Their files hold `The end.\n<|endoftext|>\nOnce upon a time`, so it is the separator and a line break.
    """
    return [] if tokenizer.separator is None else [tokenizer.separator, *tokenizer.encode("\n")]
