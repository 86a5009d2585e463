"""The forms of the rotation against each other, bit for bit where they promise it."""

import torch

from tslm.model.rope import RotaryEmbedding, rotate_pairs, rotate_words


def _inputs(length=9, width=6):
    torch.manual_seed(0)
    x = (torch.randn(2, length, 3, width) * torch.logspace(-20, 4, length)[:, None, None]).bfloat16()
    return x.transpose(1, 2), RotaryEmbedding(width, length).table  # transposed as in the model


def test_words_turn_to_the_same_bits_as_pairs():
    x, table = _inputs()
    assert torch.equal(rotate_words(x, table), rotate_pairs(x, table))


def test_words_pass_the_gradient_of_pairs():
    x, table = _inputs()
    x.requires_grad_()
    probe = torch.randn(x.shape).bfloat16()
    (words,) = torch.autograd.grad(rotate_words(x, table), x, probe)
    (pairs,) = torch.autograd.grad(rotate_pairs(x.float(), table), x, probe.float())
    torch.testing.assert_close(words, pairs)


def test_words_keep_infinities_and_nan():
    x = torch.tensor([[torch.inf, 1.0, torch.nan, 2.0]]).bfloat16()
    turned = rotate_words(x, RotaryEmbedding(4, 1).table)  # by nothing, at position 0
    assert not turned[0, :2].isfinite().any()  # inf · 0 is NaN, in either form
    assert turned[0, 2:].isnan().all()
