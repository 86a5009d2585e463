"""Token ids to logits: the Transformer, its layers, and the formulas that they use.

Reading order: ops.py (every formula, once), layers.py, attention.py, rope.py, transformer.py, init.py, kv_cache.py.
"""

from tslm.model.attention import MultiHeadSelfAttention
from tslm.model.config import TransformerConfig
from tslm.model.layers import Embedding, Linear, RMSNorm, SiLUFeedForward, SwiGLU
from tslm.model.ops import scaled_dot_product_attention, silu, softmax
from tslm.model.rope import RotaryEmbedding
from tslm.model.transformer import TransformerBlock, TransformerLM

__all__ = [
    "Embedding", "Linear", "MultiHeadSelfAttention", "RMSNorm", "RotaryEmbedding", "SiLUFeedForward", "SwiGLU",
    "TransformerBlock", "TransformerConfig", "TransformerLM", "scaled_dot_product_attention", "silu", "softmax",
]
