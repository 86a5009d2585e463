"""The figures of the tokenizer's benchmark: one function per figure, and the list of all of them."""

from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tests.benchmarks import tokenizer_peers as peers
from tests.benchmarks.measure import Figure, Plan, Target, in_turn, run_alone
from tests.benchmarks.scripts import SCRIPTS
from tests.benchmarks.tokenizer_inputs import VOCAB_SIZE, TokenizerInputs
from tslm.errors import UserError
from tslm.tokenizer import END_OF_TEXT, Tokenizer, train_bpe

_STRINGS, _STRING_LENGTH = 300, 500
_SMALL_BYTES, _SMALL_VOCAB_SIZE = 130_000, 500
_CHARACTERS = 1_000_000

TextOf = Callable[[TokenizerInputs], Path]


def plans(size: int) -> list[Plan]:
    """Return all figures in the order of measurement, for a drawn text of `size` bytes."""
    label = f"{size / 1e9:g}GB" if size >= 10**9 else f"{size / 1e6:g}MB"
    drawn, mixed = (lambda inputs: inputs.drawn_text), (lambda inputs: inputs.mixed_text)
    texts = [(f"train_{label}", f"encode_{label}", drawn), ("mixed_train", "mixed_encode", mixed)]
    found = [
        Plan("small_train", None, _small_train),
        Plan("merge_table", None, _merge_table),
        Plan("one_character", "tokenizers", _one_character),
        Plan("strings_300_cold", "tiktoken", _strings_cold),
        Plan("strings_300_warm", "tiktoken", _strings_warm),
        Plan("encode_iterable", "tiktoken", _encode_iterable),
        Plan("encode_iterable_memory", "tiktoken", _encode_iterable_memory),
    ]
    for train, encode, text in texts:
        found.append(Plan(f"{train}_vs_gigatoken", "gigatoken", partial(_train, text=text, peer="gigatoken", limit=1)))
        if text is drawn:
            found.append(Plan("train_memory", "gigatoken", _train_memory))
        found += [
            Plan(f"{encode}_vs_gigatoken", "gigatoken", partial(_encode, text=text, peer="gigatoken", least=0.5)),
            Plan(f"{encode}_vs_tiktoken", "tiktoken", partial(_encode, text=text, peer="tiktoken", least=4)),
        ]
    for peer, limit in (("rustbpe", 1 / 5), ("tokenizers", 1 / 15)):
        for train, _, text in texts:
            found.append(
                Plan(f"{train}_vs_{peer}", peer, partial(_train, text=text, peer=peer, limit=limit, runs=1))
            )
    for script in SCRIPTS:
        text = partial(TokenizerInputs.script_text, script=script)
        # A line without a place to cut takes tiktoken and tokenizers quadratic time: minutes for a few 100 kB.
        alone = script == "dna"
        found += [
            Plan(f"scripts_{script}_train", None if alone else "tokenizers", partial(_train_script, text=text)),
            Plan(f"scripts_{script}_encode", None if alone else "tiktoken", partial(_encode_script, text=text)),
        ]
    return found


def _train_script(inputs: TokenizerInputs, name: str, *, text: TextOf) -> Figure:
    job: dict[str, Any] = {"text": text(inputs), "vocab_size": VOCAB_SIZE}

    def train() -> float:
        return float(run_alone(peers.train_tslm, workers=1, **job).result)

    if name.startswith("scripts_dna"):
        return Figure(name, "s", median(train() for _ in range(inputs.runs)), None, None, Target("ours", "<=", 10),
                      inputs.runs)
    values = in_turn(train, lambda: run_alone(peers.train_tokenizers, **job).result, inputs.runs)
    return Figure(name, "s", *values, "tokenizers", Target("ratio", "<=", 0.5), inputs.runs)


def _encode_script(inputs: TokenizerInputs, name: str, *, text: TextOf) -> Figure:
    path = text(inputs)
    job: dict[str, Any] = {"text": path, "folder": inputs.trained_on(path)}
    our_file, peer_file = inputs.scratch / "ours.bin", inputs.scratch / "peer.bin"

    def encode() -> float:
        return float(run_alone(peers.encode_tslm, output=our_file, workers=1, **job).result)

    if name.startswith("scripts_dna"):
        return Figure(name, "s", median(encode() for _ in range(inputs.runs)), None, None, Target("ours", "<=", 10),
                      inputs.runs)
    peer = partial(run_alone, peers.encode_alone_tiktoken, output=peer_file, **job)
    values = in_turn(encode, lambda: peer().result, inputs.runs)
    _check_same_ids(our_file, peer_file, "tiktoken")
    return Figure(name, "s", *values, "tiktoken", Target("ratio", "<=", 1), inputs.runs)


def _small_train(inputs: TokenizerInputs, name: str) -> Figure:
    path = inputs.scratch / "small.txt"
    # An incomplete character at the end is dropped.
    path.write_bytes(inputs.train_text.encode()[:_SMALL_BYTES].decode(errors="ignore").encode())

    def train() -> object:
        return train_bpe(path, _SMALL_VOCAB_SIZE, [END_OF_TEXT])

    train()
    ours = median(peers.seconds(train) for _ in range(inputs.runs))
    return Figure(name, "s", ours, None, None, Target("ours", "<=", 0.3), inputs.runs)


def _merge_table(inputs: TokenizerInputs, name: str) -> Figure:
    _ = inputs.counts  # finds a wrong file before a process starts
    merge = partial(run_alone, peers.merge_tslm, counts=inputs.counts_path, vocab_size=VOCAB_SIZE)
    ours = median(merge().result for _ in range(inputs.runs))
    return Figure(name, "s", ours, None, None, Target("ours", "<=", 0.5), inputs.runs)


def _one_character(inputs: TokenizerInputs, name: str) -> Figure:
    text, folder = "a" * _CHARACTERS, inputs.tokenizer_folder
    peer = peers.load_tokenizers(folder)

    def ours_fresh() -> float:
        tokenizer = Tokenizer.from_dir(folder)
        return peers.seconds(lambda: tokenizer.encode(text))

    values = in_turn(ours_fresh, lambda: peers.seconds(lambda: peer.encode(text)), inputs.runs)
    return Figure(name, "s", *values, "tokenizers", Target("ours", "<=", 1), inputs.runs)


def _sets_of_strings(inputs: TokenizerInputs) -> list[list[str]]:
    """Return lists of 300 strings of 500 characters; no two strings overlap in the text.

    Raises:
        UserError: The text is too short for two lists.
    """
    text = inputs.train_text.replace(END_OF_TEXT, "")
    strings = [text[at : at + _STRING_LENGTH] for at in range(0, len(text) - _STRING_LENGTH, _STRING_LENGTH)]
    count = len(strings) // _STRINGS
    if count < 2:
        raise UserError(
            f"{inputs.train_file} has {len(text):,} characters, but the figures of 300 strings need "
            f"{2 * _STRINGS * _STRING_LENGTH + _STRING_LENGTH:,}: give a longer text as --train-text"
        )
    return [strings[number::count][:_STRINGS] for number in range(count)]


def _strings_cold(inputs: TokenizerInputs, name: str) -> Figure:
    strings, folder = _sets_of_strings(inputs)[0], inputs.tokenizer_folder
    values = in_turn(
        lambda: _milliseconds_each(Tokenizer.from_dir(folder).encode, strings),
        lambda: _milliseconds_each(peers.load_tiktoken(folder).encode_ordinary, strings),
        inputs.runs,
    )
    return Figure(name, "ms", *values, "tiktoken", Target("ratio", "<=", 2), inputs.runs)


def _strings_warm(inputs: TokenizerInputs, name: str) -> Figure:
    first, *others = _sets_of_strings(inputs)
    ours, peer = Tokenizer.from_dir(inputs.tokenizer_folder), peers.load_tiktoken(inputs.tokenizer_folder)
    _milliseconds_each(ours.encode, first)
    passes = len(others) * inputs.runs
    our_sets, peer_sets = cycle(others), cycle(others)
    values = in_turn(
        lambda: _milliseconds_each(ours.encode, next(our_sets)),
        lambda: _milliseconds_each(peer.encode_ordinary, next(peer_sets)),
        passes,
    )
    for string in first:
        if ours.encode(string) != peer.encode_ordinary(string):
            raise ValueError(f"tiktoken and tslm encode {string!r} differently, so the comparison is not fair")
    return Figure(name, "ms", *values, "tiktoken", Target("ratio", "<=", 2), passes)


def _milliseconds_each(encode: Callable[[str], object], strings: list[str]) -> float:
    def call_for_each() -> None:
        for string in strings:
            encode(string)

    return 1000 * peers.seconds(call_for_each)


def _encode_iterable(inputs: TokenizerInputs, name: str) -> Figure:
    text, folder = inputs.stream_text, inputs.tokenizer_folder
    megabytes = text.stat().st_size / 1e6
    values = in_turn(
        lambda: megabytes / run_alone(peers.stream_tslm, text=text, folder=folder).result,
        lambda: megabytes / run_alone(peers.stream_tiktoken, text=text, folder=folder).result,
        inputs.runs,
    )
    return Figure(name, "MB/s", *values, "tiktoken", Target("ratio", ">=", 1), inputs.runs)


def _encode_iterable_memory(inputs: TokenizerInputs, name: str) -> Figure:
    text, folder = inputs.stream_text, inputs.tokenizer_folder
    values = in_turn(
        lambda: run_alone(peers.stream_memory_tslm, text=text, folder=folder).result / 1e6,
        lambda: run_alone(peers.stream_memory_tiktoken, text=text, folder=folder).result / 1e6,
        1,
    )
    return Figure(name, "MB", *values, "tiktoken", Target("ours", "<=", 1), 1)


def _train(
    inputs: TokenizerInputs, name: str, *, text: TextOf, peer: str, limit: float, runs: int | None = None
) -> Figure:
    path, count = text(inputs), runs or inputs.runs
    theirs = getattr(peers, f"train_{peer}")
    values = in_turn(
        lambda: run_alone(peers.train_tslm, text=path, vocab_size=VOCAB_SIZE, workers=inputs.workers).result,
        lambda: run_alone(theirs, text=path, vocab_size=VOCAB_SIZE).result,
        count,
    )
    return Figure(name, "s", *values, peer, Target("ratio", "<=", limit), count)


def _train_memory(inputs: TokenizerInputs, name: str) -> Figure:
    job: dict[str, Any] = {"text": inputs.drawn_text, "vocab_size": VOCAB_SIZE, "sample_memory": True}
    values = in_turn(
        lambda: run_alone(peers.train_tslm, workers=inputs.workers, **job).peak_bytes / 1e6,
        lambda: run_alone(peers.train_gigatoken, **job).peak_bytes / 1e6,
        inputs.runs,
    )
    return Figure(name, "MB", *values, "gigatoken", Target("ours", "<=", 400), inputs.runs)


def _encode(inputs: TokenizerInputs, name: str, *, text: TextOf, peer: str, least: float) -> Figure:
    path = text(inputs)
    job: dict[str, Any] = {"text": path, "folder": inputs.trained_on(path)}
    megabytes = path.stat().st_size / 1e6
    our_file, peer_file = inputs.scratch / "ours.bin", inputs.scratch / "peer.bin"
    own_workers: dict[str, Any] = {} if peer == "gigatoken" else {"workers": inputs.workers}
    values = in_turn(
        lambda: megabytes / run_alone(peers.encode_tslm, output=our_file, workers=inputs.workers, **job).seconds,
        lambda: megabytes / run_alone(getattr(peers, f"encode_{peer}"), output=peer_file, **own_workers, **job).seconds,
        inputs.runs,
    )
    _check_same_ids(our_file, peer_file, peer)
    for file in (our_file, peer_file):
        file.unlink()
    return Figure(name, "MB/s", *values, peer, Target("ratio", ">=", least), inputs.runs)


def _check_same_ids(our_file: Path, peer_file: Path, peer: str) -> None:
    """Check that two files of uint16 ids are equal.

    Raises:
        ValueError: They differ, so the two sides did different work.
    """
    ours, theirs = (np.memmap(file, dtype="<u2", mode="r") for file in (our_file, peer_file))
    if not np.array_equal(ours, theirs):
        shorter = min(len(ours), len(theirs))
        at = next(iter(np.flatnonzero(ours[:shorter] != theirs[:shorter])), shorter)
        raise ValueError(f"the ids of {peer} and tslm differ from token {at:,} on, so the comparison is not fair")
