"""Logits to text: sampling rules, the decoding loop, and completion of texts.

Reading order: sampling.py, decoding.py, text.py. The key-value cache is in model/kv_cache.py.
"""

from tslm.generation.decoding import generate, stream
from tslm.generation.sampling import SamplingRule
from tslm.generation.text import Completion, complete, decode_stream, encode_prompt, stream_text

__all__ = [
    "Completion", "SamplingRule", "complete", "decode_stream", "encode_prompt", "generate", "stream", "stream_text",
]
