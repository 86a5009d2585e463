"""The substitutes in torch's operators against the formulas, at the edges of their blocks and chunks."""

import pytest
import torch

from tslm.fast import operators
from tslm.fast.agreement import difference
from tslm.fast.door import Substitute
from tslm.fast.forms import Form, attention_case, loss_case
from tslm.model import ops
from tslm.objective import linear_and_loss

FORMS = [Form("cpu", torch.float32), Form("cpu", torch.float32, torch.bfloat16), Form("cpu", torch.bfloat16)]
BLOCK = operators.QUERY_BLOCK


def differences(substitute, plain, case, form):
    probe = Substitute(substitute.function, substitute.supports, lambda key: [case], substitute.tolerance)
    return difference(plain, probe, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, 2 * BLOCK + 5])
def test_attention_equals_the_formula(form, length):
    case = attention_case(form, 2, max(length, 4), 3, 8, documents=False)
    case = type(case)((case.arguments[0][:, :length].detach().requires_grad_(), case.arguments[1][:length], None))
    assert differences(operators.SELF_ATTENTION, ops.self_attention.plain, case, form) == ""


def test_attention_without_positions_and_with_scores_of_1e4():
    qkv = 100 * torch.randn(2, 9, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    found = operators.self_attention(qkv.requires_grad_())
    torch.testing.assert_close(found, ops.self_attention.plain(qkv))
    assert torch.autograd.grad(found.sum(), qkv)[0].isfinite().all()


def test_attention_with_documents_or_a_cache_is_not_supported():
    qkv, starts = torch.randn(2, 9, 3, 2, 8), torch.zeros(2, 9, dtype=torch.int64)
    assert operators.SELF_ATTENTION.supports(qkv, None, None, None, None, None) is not None
    assert operators.SELF_ATTENTION.supports(qkv, None, starts) is None
    assert operators.SELF_ATTENTION.supports(qkv, None, None, object()) is None
    assert operators.SELF_ATTENTION.supports(qkv.double()) is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk_size", [1, 66, 67, 1000])
def test_the_loss_equals_the_formula(form, chunk_size):
    case = loss_case(form, 67, 24, 41, chunk_size)
    assert differences(operators.LINEAR_AND_LOSS, linear_and_loss.plain, case, form) == ""
