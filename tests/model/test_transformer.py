"""The whole model: against transformers' Llama, its names, its errors, causality, and half precision."""

import copy

import pytest
import torch

from tests.benchmarks.training_peers import llama_of
from tslm.model import TransformerConfig, TransformerLM
from tslm.model.ops import document_starts_of
from tslm.objective import cross_entropy, linear_cross_entropy

CONFIG = TransformerConfig(vocab_size=97, context_length=24, d_model=48, num_layers=3, num_heads=4, d_ff=80)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = TransformerLM(CONFIG)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.uniform_(0.5, 1.5)  # gains of 1 would hide a gain that is left out
                assert "ln" in name
    return model


@pytest.fixture
def ids():
    return torch.randint(0, CONFIG.vocab_size, (4, CONFIG.context_length), generator=torch.Generator().manual_seed(1))


def test_transformer_lm_equals_llama(model, ids):
    llama = llama_of(model)
    torch.testing.assert_close(model(ids), llama(ids).logits, rtol=1e-5, atol=1e-5)


def test_transformer_lm_learns_like_llama(model, ids):
    llama = llama_of(model)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    loss = linear_cross_entropy(model.hidden(inputs), model.lm_head.weight, targets)
    theirs = torch.nn.functional.cross_entropy(llama(inputs).logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-5)
    loss.backward()
    theirs.backward()
    for ours, name in ((model.lm_head.weight, "lm_head.weight"), (model.ln_final.weight, "model.norm.weight"),
                       (model.token_embeddings.weight, "model.embed_tokens.weight"),
                       (model.layers[0].ln1.weight, "model.layers.0.input_layernorm.weight"),
                       (model.layers[1].attn.v_proj.weight, "model.layers.1.self_attn.v_proj.weight"),
                       (model.layers[2].ffn.w1.weight, "model.layers.2.mlp.gate_proj.weight")):
        torch.testing.assert_close(ours.grad, llama.get_parameter(name).grad, rtol=1e-4, atol=1e-6)


def test_transformer_lm_state_dict_holds_exactly_the_documented_names(model):
    d, f, v = CONFIG.d_model, CONFIG.d_ff, CONFIG.vocab_size
    expected = {"token_embeddings.weight": (v, d), "ln_final.weight": (d,), "lm_head.weight": (v, d)}
    for i in range(CONFIG.num_layers):
        for part in "qkv":
            expected[f"layers.{i}.attn.{part}_proj.weight"] = (d, d)
        expected |= {f"layers.{i}.attn.output_proj.weight": (d, d), f"layers.{i}.ln1.weight": (d,),
                     f"layers.{i}.ln2.weight": (d,), f"layers.{i}.ffn.w1.weight": (f, d),
                     f"layers.{i}.ffn.w2.weight": (d, f), f"layers.{i}.ffn.w3.weight": (f, d)}
    assert {name: tuple(weight.shape) for name, weight in model.state_dict().items()} == expected
    assert model.num_parameters() == sum(weight.numel() for weight in model.state_dict().values())


def test_transformer_lm_counts_the_course_model():
    with torch.device("meta"):
        model = TransformerLM(TransformerConfig(10_000, 256, 512, 4, 16, 1344))
    assert model.num_parameters() == 22_696_448
    assert model.flops_per_token() / 1e6 == pytest.approx(108.6, abs=0.05)


def test_transformer_lm_runs_on_the_meta_device_and_comes_back_from_it():
    with torch.device("meta"):
        model = TransformerLM(CONFIG)
        assert model(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, CONFIG.vocab_size)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    for module in model.modules():  # as PyTorch's sharded strategies fill a model
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    torch.manual_seed(0)
    usual = TransformerLM(CONFIG)
    ids = torch.arange(10)
    assert torch.equal(model(ids), usual(ids))


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
def test_transformer_lm_takes_any_batch_dimensions_and_shorter_sequences(model, batch):
    ids = torch.randint(0, CONFIG.vocab_size, (*batch, 7))
    logits = model(ids)
    assert logits.shape == (*batch, 7, CONFIG.vocab_size)
    rows = model(ids.reshape(-1, 7)).view_as(logits)
    torch.testing.assert_close(logits, rows)


def test_transformer_lm_never_looks_ahead(model, ids):
    changed = ids.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % CONFIG.vocab_size
    ours, theirs = model(ids), model(changed)
    assert torch.equal(ours[:, :10], theirs[:, :10])
    assert not torch.allclose(ours[:, 10], theirs[:, 10])


def test_transformer_lm_computes_each_document_by_itself(model, ids):
    ids = ids.clamp(min=1)
    ids[:, [6, 7, 15]] = 0
    starts = document_starts_of(ids, 0)
    assert starts[0].tolist() == [0] * 6 + [6] + [7] * 8 + [15] * (ids.shape[1] - 15)
    alone = torch.cat([model.hidden(ids[:, start:end]) for start, end in ((0, 6), (6, 7), (7, 15), (15, None))], 1)
    torch.testing.assert_close(model.hidden(ids, document_starts=starts), alone)  # positions are relative
    assert not torch.allclose(model.hidden(ids), alone)


def test_transformer_lm_refuses_a_sequence_beyond_the_context(model):
    with pytest.raises(ValueError, match="25 tokens is longer than context_length = 24"):
        model(torch.zeros(1, 25, dtype=torch.int64))


def test_transformer_lm_under_bfloat16_autocast_keeps_norms_and_loss_in_float32(model, ids):
    inputs, targets = ids[:, :-1], ids[:, 1:]
    exact = cross_entropy(model(inputs), targets)
    exact_grads = torch.autograd.grad(exact, list(model.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(inputs)
        loss = linear_cross_entropy(model.hidden(inputs), model.lm_head.weight, targets)
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=1e-2, atol=0)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert grad.dtype == torch.float32
        assert (grad - exact_grad).norm() < 0.03 * exact_grad.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_transformer_lm_cast_as_a_whole(model, ids, dtype):
    logits = copy.deepcopy(model).to(dtype)(ids)
    assert logits.dtype == dtype
    assert (logits.float() - model(ids)).norm() < (0.03 if dtype == torch.bfloat16 else 1e-6) * logits.float().norm()


@pytest.mark.parametrize(("change", "message"), [
    ({"vocab_size": 0}, "vocab_size is 0"), ({"num_layers": 1.5}, "num_layers is 1.5"),
    ({"context_length": -4}, "context_length is -4"), ({"d_ff": True}, "d_ff is True"),
    ({"num_heads": 5}, "num_heads = 5"), ({"d_model": 12}, "must be even"), ({"rope_theta": 0.0}, "rope_theta is 0.0"),
    ({"rope_theta": float("nan")}, "rope_theta is nan")])
def test_config_refuses_impossible_sizes(change, message):
    sizes = {"vocab_size": 97, "context_length": 24, "d_model": 48, "num_layers": 3, "num_heads": 4, "d_ff": 80}
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**sizes | change)


def test_recomputing_gives_the_same_gradients_and_keeps_less(model, ids):
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    def gradients():
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = linear_cross_entropy(model.hidden(ids), model.lm_head.weight, ids)
            before = sum(kept)
            return before, torch.autograd.grad(loss, list(model.parameters()))

    usual, expected = gradients()
    model.recompute = True
    less, ours = gradients()
    assert all(torch.equal(one, other) for one, other in zip(ours, expected, strict=True))
    assert less < usual / 3
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(ids), model(ids))
