"""The course's entry points: one function per part of the system, for tests that others wrote.

Names, argument names and order are theirs. The bodies hold no logic: they hand the arguments to tslm.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import IO, Any, BinaryIO

import numpy.typing as npt
import torch
from torch import Tensor

import tslm
from tslm import model as parts


def run_linear(d_in: int, d_out: int, weights: Tensor, in_features: Tensor) -> Tensor:
    """Linear layer: weights (d_out, d_in), in_features (..., d_in) to (..., d_out)."""
    return _loaded(parts.Linear(d_in, d_out), weight=weights)(in_features)


def run_embedding(vocab_size: int, d_model: int, weights: Tensor, token_ids: Tensor) -> Tensor:
    """Embedding lookup: weights (vocab_size, d_model), token_ids (...) to (..., d_model)."""
    return _loaded(parts.Embedding(vocab_size, d_model), weight=weights)(token_ids)


def run_swiglu(d_model: int, d_ff: int, w1_weight: Tensor, w2_weight: Tensor, w3_weight: Tensor,
               in_features: Tensor) -> Tensor:
    """SwiGLU feed-forward layer: in_features (..., d_model) to the same shape."""
    layer = _loaded(parts.SwiGLU(d_model, d_ff),
                    **{"w1.weight": w1_weight, "w2.weight": w2_weight, "w3.weight": w3_weight})
    return layer(in_features)


def run_scaled_dot_product_attention(Q: Tensor, K: Tensor, V: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention: Q (..., queries, d_k), K (..., keys, d_k), V (..., keys, d_v); where mask is True, attend."""
    return parts.scaled_dot_product_attention(Q, K, V, mask)


def run_multihead_self_attention(d_model: int, num_heads: int, q_proj_weight: Tensor, k_proj_weight: Tensor,
                                 v_proj_weight: Tensor, o_proj_weight: Tensor, in_features: Tensor) -> Tensor:
    """Causal multi-head self-attention without RoPE: in_features (..., seq, d_model) to the same shape."""
    layer = _attention(d_model, num_heads, q_proj_weight, k_proj_weight, v_proj_weight, o_proj_weight)
    return layer(in_features)


def run_multihead_self_attention_with_rope(
    d_model: int, num_heads: int, max_seq_len: int, theta: float, q_proj_weight: Tensor, k_proj_weight: Tensor,
    v_proj_weight: Tensor, o_proj_weight: Tensor, in_features: Tensor, token_positions: Tensor | None = None,
) -> Tensor:
    """Causal multi-head self-attention with RoPE at token_positions (..., seq), or at 0 … seq-1."""
    layer = _attention(d_model, num_heads, q_proj_weight, k_proj_weight, v_proj_weight, o_proj_weight)
    rope = parts.RotaryEmbedding(d_model // num_heads, max_seq_len, theta)
    return layer(in_features, rope.at(token_positions, in_features.shape[-2]))


def run_rope(d_k: int, theta: float, max_seq_len: int, in_query_or_key: Tensor, token_positions: Tensor) -> Tensor:
    """RoPE of queries or keys (..., seq, d_k) at token_positions (..., seq)."""
    return parts.RotaryEmbedding(d_k, max_seq_len, theta)(in_query_or_key, token_positions)


def run_transformer_block(d_model: int, num_heads: int, d_ff: int, max_seq_len: int, theta: float,
                          weights: dict[str, Tensor], in_features: Tensor) -> Tensor:
    """One pre-norm block with RoPE: in_features (batch, seq, d_model) to the same shape."""
    block = _loaded(parts.TransformerBlock(d_model, num_heads, d_ff), **weights)
    rope = parts.RotaryEmbedding(d_model // num_heads, max_seq_len, theta)
    return block(in_features, rope.at(None, in_features.shape[-2]))


def run_transformer_lm(vocab_size: int, context_length: int, d_model: int, num_layers: int, num_heads: int, d_ff: int,
                       rope_theta: float, weights: dict[str, Tensor], in_indices: Tensor) -> Tensor:
    """The language model: in_indices (batch, seq) to logits (batch, seq, vocab_size)."""
    config = tslm.TransformerConfig(vocab_size, context_length, d_model, num_layers, num_heads, d_ff, rope_theta)
    return _loaded(tslm.TransformerLM(config), **weights)(in_indices)


def run_rmsnorm(d_model: int, eps: float, weights: Tensor, in_features: Tensor) -> Tensor:
    """RMSNorm over the last dimension with gains weights (d_model)."""
    return _loaded(parts.RMSNorm(d_model, eps), weight=weights)(in_features)


def run_silu(in_features: Tensor) -> Tensor:
    """SiLU, elementwise."""
    return parts.silu(in_features)


def run_softmax(in_features: Tensor, dim: int) -> Tensor:
    """Softmax along dim."""
    return tslm.softmax(in_features, dim)


def run_cross_entropy(inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (batch, vocab_size) against targets (batch)."""
    return tslm.cross_entropy(inputs, targets)


def run_get_batch(dataset: npt.NDArray[Any], batch_size: int, context_length: int,
                  device: str) -> tuple[Tensor, Tensor]:
    """Random windows of a token array and the same windows one token later."""
    return tslm.get_batch(dataset, batch_size, context_length, device)


def run_gradient_clipping(parameters: Iterable[torch.nn.Parameter], max_l2_norm: float) -> None:
    """Scale the gradients in place so that their joint l2 norm is at most max_l2_norm."""
    tslm.clip_gradients(parameters, max_l2_norm)


def get_adamw_cls() -> type[torch.optim.Optimizer]:
    """The AdamW class."""
    return tslm.AdamW


def run_get_lr_cosine_schedule(it: int, max_learning_rate: float, min_learning_rate: float, warmup_iters: int,
                               cosine_cycle_iters: int) -> float:
    """Learning rate at step it."""
    return tslm.lr_cosine_schedule(it, max_learning_rate, min_learning_rate, warmup_iters, cosine_cycle_iters)


def run_save_checkpoint(model: torch.nn.Module, optimizer: torch.optim.Optimizer, iteration: int,
                        out: str | os.PathLike[str] | BinaryIO | IO[bytes]) -> None:
    """Write model, optimizer and iteration to a path or a binary file."""
    tslm.save_checkpoint(model, optimizer, iteration, out)


def run_load_checkpoint(src: str | os.PathLike[str] | BinaryIO | IO[bytes], model: torch.nn.Module,
                        optimizer: torch.optim.Optimizer) -> int:
    """Restore model and optimizer, and return the iteration."""
    return tslm.load_checkpoint(src, model, optimizer)


def get_tokenizer(vocab: dict[int, bytes], merges: list[tuple[bytes, bytes]],
                  special_tokens: list[str] | None = None) -> tslm.Tokenizer:
    """A BPE tokenizer with encode, encode_iterable and decode."""
    return tslm.Tokenizer(vocab, merges, special_tokens)


def run_train_bpe(input_path: str | os.PathLike[str], vocab_size: int, special_tokens: list[str],
                  **kwargs: Any) -> tuple[dict[int, bytes], list[tuple[bytes, bytes]]]:
    """Train BPE on a file; returns vocabulary and merges."""
    return tslm.train_bpe(input_path, vocab_size, special_tokens, **kwargs)


def _attention(d_model: int, num_heads: int, q: Tensor, k: Tensor, v: Tensor, o: Tensor) -> torch.nn.Module:
    return _loaded(parts.MultiHeadSelfAttention(d_model, num_heads),
                   **{"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v, "output_proj.weight": o})


def _loaded(module: torch.nn.Module, **weights: Tensor) -> torch.nn.Module:
    module.load_state_dict(weights)
    return module
