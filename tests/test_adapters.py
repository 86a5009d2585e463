"""Every adapter once, against torch's own layers or a computation by hand, called as the course's tests call it."""

import inspect
import io
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests import adapters

B, T, D, H, FF, V = 2, 7, 12, 3, 20, 31
THETA = 100.0
SIGNATURES = {
    "run_linear": "d_in d_out weights in_features",
    "run_embedding": "vocab_size d_model weights token_ids",
    "run_swiglu": "d_model d_ff w1_weight w2_weight w3_weight in_features",
    "run_scaled_dot_product_attention": "Q K V mask",
    "run_multihead_self_attention":
        "d_model num_heads q_proj_weight k_proj_weight v_proj_weight o_proj_weight in_features",
    "run_multihead_self_attention_with_rope":
        "d_model num_heads max_seq_len theta q_proj_weight k_proj_weight v_proj_weight o_proj_weight in_features "
        "token_positions",
    "run_rope": "d_k theta max_seq_len in_query_or_key token_positions",
    "run_transformer_block": "d_model num_heads d_ff max_seq_len theta weights in_features",
    "run_transformer_lm":
        "vocab_size context_length d_model num_layers num_heads d_ff rope_theta weights in_indices",
    "run_rmsnorm": "d_model eps weights in_features",
    "run_silu": "in_features",
    "run_softmax": "in_features dim",
    "run_cross_entropy": "inputs targets",
    "run_get_batch": "dataset batch_size context_length device",
    "run_gradient_clipping": "parameters max_l2_norm",
    "get_adamw_cls": "",
    "run_get_lr_cosine_schedule": "it max_learning_rate min_learning_rate warmup_iters cosine_cycle_iters",
    "run_save_checkpoint": "model optimizer iteration out",
    "run_load_checkpoint": "src model optimizer",
    "get_tokenizer": "vocab merges special_tokens",
    "run_train_bpe": "input_path vocab_size special_tokens kwargs",
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def x():
    return torch.randn(B, T, D)


def _block_weights():
    shapes = {"attn.q_proj": (D, D), "attn.k_proj": (D, D), "attn.v_proj": (D, D), "attn.output_proj": (D, D),
              "ln1": (D,), "ln2": (D,), "ffn.w1": (FF, D), "ffn.w2": (D, FF), "ffn.w3": (FF, D)}
    return {f"{name}.weight": torch.rand(shape) - 0.3 for name, shape in shapes.items()}


def _turn(x, positions):
    """RoPE pair by pair with 2 × 2 matrices, as the paper writes it."""
    out, width = torch.empty_like(x), x.shape[-1]
    for t, position in enumerate(positions):
        for pair in range(0, width, 2):
            angle = position * THETA ** (-pair / width)
            matrix = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            out[..., t, pair : pair + 2] = x[..., t, pair : pair + 2] @ matrix.T
    return out


def _attend(x, weights, positions=None):
    q, k, v = (F.linear(x, weights[f"attn.{name}_proj.weight"]).unflatten(-1, (H, -1)).transpose(-3, -2)
               for name in "qkv")
    if positions is not None:
        q, k = _turn(q, positions), _turn(k, positions)
    heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.linear(heads.transpose(-3, -2).flatten(-2), weights["attn.output_proj.weight"])


def _feed_forward(x, weights):
    gate, up = (F.linear(x, weights[f"ffn.{name}.weight"]) for name in ("w1", "w3"))
    return F.linear(F.silu(gate) * up, weights["ffn.w2.weight"])


def _run_block(x, weights):
    x = x + _attend(F.rms_norm(x, (D,), weights["ln1.weight"], 1e-5), weights, range(x.shape[-2]))
    return x + _feed_forward(F.rms_norm(x, (D,), weights["ln2.weight"], 1e-5), weights)


def _projections(weights):
    return [weights[f"attn.{name}_proj.weight"] for name in ("q", "k", "v", "output")]


def test_adapters_have_the_documented_names_and_arguments():
    found = {name: " ".join(inspect.signature(function).parameters)
             for name, function in inspect.getmembers(adapters, inspect.isfunction) if not name.startswith("_")}
    assert found == SIGNATURES
    for name, optional in (("run_scaled_dot_product_attention", "mask"), ("get_tokenizer", "special_tokens"),
                           ("run_multihead_self_attention_with_rope", "token_positions")):
        assert inspect.signature(getattr(adapters, name)).parameters[optional].default is None


def test_linear(x):
    weight = torch.randn(5, D)
    torch.testing.assert_close(adapters.run_linear(D, 5, weight, x), F.linear(x, weight))


def test_embedding():
    weight, ids = torch.randn(V, D), torch.randint(0, V, (B, T))
    assert torch.equal(adapters.run_embedding(V, D, weight, ids), weight[ids])


def test_swiglu(x):
    weights = _block_weights()
    w1, w2, w3 = (weights[f"ffn.w{i}.weight"] for i in (1, 2, 3))
    torch.testing.assert_close(adapters.run_swiglu(D, FF, w1, w2, w3, x), _feed_forward(x, weights))


def test_scaled_dot_product_attention_4d():
    q, k, v = torch.randn(B, H, 4, 6), torch.randn(B, H, T, 6), torch.randn(B, H, T, 5)
    mask = torch.rand(B, H, 4, T) > 0.3
    torch.testing.assert_close(adapters.run_scaled_dot_product_attention(q, k, v),
                               F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(adapters.run_scaled_dot_product_attention(Q=q, K=k, V=v, mask=mask),
                               F.scaled_dot_product_attention(q, k, v, mask))


def test_multihead_self_attention(x):
    weights = _block_weights()
    out = adapters.run_multihead_self_attention(D, H, *_projections(weights), x)
    torch.testing.assert_close(out, _attend(x, weights))


def test_multihead_self_attention_with_rope(x):
    weights, positions = _block_weights(), [4, 0, 1, 9, 2, 2, 5]
    for given, used in ((torch.tensor([positions]), positions), (torch.tensor(positions), positions), (None, range(T))):
        out = adapters.run_multihead_self_attention_with_rope(D, H, 10, THETA, *_projections(weights), x, given)
        torch.testing.assert_close(out, _attend(x, weights, used))


def test_rope():
    x, positions = torch.randn(B, T, 6), [4, 0, 1, 9, 2, 2, 5]
    torch.testing.assert_close(adapters.run_rope(6, THETA, 10, x, torch.tensor(positions)), _turn(x, positions))


def test_transformer_block(x):
    weights = _block_weights()
    torch.testing.assert_close(adapters.run_transformer_block(D, H, FF, 16, THETA, weights, x), _run_block(x, weights))


def test_transformer_lm():
    blocks = [_block_weights() for _ in range(2)]
    weights = {f"layers.{i}.{name}": weight for i, block in enumerate(blocks) for name, weight in block.items()}
    weights |= {"token_embeddings.weight": torch.randn(V, D), "ln_final.weight": torch.rand(D),
                "lm_head.weight": torch.randn(V, D)}
    ids = torch.randint(0, V, (B, T))
    x = weights["token_embeddings.weight"][ids]
    for block in blocks:
        x = _run_block(x, block)
    expected = F.linear(F.rms_norm(x, (D,), weights["ln_final.weight"], 1e-5), weights["lm_head.weight"])
    out = adapters.run_transformer_lm(V, 16, D, 2, H, FF, THETA, weights, ids)
    torch.testing.assert_close(out, expected)


def test_rmsnorm(x):
    weight = torch.rand(D)
    torch.testing.assert_close(adapters.run_rmsnorm(D, 1e-3, weight, x), F.rms_norm(x, (D,), weight, 1e-3))


def test_silu_and_softmax(x):
    torch.testing.assert_close(adapters.run_silu(x), F.silu(x))
    torch.testing.assert_close(adapters.run_softmax(100 * x, 1), F.softmax(100 * x, 1))


def test_cross_entropy():
    logits, targets = 1000 * torch.randn(B, V), torch.randint(0, V, (B,))
    torch.testing.assert_close(adapters.run_cross_entropy(logits, targets), F.cross_entropy(logits, targets))


def test_get_batch():
    inputs, targets = adapters.run_get_batch(np.arange(40), 50, T, "cpu")
    assert inputs.shape == targets.shape == (50, T)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(T))
    with pytest.raises((RuntimeError, AssertionError)):
        adapters.run_get_batch(np.arange(40), 2, T, "no-such-device")


def test_gradient_clipping():
    def parameters():
        torch.manual_seed(1)
        made = [torch.nn.Parameter(torch.randn(5, 5)) for _ in range(4)]
        made[-1].requires_grad_(False)
        torch.cat(made).square().sum().backward()
        return made

    ours, theirs = parameters(), parameters()
    assert adapters.run_gradient_clipping(iter(ours), 0.5) is None
    torch.nn.utils.clip_grad_norm_(theirs, 0.5)
    for mine, reference in zip(ours[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(mine.grad, reference.grad)
    assert ours[-1].grad is None


def test_adamw():
    cls = adapters.get_adamw_cls()
    assert issubclass(cls, torch.optim.Optimizer)
    results = []
    for optimizer_class in (cls, torch.optim.AdamW):
        torch.manual_seed(2)
        layer = torch.nn.Linear(3, 2, bias=False)
        optimizer = optimizer_class(layer.parameters(), lr=1e-3, weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8)
        for _ in range(100):
            optimizer.zero_grad()
            (layer(torch.rand(3)).sum() - 1).square().backward()
            optimizer.step()
        results.append(layer.weight.detach())
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)  # the decay comes after the step, and eps differs


def test_get_lr_cosine_schedule():
    rates = [adapters.run_get_lr_cosine_schedule(it, 1.0, 0.1, 7, 21) for it in (0, 7, 14, 21, 22)]
    assert rates == pytest.approx([0, 1, 0.55, 0.1, 0.1])


@pytest.mark.parametrize("to_file", [False, True])
def test_checkpointing(tmp_path, to_file):
    def made():
        layer = torch.nn.Linear(3, 2)
        return layer, adapters.get_adamw_cls()(layer.parameters(), lr=0.1)

    (layer, optimizer), (other, other_optimizer) = made(), made()
    layer(torch.rand(3)).sum().backward()
    optimizer.step()
    out = io.BytesIO() if to_file else tmp_path / "checkpoint.pt"
    adapters.run_save_checkpoint(layer, optimizer, 10, out)
    src = io.BytesIO(out.getvalue()) if to_file else out
    assert adapters.run_load_checkpoint(src, other, other_optimizer) == 10
    assert torch.equal(other.weight, layer.weight)
    ours, theirs = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert ours.keys() == theirs.keys() != set()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_tokenizer():
    vocab = dict(enumerate([b" ", b"a", b"c", b"e", b"h", b"t", b"th", b" c", b" a", b"the", b" at"]))
    merges = [(b"t", b"h"), (b" ", b"c"), (b" ", b"a"), (b"th", b"e"), (b" a", b"t")]
    tokenizer = adapters.get_tokenizer(vocab, merges)
    assert tokenizer.encode("the cat ate") == [9, 7, 1, 5, 10, 3]
    assert list(tokenizer.encode_iterable(["the c", "at ate"])) == [9, 7, 1, 5, 10, 3]
    assert tokenizer.decode([9, 7, 1, 5, 10, 3]) == "the cat ate"
    assert adapters.get_tokenizer(vocab, merges, ["<|x|>"]).encode("the<|x|>") == [9, 11]


def test_train_bpe(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("<|x|>".join([" low"] * 5 + [" lower"] * 2 + [" widest"] * 3 + [" newest"] * 6))
    vocab, merges = adapters.run_train_bpe(input_path=text, vocab_size=256 + 1 + 2, special_tokens=["<|x|>"])
    assert merges == [(b"s", b"t"), (b"e", b"st")]  # the tie of es and st, at 9, goes to the greater pair
    assert vocab[0] == b"<|x|>"
    assert (vocab[257], vocab[258]) == (b"st", b"est")
