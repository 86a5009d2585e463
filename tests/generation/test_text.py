"""Texts in, texts out: prompts and their start token, characters that tokens share, ends, seeds and batches."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tslm.errors import UserError
from tslm.generation import Completion, complete, decode_stream, encode_prompt, generate, stream_text
from tslm.generation.text import cut_at
from tslm.model import TransformerConfig, TransformerLM
from tslm.tokenizer import Tokenizer

END = "<|endoftext|>"
BYTES = {i: bytes([i]) for i in range(256)}
TOKENIZER = Tokenizer(BYTES | {256: b"th", 257: b"the"}, [(b"t", b"h"), (b"th", b"e")], [END])  # END becomes 258
PROMPTS = ["the cat", "", "Ein Igel saß", "x"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    # Two rows more than the tokenizer has entries, as when training stopped short of the vocabulary asked for.
    model = TransformerLM(TransformerConfig(vocab_size=261, context_length=32, d_model=32, num_layers=1, num_heads=2,
                                            d_ff=48))
    with torch.no_grad():
        model.lm_head.weight *= 4
        model.lm_head.weight[258] *= 2
    return model


def test_a_prompt_begins_as_texts_begin_in_the_training_data():
    newline = ord("\n")
    assert encode_prompt(TOKENIZER, "the") == [258, newline, 257]
    assert encode_prompt(TOKENIZER, "") == [258, newline]
    assert encode_prompt(TOKENIZER, f"{END}the", allow_special=True) == [258, 257]  # taken as it is
    assert encode_prompt(TOKENIZER, f"{END}\nthe", allow_special=True) == encode_prompt(TOKENIZER, "the")
    assert encode_prompt(TOKENIZER, "the", prefix=[258]) == [258, 257]
    assert encode_prompt(TOKENIZER, "the", prefix=[]) == [257]


def test_a_special_token_in_a_prompt_is_text_unless_it_is_allowed():
    text = f"a{END}b"
    assert encode_prompt(TOKENIZER, text, prefix=[]) == [*text.encode()]
    assert encode_prompt(TOKENIZER, text, prefix=[], allow_special=True) == [97, 258, 98]
    assert encode_prompt(TOKENIZER, f"{END}the", prefix=[258])[0] == 258
    assert encode_prompt(TOKENIZER, f"{END}the", prefix=[258])[1] == ord("<")


@pytest.mark.parametrize("prompt", ["", "the", " the", "\n the", "Once upon"])
def test_a_prompt_has_the_ids_that_it_has_inside_a_corpus(prompt):
    corpus = TOKENIZER.encode(f"the end.\n{END}\n{prompt}")
    ids = encode_prompt(TOKENIZER, prompt)
    assert corpus[-len(ids) :] == ids


def test_without_a_start_token_the_prompt_stands_alone_and_may_not_be_empty():
    plain = Tokenizer(BYTES, [])
    assert encode_prompt(plain, "ab") == [97, 98]
    with pytest.raises(ValueError, match="the prompt is empty, and nothing preceded the texts"):
        encode_prompt(plain, "")


def test_complete_reports_text_tokens_and_the_reason_for_the_end(model):
    completions = complete(model, TOKENIZER, PROMPTS * 8, 12, seed=1, batch_size=5)
    assert [completion.prompt for completion in completions] == PROMPTS * 8
    assert {completion.stop_reason for completion in completions} == {"stop_token", "length"}
    for completion in completions:
        assert isinstance(completion, Completion)
        assert END not in completion.text
        assert completion.tokens == 12 if completion.stop_reason == "length" else completion.tokens < 12


def test_complete_follows_its_seed(model):
    first, again, other = (complete(model, TOKENIZER, PROMPTS, 12, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_model_with_more_rows_than_the_tokenizer_has_entries_never_uses_them(model):
    with torch.no_grad():
        model.lm_head.weight[259:] *= 50
    complete(model, TOKENIZER, PROMPTS, 12, seed=0)  # decoding an id of 259 or 260 would raise
    "".join(stream_text(model, TOKENIZER, "the", 12, seed=0))


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"seed": 3, "top_p": 0.9}, {"seed": 4, "top_k": 20}])
def test_streamed_pieces_join_to_the_completion(model, prompt, options):
    (completion,) = complete(model, TOKENIZER, [prompt], 20, **options)
    assert "".join(stream_text(model, TOKENIZER, prompt, 20, **options)) == completion.text


@given(st.lists(st.integers(0, 258)))
def test_pieces_of_any_tokens_join_to_their_decoding(ids):
    pieces = list(decode_stream(TOKENIZER, ids))
    assert "".join(pieces) == TOKENIZER.decode(ids)
    assert all(pieces)


def test_a_character_in_several_tokens_appears_when_it_is_complete():
    ids = list("aß€🦔".encode())
    shown = []

    def watched():
        for index, token in enumerate(ids):
            yield token
            shown.append(index)

    pieces = [(piece, len(shown)) for piece in decode_stream(TOKENIZER, watched())]
    assert pieces == [("a", 0), ("ß", 2), ("€", 5), ("🦔", 9)]


def test_a_character_that_is_cut_off_at_the_end_is_shown_as_such():
    assert list(decode_stream(TOKENIZER, [97, 0xE2, 0x82])) == ["a", "�"]


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_a_text_ends_before_the_first_complete_stop_text_however_it_is_divided(text, stop, data):
    ends = [(end, end - len(each)) for each in stop for end in range(len(text) + 1) if text[:end].endswith(each)]
    expected = text[: min(ends)[1]] if ends else text
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    pieces = [text[one:other] for one, other in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    read, shown = [], ""
    for piece in cut_at((read.append(each) or each for each in pieces), stop):
        assert piece
        shown += piece
        # What is held back may begin a stop text: it is shorter than the longest of them.
        assert expected.startswith(shown)
        assert len("".join(read)) - len(shown) < max([1, *map(len, stop)]) or ends
    assert shown == expected
    if ends:
        assert len("".join(read[:-1])) < min(ends)[0]  # nothing is read after the end


def test_stop_texts_that_are_no_texts_are_refused():
    for stop in ("end", ["a", ""]):
        with pytest.raises(UserError, match="give a list of texts of at least one character each"):
            cut_at(["some"], stop)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"seed": 3, "top_p": 0.9}])
def test_a_stop_text_ends_a_completion_where_it_begins_also_inside_tokens(model, options):
    for prompt in PROMPTS:
        (whole,) = complete(model, TOKENIZER, [prompt], 20, **options)
        for start in range(len(whole.text) - 2):
            stop = whole.text[start : start + 3]
            expected = whole.text[: whole.text.index(stop)]
            (cut,) = complete(model, TOKENIZER, [prompt], 20, stop=[stop, "not in it"], **options)
            assert (cut.text, cut.stop_reason) == (expected, "stop")
            ids = generate(model, encode_prompt(TOKENIZER, prompt), cut.tokens, stop_token=258, vocab_size=259,
                           **_with_generator(options))[0]  # fmt: skip
            assert len(ids) == cut.tokens
            assert stop in TOKENIZER.decode(ids)
            assert "".join(stream_text(model, TOKENIZER, prompt, 20, stop=[stop], **options)) == expected


def _with_generator(options):
    seed = options.get("seed")
    rest = {name: value for name, value in options.items() if name != "seed"}
    return rest | {"generator": None if seed is None else torch.Generator().manual_seed(seed)}


def test_a_text_where_something_else_is_meant_is_a_sentence(model):
    with pytest.raises(UserError, match=r"prompts is the text 'Once'; give a list of texts, such as \['Once'\]"):
        complete(model, TOKENIZER, "Once")
    for wrong in ("Once upon a time", ["Once"], [1.5], [[1], ["a"]], 3, None, torch.tensor(3)):
        with pytest.raises(UserError, match=r"^prompt_ids is .*, but it must be token ids: give tokenizer.encode"):
            generate(model, wrong)
    expected = generate(model, [97, 98], 4, temperature=0)
    for ids in (torch.tensor([97, 98]), torch.tensor([[97, 98]]), np.array([97, 98]), (97, 98), [np.int64(97), 98]):
        assert generate(model, ids, 4, temperature=0) == expected


@pytest.mark.parametrize(("arguments", "sentence"), [
    ({"model": "best"}, r"model is a str, but it must be a TransformerLM, such as tslm\.load_run\('best'\)\.model"),
    ({"tokenizer": None}, "tokenizer is a NoneType, but it must be a Tokenizer"),
    ({"prompts": [[1, 2]]}, r"prompts holds \[1, 2\], which is no text; give a list of texts"),
    ({"prompts": b"ab"}, "prompts holds 97, which is no text"),
    ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5; it must be a whole number of at least 0"),
    ({"max_new_tokens": "3"}, "max_new_tokens is 3; it must be a whole number"),
    ({"batch_size": -1}, "batch_size is -1; it must be a whole number of at least 1"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"temperature": None}, "temperature is None; it must be a number"),
    ({"top_p": "0.5"}, "top_p is 0.5; it must be a number"),
    ({"top_k": 1.5}, "top_k is 1.5; it must be a whole number"),
    ({"seed": 2**70}, f"seed is {2**70}; it must be a whole number from -"),
    ({"seed": "a"}, "seed is a; it must be a whole number"),
    ({"stop": [3]}, r"stop is \[3\]; give a list of texts"),
])
def test_wrong_arguments_of_complete_are_sentences(model, arguments, sentence):
    given = {"model": model, "tokenizer": TOKENIZER, "prompts": ["a"], "max_new_tokens": 2} | arguments
    with pytest.raises(UserError, match=f"^{sentence}"):
        complete(**given)
