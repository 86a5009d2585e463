"""Substitutes in torch's own operators, for machines without a C compiler and GPUs without Triton.

They compute less than the functions as written (nothing above the diagonal of attention) and keep less in memory (no
logits of a whole batch).

Shapes: N batch · heads, T positions, H heads, K head dimension, V vocab_size.
"""

# ruff: noqa: ANN401 - the context of an autograd function takes any attribute
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tslm.fast.chunked_loss import loss_substitute
from tslm.fast.door import Substitute
from tslm.fast.forms import TOLERANCES, Form, attends_to_itself, attention_probes, form_of, precise, tolerance

QUERY_BLOCK = 64  # queries per block; 32 to 128 take the same time at 128 to 256 positions, larger blocks take longer
CHUNK_SIZE = 1024  # tokens whose logits are in memory at a time


def self_attention(qkv: Tensor, rotation: Tensor | None = None, *nothing: None) -> Tensor:
    """Substitute for `ops.self_attention` of qkv (..., T, 3, H, K), without documents, cache or mask."""
    dtype = form_of(qkv).compute_dtype
    q, k, v = (part.transpose(-3, -2) for part in qkv.unbind(-3))  # each (..., H, T, K)
    if rotation is not None:
        q, k = _rotate(q, rotation), _rotate(k, rotation)
    flat = (x.reshape(-1, *x.shape[-2:]).to(dtype) for x in (q, k, v))
    heads: Tensor = _CausalAttention.apply(*flat)
    return heads.view(v.shape).transpose(-3, -2)


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate pairs by multiplying complex numbers, in one pass over memory."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(rotation.contiguous())).flatten(-2).to(x.dtype)


class _CausalAttention(torch.autograd.Function):
    """Each block of queries is multiplied with the keys up to its end, so most of the masked half is not computed.

    With P = softmax(S), S = q kᵀ / √K and O = P v, and dX for the gradient of the loss with respect to X:
    dv = Pᵀ dO;  dP = dO vᵀ;  dS = P ∘ (dP - Δ) with Δ = rowsum(P ∘ dP) = rowsum(dO ∘ O);  dq = dS k / √K;
    dk = dSᵀ q / √K. Only the blocks of P at and below the diagonal are kept.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return O for q, k and v, each (N, T, K)."""
        scale, weights, outs = 1 / math.sqrt(q.shape[2]), [], []
        later = torch.ones(QUERY_BLOCK, QUERY_BLOCK, dtype=torch.bool, device=q.device).triu_(1)
        for start, end in _query_blocks(q.shape[1]):
            scores = torch.bmm(q[:, start:end], k[:, :end].transpose(1, 2)).float().mul_(scale)  # (N, block, end)
            scores[:, :, start:].masked_fill_(later[: end - start, : end - start], -math.inf)
            scores.sub_(scores.amax(-1, keepdim=True)).exp_()
            weights.append(scores.div_(scores.sum(-1, keepdim=True)).to(v.dtype))
            outs.append(torch.bmm(weights[-1], v[:, :end]))
        out = torch.cat(outs, 1)
        ctx.save_for_backward(q, k, v, out, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return dq, dk and dv."""
        q, k, v, out, *weights = ctx.saved_tensors
        scale = 1 / math.sqrt(q.shape[2])
        grad_q, grad_k, grad_v = [], torch.zeros_like(k), torch.zeros_like(v)
        delta = (grad_out * out).sum(-1, keepdim=True)
        for (start, end), weight in zip(_query_blocks(q.shape[1]), weights, strict=True):
            grad = grad_out[:, start:end]
            grad_scores = torch.bmm(grad, v[:, :end].transpose(1, 2)).sub_(delta[:, start:end]).mul_(weight).mul_(scale)
            grad_q.append(torch.bmm(grad_scores, k[:, :end]))
            grad_k[:, :end] += torch.bmm(grad_scores.transpose(1, 2), q[:, start:end])
            grad_v[:, :end] += torch.bmm(weight.transpose(1, 2), grad)
        return torch.cat(grad_q, 1), grad_k, grad_v


def _query_blocks(length: int) -> list[tuple[int, int]]:
    """Return where each block of queries starts and ends."""
    return [(start, min(start + QUERY_BLOCK, length)) for start in range(0, length, QUERY_BLOCK)]


def _row_losses(logits: Tensor, targets: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    dtype, targets = logits.dtype, targets.unsqueeze(-1)
    logits = logits.float().sub_(logits.amax(-1, keepdim=True))
    picked = logits.gather(-1, targets)
    exps = logits.exp_()
    total = exps.sum(-1, keepdim=True)
    loss = (total.log() - picked).sum()
    if not with_grad:
        return loss, None
    return loss, exps.div_(total).scatter_add_(-1, targets, torch.full_like(picked, -1.0)).to(dtype)


def _supports_attention(
    qkv: Tensor, rotation: Tensor | None = None, document_starts: Tensor | None = None, *cached: object
) -> Form | None:
    supported = document_starts is None and attends_to_itself(qkv, rotation, cached)
    form = form_of(qkv)
    return form if supported and form.compute_dtype in TOLERANCES else None


def _supports_loss(hidden: Tensor, weight: Tensor) -> Form | None:
    form = form_of(hidden)
    return form if form.compute_dtype in TOLERANCES and weight.dtype in TOLERANCES else None


SELF_ATTENTION = Substitute(
    self_attention, _supports_attention, probes=lambda form: attention_probes(form)[1:],  # without documents
    tolerance=tolerance, precise=precise,
)
LINEAR_AND_LOSS = loss_substitute(_row_losses, CHUNK_SIZE, _supports_loss)
