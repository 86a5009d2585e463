"""Logits to text: sampling rules, the key-value cache, the decoding loop, and completion of texts.

Reading order: sampling.py, decoding.py, cache.py, text.py.
"""

from tslm.generation.cache import KeyValueCache
from tslm.generation.decoding import generate, stream
from tslm.generation.sampling import SamplingRule
from tslm.generation.text import Completion, complete, decode_stream, encode_prompt, stream_text

__all__ = [
    "Completion", "KeyValueCache", "SamplingRule", "complete", "decode_stream", "encode_prompt", "generate", "stream",
    "stream_text",
]
