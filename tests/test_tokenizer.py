"""The tokenizer through the adapters, under the name of the course's own test file."""

from tests import adapters


def test_tokenizer():
    vocab = dict(enumerate([b" ", b"a", b"c", b"e", b"h", b"t", b"th", b" c", b" a", b"the", b" at"]))
    merges = [(b"t", b"h"), (b" ", b"c"), (b" ", b"a"), (b"th", b"e"), (b" a", b"t")]
    tokenizer = adapters.get_tokenizer(vocab, merges)
    assert tokenizer.encode("the cat ate") == [9, 7, 1, 5, 10, 3]
    assert list(tokenizer.encode_iterable(["the c", "at ate"])) == [9, 7, 1, 5, 10, 3]
    assert tokenizer.decode([9, 7, 1, 5, 10, 3]) == "the cat ate"
    assert adapters.get_tokenizer(vocab, merges, ["<|x|>"]).encode("the<|x|>") == [9, 11]
