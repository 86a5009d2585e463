"""The initial weights of a model: truncated normal distributions, drawn by the inverse distribution function.

Linear weights have variance 2 / (d_in + d_out) (Glorot and Bengio 2010), embeddings variance 1, both truncated at
three standard deviations; gains are 1. The draws come from torch's global generator, so `torch.manual_seed` fixes them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TRUNCATION = 3.0  # in standard deviations


def init_linear_(weight: Tensor) -> Tensor:
    """Fill a (d_out, d_in) weight in place with variance 2 / (d_in + d_out) before truncation."""
    d_out, d_in = weight.shape
    return truncated_normal_(weight, std=math.sqrt(2 / (d_in + d_out)))


def init_embedding_(weight: Tensor) -> Tensor:
    """Fill a (vocab_size, d_model) table in place with variance 1 before truncation."""
    return truncated_normal_(weight, std=1.0)


def init_gain_(weight: Tensor) -> Tensor:
    """Set the gain of a normalisation to 1 in place."""
    with torch.no_grad():
        return weight.fill_(1.0)


def truncated_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill `tensor` in place with samples x of N(0, std²), conditioned on |x| ≤ 3 std, and return it.

    For U uniform on (-e, e) with e = erf(3 / √2), x = std · √2 · erfinv(U) has this distribution: up to scale, erfinv
    is the inverse of the normal distribution function, and U = ±e gives x = ±3 std. No sample is rejected, so the
    number of draws is fixed.
    """
    edge = math.erf(TRUNCATION / math.sqrt(2))
    with torch.no_grad():
        draw = torch.empty_like(tensor, dtype=torch.float32).uniform_(-edge, edge)  # half precision has few values
        draw = draw.erfinv_().mul_(std * math.sqrt(2)).clamp_(-TRUNCATION * std, TRUNCATION * std)
        return tensor.copy_(draw)
