"""Token ids to logits: the Transformer, its layers, and the formulas that they are made of.

Reading order: functional.py (the formulas), layers.py, rope.py, attention.py, transformer.py; then fused.py, which
computes the same with fewer passes over memory, and native/, which does so in C.
"""

from tslm.model.attention import MultiHeadSelfAttention
from tslm.model.config import TransformerConfig
from tslm.model.functional import scaled_dot_product_attention, silu, softmax
from tslm.model.layers import Embedding, Linear, RMSNorm, SwiGLU
from tslm.model.rope import RotaryEmbedding
from tslm.model.transformer import TransformerBlock, TransformerLM

__all__ = [
    "Embedding", "Linear", "MultiHeadSelfAttention", "RMSNorm", "RotaryEmbedding", "SwiGLU", "TransformerBlock",
    "TransformerConfig", "TransformerLM", "scaled_dot_product_attention", "silu", "softmax",
]
