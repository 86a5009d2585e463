"""The parts of a model that can be others: normalisation, positions, feed-forward layer, tied embeddings, QK-norm."""

from itertools import product

import pytest
import torch

from tslm import TransformerConfig, TransformerLM, fast
from tslm.errors import UserError
from tslm.generation import generate
from tslm.model import ops

SIZES = {"vocab_size": 23, "context_length": 12, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 24}
VARIANTS = [
    {}, {"norm": "post"}, {"norm": "none"}, {"position": "none"}, {"ffn": "silu"}, {"tie_embeddings": True},
    {"qk_norm": True}, {"norm": "post", "position": "none", "ffn": "silu", "tie_embeddings": True, "qk_norm": True},
]
IDS = torch.arange(24).view(2, 12) % 23


def model_of(**parts):
    torch.manual_seed(3)
    model = TransformerLM(TransformerConfig(**SIZES, **parts))
    with torch.no_grad():  # gains of 1 would hide where a norm is
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.copy_(torch.rand_like(weight) + 0.5)
            elif parts.get("norm") == "none":
                weight.mul_(0.5)
    return model


@pytest.mark.parametrize("parts", VARIANTS, ids=str)
def test_the_count_of_parameters_is_that_of_the_model(parts):
    model = model_of(**parts)
    assert model.num_parameters() == model.config.num_parameters


@pytest.mark.parametrize(("norm", "names"), [
    ("pre", {"layers.0.ln1.weight", "layers.0.ln2.weight", "layers.1.ln1.weight", "layers.1.ln2.weight",
             "ln_final.weight"}),
    ("post", {"layers.0.ln1.weight", "layers.0.ln2.weight", "layers.1.ln1.weight", "layers.1.ln2.weight"}),
    ("none", set()),
])
def test_a_part_that_is_left_out_has_no_weights(norm, names):
    assert {name for name in model_of(norm=norm).state_dict() if "ln" in name} == names


@pytest.mark.parametrize(("norm", "ffn"), [*product(["pre", "post", "none"], ["swiglu", "silu"])])
def test_a_block_adds_its_branches_as_the_papers_say(norm, ffn):
    block, x = model_of(norm=norm, ffn=ffn).layers[0], torch.randn(2, 12, 16)

    def normed(x, gain):  # Zhang and Sennrich 2019, equation 4
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain

    def forward(x):
        inner = x @ block.ffn.w1.weight.T
        inner = inner * torch.sigmoid(inner)
        return (inner * (x @ block.ffn.w3.weight.T) if ffn == "swiglu" else inner) @ block.ffn.w2.weight.T

    expected = x
    for layer, ln in ((block.attn, "ln1"), (forward, "ln2")):
        if norm == "pre":
            expected = expected + layer(normed(expected, getattr(block, ln).weight))
        elif norm == "post":  # Vaswani et al. 2017: LayerNorm(x + Sublayer(x))
            expected = normed(expected + layer(expected), getattr(block, ln).weight)
        else:
            expected = expected + layer(expected)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_without_positions_the_order_of_earlier_tokens_does_not_matter():
    ids, swapped = torch.tensor([[3, 7, 5, 9]]), torch.tensor([[7, 3, 5, 9]])
    for position, same in (("none", True), ("rope", False)):
        # One layer: a deeper one sees the order by what the causal mask let earlier positions see.
        model = TransformerLM(TransformerConfig(**SIZES | {"num_layers": 1}, position=position))
        assert torch.allclose(model(ids)[0, -1], model(swapped)[0, -1], atol=1e-5) == same


def test_normalised_queries_and_keys_are_those_of_the_formula():
    attention, x = model_of(qk_norm=True, position="none").layers[0].attn, torch.randn(1, 12, 16)
    q, k, v = ((x @ getattr(attention, f"{name}_proj").weight.T).view(1, 12, 2, 8).transpose(1, 2) for name in "qkv")
    q, k = (part / (part.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
            for part, norm in ((q, attention.q_norm), (k, attention.k_norm)))
    scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~ops.causal_mask(12), -torch.inf)
    heads = (scores.softmax(-1) @ v).transpose(1, 2).reshape(1, 12, 16)
    torch.testing.assert_close(attention(x), heads @ attention.output_proj.weight.T, rtol=1e-4, atol=1e-5)


def test_a_tied_head_is_the_embedding_and_gets_both_gradients():
    model = model_of(tie_embeddings=True)
    assert model.lm_head.weight is model.token_embeddings.weight
    assert model(IDS).std() < 3  # an embedding of variance 1 would give logits of size √D
    model(IDS).square().mean().backward()
    both = model.lm_head.weight.grad
    apart = TransformerLM(TransformerConfig(**SIZES))
    apart.load_state_dict(model.state_dict())
    apart(IDS).square().mean().backward()
    torch.testing.assert_close(both, apart.lm_head.weight.grad + apart.token_embeddings.weight.grad)


@pytest.mark.parametrize("parts", VARIANTS, ids=str)
def test_substitutes_and_the_cache_agree_with_the_model_as_written(parts):
    model = model_of(**parts)
    options = {"max_new_tokens": 15, "temperature": 0}
    with fast.shut():
        expected = generate(model, [[1, 2, 3], [4]], use_cache=False, **options)
        logits = model(IDS)
    torch.testing.assert_close(model(IDS), logits, rtol=1e-3, atol=1e-4)
    assert generate(model, [[1, 2, 3], [4]], **options) == expected


def test_flops_count_a_tied_head():
    apart, tied = model_of(), model_of(tie_embeddings=True)
    assert tied.flops_per_token() == apart.flops_per_token()


@pytest.mark.parametrize(("parts", "sentence"), [
    ({"norm": "layer"}, "norm is 'layer'; it must be pre or post or none"),
    ({"position": "sin"}, "position is 'sin'; it must be rope or none"),
    ({"ffn": "relu"}, "ffn is 'relu'; it must be swiglu or silu, or the class of a layer of your own as module.Class"),
    ({"tie_embeddings": 1}, "tie_embeddings is 1; it must be true or false"),
    ({"ffn": "no_such_module.Layer"}, "there is no module 'no_such_module'"),
    ({"ffn": "tslm.model.NoLayer"}, "has no 'NoLayer'"),
    ({"ffn": "tslm.model.ops.silu"}, "cannot be made from d_model and d_ff"),
    ({"ffn": "math.hypot"}, "makes no layer"),
])
def test_another_value_is_one_sentence(parts, sentence):
    with pytest.raises(UserError, match=sentence):
        TransformerLM(TransformerConfig(**SIZES, **parts))


def test_a_head_of_odd_width_is_possible_without_rotation():
    sizes = SIZES | {"d_model": 15, "num_heads": 3}
    assert TransformerLM(TransformerConfig(**sizes, position="none"))(IDS).shape == (2, 12, 23)
    with pytest.raises(UserError, match="RoPE rotates pairs"):
        TransformerConfig(**sizes)
