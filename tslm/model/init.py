"""Every random number that a new model starts from: truncated normals, drawn by inverse distribution function.

Linear weights have variance 2 / (d_in + d_out) (Glorot and Bengio 2010), embeddings variance 1, both cut at three
standard deviations; gains are 1. The draws come from torch's global generator, so `torch.manual_seed` fixes them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CUT = 3.0  # in standard deviations


def init_linear_(weight: Tensor) -> Tensor:
    """Fill a (d_out, d_in) weight in place with variance 2 / (d_in + d_out) before the cut."""
    d_out, d_in = weight.shape
    return truncated_normal_(weight, std=math.sqrt(2 / (d_in + d_out)))


def init_embedding_(weight: Tensor) -> Tensor:
    """Fill a (vocab_size, d_model) table in place with variance 1 before the cut."""
    return truncated_normal_(weight, std=1.0)


def init_gain_(weight: Tensor) -> Tensor:
    """Set the gain of a normalisation to 1 in place: it starts by changing nothing."""
    with torch.no_grad():
        return weight.fill_(1.0)


def truncated_normal_(tensor: Tensor, std: float, cut: float = CUT) -> Tensor:
    """Fill `tensor` in place with samples of N(0, std²), conditioned on |x| <= cut * std.

    If U is uniform on (-e, e) with e = erf(cut / √2), then x = std · √2 · erfinv(U) has that distribution: erfinv is
    the inverse of the normal distribution function up to scale, and the ends ±e map to ±cut. No sample is rejected, so
    the cost and the number of draws are fixed.
    """
    edge = math.erf(cut / math.sqrt(2))
    with torch.no_grad():
        draw = torch.empty_like(tensor, dtype=torch.float32).uniform_(-edge, edge)  # half precision has too few steps
        draw = draw.erfinv_().mul_(std * math.sqrt(2)).clamp_(-cut * std, cut * std)
        return tensor.copy_(draw)
