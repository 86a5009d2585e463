"""Every kernel of functions.py against the formulas of functional.py, on small tensors, before its first use.

A compiler that makes something else of the sources, or a processor of which it knows too much, would spoil a training
without a word; here it costs some milliseconds to find out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tslm.model import functional
from tslm.model.native import functions
from tslm.model.rope import RotaryEmbedding, rotate

# Error of a result, as a root mean square over the one of the result itself, up to which a kernel is believed. Right
# ones stay below 1e-6 and 5e-3; a wrong one is off by about 1.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
_LENGTH, _HEADS, _WIDTH, _ROWS, _SIZE = 70, 2, 6, 67, 41  # none of them a multiple of what a kernel likes


def wrong_kernels(dtype: torch.dtype) -> list[str]:
    """The names of the functions whose kernels compute something else than their formulas, forward or backward."""
    def same(x: Tensor) -> Tensor:
        return x

    # Whatever is going on around the first use: a checkpointed block, for one, counts what is kept for its backward.
    with (torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False),
          torch.autograd.graph.saved_tensors_hooks(same, same)):
        return [name for name, found, expected in _results(dtype) if not _agree(found, expected, dtype)]


def _results(dtype: torch.dtype) -> Iterator[tuple[str, list[Tensor], list[Tensor]]]:
    """Yield the name of each function, what its kernels compute, and what its formula gives in float32."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float32).to(dtype)

    rotation = RotaryEmbedding(_WIDTH, _LENGTH).table
    documents = torch.zeros(2, _LENGTH, dtype=torch.int64)
    documents[1, 3:] = 3  # the second sequence holds two documents
    cases: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]] = {
        "self_attention": (lambda qkv: functions.self_attention(qkv, rotation, documents),
                           lambda qkv: _attention(qkv, rotation, documents), [drawn(2, _LENGTH, 3, _HEADS, _WIDTH)]),
        "rms_norm": (lambda x, gain: functions.rms_norm(x, gain, 0.1, dtype),
                     lambda x, gain: functional.rms_norm(x, gain, 0.1),
                     [3 * drawn(_ROWS, _SIZE).float(), drawn(_SIZE).float()]),
        "swiglu_linear": (functions.swiglu_linear,
                          lambda both, weight: functional.swiglu(*both.chunk(2, -1)) @ weight.T,
                          [drawn(_ROWS, 2 * _SIZE), drawn(_WIDTH, _SIZE)]),
    }
    for name, (fast, plain, inputs) in cases.items():
        yield name, _with_gradients(fast, inputs), _with_gradients(plain, [each.float() for each in inputs])
    logits, targets = drawn(_ROWS, _SIZE), torch.randint(_SIZE, (_ROWS,), generator=generator)
    exact = logits.float().requires_grad_()
    loss = (exact.logsumexp(-1) - exact.gather(-1, targets.unsqueeze(-1)).squeeze(-1)).sum()
    (gradient,) = torch.autograd.grad(loss, exact)
    found, _ = functions.losses_and_gradient(logits, targets, with_grad=True)
    yield "losses_and_gradient", [found, logits], [loss, gradient]


def _attention(qkv: Tensor, rotation: Tensor, documents: Tensor) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    mask = functional.document_mask(documents).unsqueeze(1)
    heads = functional.scaled_dot_product_attention(rotate(q, rotation), rotate(k, rotation), v, mask)
    return heads.transpose(1, 2)


def _with_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The result of a function, and the gradients of a weighted sum of it."""
    leaves = [each.detach().requires_grad_() for each in inputs]
    result = function(*leaves)
    weights = torch.linspace(-1, 2, result.numel(), dtype=torch.float32).view_as(result).to(result.dtype)
    return [result, *torch.autograd.grad(result, leaves, weights)]


def _agree(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> bool:
    return all(bool((ours.float() - plain).norm() <= TOLERANCE[dtype] * plain.norm())
               for ours, plain in zip(found, expected, strict=True))
