"""Muon against torch's, against the singular value decomposition, and its division of a language model."""

import pytest
import torch

from tslm import TransformerConfig, TransformerLM
from tslm.errors import UserError
from tslm.optim import AdamW, Muon
from tslm.optim.muon import orthogonalized


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (1, 7)])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    made = left.T @ orthogonalized(matrix[None], 5)[0] @ right.T  # diagonal, since the vectors are the same
    assert torch.allclose(made, torch.diag(made.diagonal()), atol=1e-9)
    expected = values / (matrix.norm() + 1e-7)
    for _ in range(5):  # Jordan et al. 2024: each value goes through the polynomial
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    torch.testing.assert_close(made.diagonal(), expected)
    assert ((expected > 0.3) & (expected < 1.25)).all()


@pytest.mark.parametrize("shape", [(16, 24), (24, 16), (20, 20)])
def test_steps_are_those_of_torch(shape):
    """torch orthogonalises in bfloat16, so single entries of an update differ by a few hundredths of its size."""
    torch.manual_seed(1)
    start, target = torch.randn(shape), torch.randn(shape)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = [
        (ours, Muon([ours], lr=0.02, weight_decay=0.1)),
        (theirs, torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")),
    ]
    for _ in range(10):
        for parameter, optimizer in optimizers:
            optimizer.zero_grad()
            (parameter - target).square().sum().backward()
            optimizer.step()
    moved = (theirs - start).norm()
    assert moved > 1
    assert (ours - theirs).norm() < 0.03 * moved


def test_what_is_no_matrix_takes_the_step_of_adamw():
    torch.manual_seed(2)
    gain, table = torch.randn(6), torch.randn(9, 6)
    settings = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.2}
    results = []
    for make in (lambda a, b: Muon([{"params": [a]}, {"params": [b], "orthogonalize": False}], **settings),
                 lambda a, b: AdamW([a, b], **settings)):
        a, b = torch.nn.Parameter(gain.clone()), torch.nn.Parameter(table.clone())
        optimizer = make(a, b)
        for step in range(3):
            a.grad, b.grad = torch.sin(a.detach() + step), torch.cos(b.detach() * step)
            optimizer.step()
        results.append((a.detach(), b.detach()))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("tied", [False, True])
def test_only_the_matrices_of_the_blocks_are_orthogonalised(tied):
    model = TransformerLM(TransformerConfig(11, 4, 8, 2, 2, 16, tie_embeddings=tied))
    names = {id(weight): name for name, weight in model.named_parameters()}
    matrices, rest = ([names[id(each)] for each in group["params"]] for group in Muon.groups(model))
    assert all(name.startswith("layers.") and "ln" not in name for name in matrices)
    assert len(matrices) == 2 * 7
    assert sorted(matrices + rest) == sorted(names.values())
    assert {name for name in rest if "ln" not in name} == (
        {"token_embeddings.weight"} if tied else {"token_embeddings.weight", "lm_head.weight"})


@pytest.mark.parametrize(("settings", "part"), [
    ({"momentum": 1.0}, "momentum is 1.0"), ({"iterations": 0}, "iterations is 0"), ({"lr": -1}, "lr is -1"),
    ({"momentum": "x"}, "momentum is 'x'"), ({"iterations": 2.5}, "iterations is 2.5, but it must be a whole number"),
    ({"iterations": None}, "iterations is None"),
    ({"betas": (0.9, 1)}, "betas"), ({"weight_decay": -1}, "weight_decay"),
])
def test_settings_out_of_range_are_one_sentence(settings, part):
    with pytest.raises(UserError, match=part):
        Muon([torch.nn.Parameter(torch.ones(2, 2))], **{"lr": 0.1} | settings)


def test_a_sparse_gradient_is_refused_before_anything_is_changed():
    table = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = Muon(table.parameters(), lr=0.1)
    table(torch.tensor([1, 2])).sum().backward()
    before = table.weight.detach().clone()
    with pytest.raises(UserError, match=r"of shape \(5, 3\) is sparse, but Muon moves every entry"):
        optimizer.step()
    assert torch.equal(table.weight, before)
    assert not optimizer.state
