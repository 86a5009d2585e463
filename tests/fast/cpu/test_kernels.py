"""The C kernels against the formulas as they are written: values, gradients, odd sizes, any number of threads."""

import pytest
import torch

from tests.conftest import needs_compiler, needs_open_door
from tslm import TransformerConfig, TransformerLM, fast
from tslm.fast import DisagreementWarning, door
from tslm.fast.cpu import build, kernels
from tslm.fast.forms import cpu_multiplies_bfloat16
from tslm.model import ops
from tslm.model.rope import RotaryEmbedding
from tslm.objective import linear_cross_entropy, token_losses

pytestmark = [needs_compiler, needs_open_door]
# Relative errors against float64. Measured: 4e-7, and 4e-3 (8 bits of mantissa).
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}
DTYPES = [dtype for dtype in CLOSE if dtype == torch.float32 or cpu_multiplies_bfloat16()]


def _draw(*size, dtype=torch.float32, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _compare(fast, plain, inputs, dtype):
    """Values and gradients of both, each from the same inputs, the plain one in float64."""
    exact = [each.double().requires_grad_() for each in inputs]
    expected = plain(*exact)
    probe = _draw(*expected.shape, dtype=dtype, seed=1)
    leaves = [each.detach().requires_grad_() for each in inputs]
    found = fast(*leaves)
    pairs = [(found, expected), *zip(torch.autograd.grad(found, leaves, probe.to(found.dtype)),
                                     torch.autograd.grad(expected, exact, probe.double()), strict=True)]
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        assert (ours.double() - theirs).norm() <= CLOSE[dtype] * theirs.norm()


def _plain_attention(qkv, rotation, starts=None):
    return ops.self_attention.plain(qkv, None if rotation is None else rotation.double(), starts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "width"), [
    (1, 2), (5, 6), (6, 32), (7, 32), (63, 64), (64, 66), (65, 30), (130, 128), (256, 32), (3, 130)])
def test_self_attention_equals_the_masked_formula(dtype, length, width):
    rotation = RotaryEmbedding(width, length).table
    _compare(lambda qkv: kernels.self_attention(qkv, rotation), lambda qkv: _plain_attention(qkv, rotation),
             [_draw(2, length, 3, 2, width, dtype=dtype)], dtype)


def test_self_attention_without_positions_or_with_more_dimensions_in_front():
    _compare(lambda qkv: kernels.self_attention(qkv, None), lambda qkv: _plain_attention(qkv, None),
             [_draw(2, 3, 9, 3, 1, 4)], torch.float32)
    _compare(lambda qkv: kernels.self_attention(qkv, None), lambda qkv: _plain_attention(qkv, None),
             [_draw(70, 3, 2, 4)], torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("starts", [[0, 1, 2, 130], [0, 64, 128], [0, 63, 65, 199], [0]])
def test_self_attention_keeps_documents_apart(dtype, starts):
    ids = torch.ones(2, 200, dtype=torch.int64)
    ids[0, starts], ids[1, [7, 100]] = 0, 0
    documents, rotation = ops.document_starts_of(ids, 0), RotaryEmbedding(8, 200).table
    _compare(lambda qkv: kernels.self_attention(qkv, rotation, documents),
             lambda qkv: _plain_attention(qkv, rotation, documents), [_draw(2, 200, 3, 3, 8, dtype=dtype)], dtype)


def test_a_document_is_attended_as_if_it_were_alone():
    qkv = _draw(1, 150, 3, 2, 8)
    documents = torch.where(torch.arange(150) < 67, 0, 67).unsqueeze(0)
    apart = torch.cat([kernels.self_attention(part, None) for part in (qkv[:, :67], qkv[:, 67:])], 1)
    assert torch.equal(kernels.self_attention(qkv, None, documents), apart)
    assert torch.equal(kernels.self_attention(qkv, None, documents.int()), apart)


@pytest.mark.parametrize("width", [3, 4])
def test_heads_of_odd_width_have_no_kernel(width):
    if cpu_multiplies_bfloat16():
        qkv = _draw(1, 5, 3, 1, width, dtype=torch.bfloat16).requires_grad_()
        by_kernel = "_SelfAttention" in _autograd_names(ops.self_attention(qkv).grad_fn)
        assert by_kernel == (width == 4)


def test_attention_sees_nothing_of_what_comes_later():
    qkv = _draw(1, 70, 3, 1, 4)
    changed = qkv.clone()
    changed[:, 66:] = 1e4
    before, after = (kernels.self_attention(each, None) for each in (qkv, changed))
    assert torch.equal(before[:, :66], after[:, :66])
    leaf = qkv.requires_grad_()
    grad, = torch.autograd.grad(kernels.self_attention(leaf, None)[:, 65].sum(), leaf)
    assert grad[:, 66:].count_nonzero() == 0


def test_attention_survives_scores_of_1e4():
    qkv = (_draw(1, 9, 3, 2, 8) * torch.tensor([100.0, 100.0, 1.0]).view(3, 1, 1)).requires_grad_()
    out = kernels.self_attention(qkv, None)
    grad, = torch.autograd.grad(out.sum(), qkv)
    assert out.isfinite().all()
    assert grad.isfinite().all()


@pytest.mark.parametrize("what", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(what):
    qkv = _draw(1, 70, 3, 1, 4)
    qkv[0, 67, 1] = what
    out = kernels.self_attention(qkv, None)
    assert out[:, :67].isfinite().all()
    assert not out[:, 67].isfinite().any()
    x = _draw(3, 40)
    x[1, 7] = what
    assert not kernels.rms_norm(x, torch.ones(40), 1e-5)[1].isfinite().all()
    assert not kernels.swiglu_linear(x, torch.ones(1, 20))[1].isfinite().all()
    losses, _ = kernels.row_losses(x, torch.zeros(3, dtype=torch.long), with_grad=False)
    assert not losses.isfinite()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "size"), [(1, 16), (kernels.ROWS_PER_SUM + 1, 40), (130, 16)])
def test_rms_norm_equals_the_formula(dtype, rows, size):
    def autocast_rms_norm(x, gain):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = kernels.rms_norm(x, gain, 1e-5)
        assert y.dtype == dtype
        return y

    _compare(autocast_rms_norm, lambda x, gain: ops.rms_norm.plain(x, gain, 1e-5),
             [3 * _draw(rows, size), _draw(size)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 16, 37])
def test_swiglu_linear_equals_the_formula(dtype, size):
    _compare(kernels.swiglu_linear, ops.swiglu_linear.plain,
             [4 * _draw(3, 5, 2 * size, dtype=dtype), _draw(7, size, dtype=dtype)], dtype)


def test_swiglu_far_from_zero_is_finite():
    x, weight = torch.tensor([[1e4, -1e4, 2.0, 3.0]], requires_grad=True), torch.eye(2, requires_grad=True)
    out = kernels.swiglu_linear(x, weight)
    torch.testing.assert_close(out, torch.tensor([[2e4, 0]]))
    grad, grad_weight = torch.autograd.grad(out.sum(), (x, weight))
    torch.testing.assert_close(grad, torch.tensor([[2.0, 0, 1e4, 0]]))
    torch.testing.assert_close(grad_weight, torch.tensor([[2e4, 0], [2e4, 0]]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_backward_makes_the_same_product_of_gate_and_up_as_the_forward(dtype):
    both = 4 * _draw(33, 2 * 45, dtype=dtype)
    forward = kernels.swiglu_linear(both, torch.eye(45, dtype=dtype))
    weight = torch.zeros(33, 45, dtype=dtype, requires_grad=True)
    out = kernels.swiglu_linear(both, weight)
    gradient, = torch.autograd.grad(out, weight, torch.eye(33, dtype=dtype))  # of W: each row of y by itself
    assert torch.equal(gradient, forward)


def test_a_swiglu_keeps_nothing_but_what_comes_in():
    both, weight, kept = _draw(3, 8), _draw(5, 4), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        kernels.swiglu_linear(both.requires_grad_(), weight.requires_grad_())
    assert kept == [both.data_ptr(), weight.data_ptr()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 1000, 2057])
def test_cross_entropy_equals_the_formula(dtype, size):
    logits, targets = 3 * _draw(9, size, dtype=dtype), torch.arange(9) * 7 % size
    exact = logits.double().requires_grad_()
    expected = token_losses(exact, targets).sum()
    gradient, = torch.autograd.grad(expected, exact)
    assert kernels.row_losses(logits.clone(), targets, with_grad=False)[1] is None
    loss, grad = kernels.row_losses(logits, targets, with_grad=True)
    assert grad is logits
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(grad.double(), gradient, rtol=8e-3 if dtype == torch.bfloat16 else 1e-5, atol=1e-7)


@pytest.mark.parametrize("target", [-1, 5, 2**40])
def test_a_target_outside_the_vocabulary_is_an_error(target):
    targets = torch.tensor([0, target, 4])
    with pytest.raises(IndexError, match=f"target {target} is outside the vocabulary of 5"):
        linear_cross_entropy(_draw(3, 8), _draw(5, 8), targets)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_changes_no_bit(dtype):
    model = TransformerLM(TransformerConfig(vocab_size=50, context_length=70, d_model=36, num_layers=2, num_heads=3,
                                            d_ff=40))
    ids = torch.randint(50, (5, 70), generator=torch.Generator().manual_seed(0))

    def results():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            qkv, x = _draw(5, 70, 3, 3, 12, dtype=dtype).requires_grad_(), _draw(350, 36).requires_grad_()
            gain, both = _draw(36).requires_grad_(), _draw(350, 80, dtype=dtype).requires_grad_()
            weight = torch.eye(40, dtype=dtype)  # or torch's matmul would add in an order of its own
            outs = [kernels.self_attention(qkv, model.rope.at(None, 70)), kernels.rms_norm(x, gain, 1e-5),
                    kernels.swiglu_linear(both, weight)]
        loss, grad = kernels.row_losses(_draw(350, 50, dtype=dtype), ids.flatten(), with_grad=True)
        return [*outs, loss, grad, *torch.autograd.grad([each.float().square().sum() for each in outs],
                                                        [qkv, x, gain, both])]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = results()
        torch.set_num_threads(3)
        together = results()
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, alone, together))


def _autograd_names(function):
    """The names of a result's autograd functions, back to its inputs."""
    if function is None:
        return ""
    return function.name() + " " + " ".join(_autograd_names(each) for each, _ in function.next_functions)


def test_a_model_uses_the_kernels_where_they_support_it():
    model = TransformerLM(TransformerConfig(vocab_size=50, context_length=9, d_model=16, num_layers=1, num_heads=2,
                                            d_ff=24))
    ids = torch.zeros(2, 9, dtype=torch.long)
    names = {"_SelfAttentionBackward", "_RMSNormBackward", "_SwiGLULinearBackward"}
    assert names <= set(_autograd_names(model(ids).grad_fn).split())
    assert not names & set(_autograd_names(model.double()(ids).grad_fn).split())
    model.float()
    with_kernels = model(ids)
    with fast.shut():
        assert not names & set(_autograd_names(model(ids).grad_fn).split())
        torch.testing.assert_close(model(ids), with_kernels)


@pytest.fixture
def _fresh_build(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.load.cache_clear()
    door.forget()
    yield
    build.load.cache_clear()
    door.forget()


def faulty_copies(sources, folder, right, wrong):
    """Copy C sources and the header that they include, with one fault, and return the sources' paths."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in (*sources, build.HEADER)}
    assert sum(right in text for text in texts.values()) == 1
    for name, text in texts.items():
        (folder / name).write_text(text.replace(right, wrong), encoding="utf-8")
    return tuple(folder / source.name for source in sources)


@pytest.mark.usefixtures("_fresh_build")
@pytest.mark.parametrize(("right", "wrong", "name"), [
    ("key + r <= first + i ? p : 0", "key + r < first + i ? p : 0", "self_attention"),
    ("starts[end] <= first", "starts[end] >= 0", "self_attention"),
    ("a * cosine - b * sine", "a * cosine + b * sine", "self_attention"),
    ("sqrtf(squares / size + eps)", "sqrtf(squares + eps)", "rms_norm"),
    ("from[i] * rate * mean", "from[i] * mean", "rms_norm"),
    ("s + activated * (1 - s)", "s", "swiglu_linear"),
    ("both[i] = set(activated * u)", "both[i] = set(activated)", "swiglu_linear"),
    ("exps[target] -= total", "exps[target] -= 1", "linear_and_loss")])
def test_a_faulty_kernel_is_not_used_and_named_once(tmp_path, monkeypatch, right, wrong, name):
    monkeypatch.setattr(kernels, "SOURCES", faulty_copies(kernels.SOURCES, tmp_path, right, wrong))
    model = TransformerLM(TransformerConfig(vocab_size=50, context_length=9, d_model=16, num_layers=1, num_heads=2,
                                            d_ff=24))
    ids = torch.arange(18).view(2, 9)

    def loss():
        return linear_cross_entropy(model.hidden(ids), model.lm_head.weight, ids)

    with pytest.warns(DisagreementWarning, match=rf"\.{name} runs as it is written") as seen:
        found = [loss(), loss()]
    assert len(seen) == 1
    with fast.shut():
        torch.testing.assert_close(found, [loss(), loss()])
