"""Logits to text: sampling rules, the key-value cache, the decoding loop, and completion of texts.

Reading order: sampling.py, decoding.py, cache.py, text.py; then kernel.c, kernel_sampling.c and native.py, which
compute the same on a CPU, about as fast as the memory delivers the weights.
"""

from tslm.generation.cache import KeyValueCache
from tslm.generation.decoding import generate, stream
from tslm.generation.sampling import SamplingRule
from tslm.generation.text import Completion, complete, decode_stream, encode_prompt, stream_text

__all__ = [
    "Completion", "KeyValueCache", "SamplingRule", "complete", "decode_stream", "encode_prompt", "generate", "stream",
    "stream_text",
]
