"""The public functions of the tokenizer, with the door open and shut, and with an edited definition."""

import random
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.campaigns.fuzz_inputs import nasty_specials, nasty_text, odd_tokenizer, with_specials
from tslm import Tokenizer, count_pretokens, encode_files, fast, merge_pretokens, train_bpe
from tslm.fast import door
from tslm.tokenizer import bpe, train

REPLACEABLE = [train.count_blocks, train.add_counts, bpe.merge_pairs, bpe.encode_pretokens, bpe.encode_block]


def outcome(call):
    """Return the result of a call, or its error."""
    try:
        return call()
    except ValueError as error:
        return f"{type(error).__name__}: {error}"


def outcomes(text, specials, folder, tokenizer_arguments, max_merges):
    """Return what every public function gives for a text."""
    path = folder / "a.txt"
    path.write_bytes(text.encode() or b"x")
    tokenizer = Tokenizer(*tokenizer_arguments)
    counts = count_pretokens(path, specials, num_workers=1)
    yield counts
    yield merge_pretokens(counts, 256 + len(specials) + max_merges, specials)
    yield train_bpe(path, 256 + len(specials) + max_merges, specials, num_workers=1)
    yield outcome(lambda: tokenizer.encode(text))
    yield outcome(lambda: list(tokenizer.encode_iterable([text[:7], text[7:]])))
    yield outcome(lambda: tokenizer.encode_bytes(text.encode() + b"\xff").tolist())
    yield outcome(lambda: encode_files(tokenizer, path, folder / "ids.bin", num_workers=1).ids.tolist())


def as_list(call):
    """Return the result of a call as a list, or the token that the vocabulary lacks."""
    try:
        return list(call())
    except KeyError as error:
        return f"lacks {error.args[0]!r}"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.sampled_from([3, 40, 400, 10_000]))
def test_replaceable_functions_agree_with_their_definitions(seed, complete, length):
    rng = random.Random(seed)
    specials = nasty_specials(rng)
    text = with_specials(rng, nasty_text(rng, length), specials)
    vocabulary = odd_tokenizer(rng, text, specials, complete=complete)._vocabulary
    blocks = [text[:length].encode(), b"", text.encode() + b"\xff" + b" low lower" * rng.choice([1, 4000])]
    special_bytes = [*vocabulary.special_ids]
    packed = train.count_blocks.plain(blocks, special_bytes)
    counts = train.add_counts.plain([packed])
    words = [*counts]
    assert train.add_counts.plain([train.count_blocks(blocks, special_bytes)]) == counts
    assert train.add_counts([packed, packed]) == train.add_counts.plain([packed, packed])
    assert list(bpe.merge_pairs(counts, 7)) == list(bpe.merge_pairs.plain(counts, 7))
    assert as_list(lambda: bpe.encode_pretokens(words, vocabulary)) == as_list(
        lambda: bpe.encode_pretokens.plain(words, vocabulary))
    for block in blocks:
        assert as_list(lambda block=block: bpe.encode_block(block, vocabulary)) == as_list(
            lambda block=block: bpe.encode_block.plain(block, vocabulary))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.sampled_from([3, 40, 400]))
def test_public_functions_agree_with_the_door_open_and_shut(tmp_path_factory, seed, complete, length):
    rng = random.Random(seed)
    folder = tmp_path_factory.mktemp("text")
    specials = nasty_specials(rng)
    text = with_specials(rng, nasty_text(rng, length), specials)
    tokenizer = odd_tokenizer(rng, text, specials, complete=complete)
    arguments = tokenizer.vocab, tokenizer.merges, tokenizer.special_tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = list(outcomes(text, specials, folder, arguments, max_merges=12))
    with fast.shut():
        assert list(outcomes(text, specials, folder, arguments, max_merges=12)) == found


def test_files_and_texts_that_are_large_agree_with_the_door_open_and_shut(tmp_path):
    rng = random.Random(1)
    words = [" low", " lower", " the", ",", ".\n\n", "é", "<|e|>", " 1234", "'s", *(f" w{n}" for n in range(400))]
    text = "".join(rng.choices(words, k=20_000))
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8", newline="")
    found = []
    for is_open in (True, False):
        with fast.shut() if not is_open else warnings.catch_warnings():
            trained = train_bpe(path, 280, ["<|e|>"], num_workers=1)
            tokenizer = Tokenizer(*trained, ["<|e|>"])
            ids = encode_files(tokenizer, path, tmp_path / "ids.bin", num_workers=1).ids.tolist()
            assert ids == tokenizer.encode(text)
            found.append((trained, ids))
    assert found[0] == found[1]


def edited_counts(blocks, special_tokens, pattern="gpt2"):
    text, sizes, counts = original[train.count_blocks](blocks, special_tokens, pattern)
    return text.upper(), sizes, counts


def edited_sum(parts):
    return {word: 2 * count for word, count in original[train.add_counts](parts).items()}


def edited_merges(counts, max_merges):
    yield from [*original[bpe.merge_pairs](counts, max_merges)][1:]


def edited_pretokens(pretokens, vocabulary):
    return [ids[::-1] for ids in original[bpe.encode_pretokens](pretokens, vocabulary)]


def edited_block(block, vocabulary):
    return original[bpe.encode_block](block, vocabulary)[::-1]


original = {function: function.plain for function in REPLACEABLE}
LONG = b" low lower, lowest" * 2000  # numpy encodes it where there is no compiler


@pytest.mark.parametrize(
    ("function", "edited", "use"),
    [
        (train.count_blocks, edited_counts, lambda path, tokenizer: count_pretokens(path, [], num_workers=1)),
        (train.add_counts, edited_sum, lambda path, tokenizer: count_pretokens(path, [], num_workers=1)),
        (bpe.merge_pairs, edited_merges, lambda path, tokenizer: merge_pretokens({b"low": 5, b"lower": 2}, 259, [])),
        (bpe.encode_pretokens, edited_pretokens, lambda path, tokenizer: tokenizer().encode(" slow xyz")),
        (bpe.encode_block, edited_block, lambda path, tokenizer: tokenizer().encode_bytes(LONG).tolist()),
    ],
)
def test_an_edited_function_changes_the_public_result_and_warns_once(tmp_path, monkeypatch, function, edited, use):
    if not door.is_open():
        pytest.skip("every function runs as it is written: there is nothing to disagree with")
    path = tmp_path / "a.txt"
    path.write_text("low lower lowest " * 30)

    def tokenizer():
        return Tokenizer(*merge_pretokens({b" low": 5, b" lower": 2}, 262, []))

    before = use(path, tokenizer)
    try:
        monkeypatch.setattr(function, "plain", edited)
        door.forget()
        with pytest.warns(fast.DisagreementWarning, match=f"{function.__name__} runs as it is written") as caught:
            after = use(path, tokenizer)
        assert after != before
        assert len(caught) == 1
        assert use(path, tokenizer) == after  # a second warning would be an error
    finally:
        monkeypatch.undo()
        door.forget()
    assert use(path, tokenizer) == before
