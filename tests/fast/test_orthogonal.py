"""Newton-Schulz iterations in bfloat16, against the definition."""

import pytest
import torch

from tslm.fast import orthogonal
from tslm.optim import muon


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 4, 4), (2, 5, 12), (21, 128, 352)])
@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_bfloat16_keeps_two_digits(size, iterations):
    torch.manual_seed(0)
    matrices = torch.randn(size)
    found = orthogonal.orthogonalized(matrices, iterations)
    expected = muon.orthogonalized.plain(matrices.double(), iterations).float()
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.04 * expected.norm()


def test_the_constants_are_those_of_the_definition():
    assert (orthogonal.A, orthogonal.B, orthogonal.C) == muon.COEFFICIENTS


def test_only_float32_is_replaced_and_only_where_bfloat16_is_fast(monkeypatch):
    for fast in (True, False):
        monkeypatch.setattr(orthogonal, "cpu_multiplies_bfloat16", lambda fast=fast: fast)
        assert (orthogonal._supports(torch.ones(1, 2, 2), 3) is not None) == fast
        assert orthogonal._supports(torch.ones(1, 2, 2, dtype=torch.float64), 3) is None
