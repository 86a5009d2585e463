"""The programs that the benchmark of generation compares: tslm, and transformers' Llama of the same sizes.

Each is a function `generate(prompts, tokens)` that continues every prompt by a number of tokens. transformers has
several forms, because its user would try dtypes, attention implementations and torch.compile.
"""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch

from tslm.generation import generate
from tslm.model import TransformerConfig, TransformerLM

TOP_P = 0.9
COURSE = TransformerConfig(vocab_size=10_000, context_length=256, d_model=512, num_layers=4, num_heads=16, d_ff=1344)
# Arguments: B lists of prompt ids, and the number of new tokens of each.
Generate = Callable[[list[list[int]], int], object]


class Form(NamedTuple):
    """One way to run transformers' Llama.

    Attributes:
        name: Name in the reports.
        dtype: Dtype of the weights.
        attention: Name that transformers gives the attention implementation.
        compiled: Whether torch.compile compiles the forward pass, with a static cache.
    """

    name: str
    dtype: torch.dtype
    attention: str
    compiled: bool = False


FORMS = [Form("bf16_eager", torch.bfloat16, "eager"), Form("bf16_sdpa", torch.bfloat16, "sdpa"),
         Form("fp32_eager", torch.float32, "eager"), Form("fp32_sdpa", torch.float32, "sdpa")]
COMPILED = [Form("bf16_compiled", torch.bfloat16, "sdpa", True), Form("fp32_compiled", torch.float32, "sdpa", True)]


def tslm_model(config: TransformerConfig, seed: int) -> TransformerLM:
    """Return a model with random initial weights."""
    torch.manual_seed(seed)
    return TransformerLM(config).eval()


def tslm_form(model: TransformerLM, seed: int) -> Generate:
    """Return `tslm.generate` on a model, with nucleus sampling."""
    generator = torch.Generator().manual_seed(seed)
    return lambda prompts, tokens: generate(model, prompts, tokens, top_p=TOP_P, generator=generator)


def transformers_form(config: TransformerConfig, form: Form, seed: int) -> Generate:
    """Return transformers' `generate` on a Llama of the same sizes, with random initial weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    llama = LlamaForCausalLM(LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.d_model, intermediate_size=config.d_ff,
        num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads, rms_norm_eps=1e-5,
        max_position_embeddings=config.context_length, attn_implementation=form.attention,
        bos_token_id=None, eos_token_id=None, pad_token_id=0)).to(form.dtype).eval()
    if form.compiled:
        llama.forward = torch.compile(llama.forward)

    def run(prompts: list[list[int]], tokens: int) -> object:
        ids = torch.tensor(prompts)
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about transformers' own options
            out = llama.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=True,
                                 top_p=TOP_P, top_k=0, cache_implementation="static" if form.compiled else None)
        assert out.shape == (len(prompts), len(prompts[0]) + tokens)
        return out

    return run


def weight_bytes(config: TransformerConfig, bytes_per_weight: int) -> int:
    """Return the bytes that one step of one sequence reads: all weights except the embedding."""
    with torch.device("meta"):
        model = TransformerLM(config)
    return bytes_per_weight * (model.num_parameters() - model.token_embeddings.weight.numel())


def read(size: int) -> Callable[[], object]:
    """Return a function that reads `size` bytes of memory."""
    memory = torch.ones(math.ceil(size / 4))
    return memory.sum


def multiply(config: TransformerConfig, dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """Return a matmul with the weight of the widest layer and 1,024 rows, and its floating-point operations."""
    rows = 1024
    x, weight = torch.randn(rows, config.d_model).to(dtype), torch.randn(config.d_model, 2 * config.d_ff).to(dtype)
    return lambda: x @ weight, 2 * rows * weight.numel()
