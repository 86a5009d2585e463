"""Byte-pair training through the adapters, under the name of the course's own test file."""

from tests import adapters


def test_train_bpe(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("<|x|>".join([" low"] * 5 + [" lower"] * 2 + [" widest"] * 3 + [" newest"] * 6))
    vocab, merges = adapters.run_train_bpe(input_path=text, vocab_size=256 + 1 + 2, special_tokens=["<|x|>"])
    assert merges == [(b"s", b"t"), (b"e", b"st")]  # the tie of es and st, at 9, goes to the greater pair
    assert vocab[0] == b"<|x|>"
    assert (vocab[257], vocab[258]) == (b"st", b"est")
