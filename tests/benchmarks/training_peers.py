"""The peers of the benchmark of training: litgpt and transformers, with the loop that their users would write.

The models have the same sizes as tslm's (`Shape` holds the arguments of `TransformerConfig`). Each function imports
only what it needs, because it runs in a new process (see `measure.run_alone`).

litgpt pins older versions of huggingface_hub and jsonargparse than those that transformers and tslm are tested with.
Its model works with the newer ones: `pip install psutil && pip install --no-deps litgpt`.
"""

# The peers use what the from-scratch rule excludes from tslm: torch.nn.functional, torch.optim, and their own layers.
from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tslm.model import TransformerLM

Shape = dict[str, int]
PACKAGES = ("litgpt", "transformers")
FORMS = ("eager", "compiled", "blocks compiled")  # compiled: model and loss as a whole, or each block
MAX_NORM = 1.0


def step_of(
    peer: str, form: str, shape: Shape, batches: Iterator[tuple[Tensor, Tensor]], seed: int, device: str,
    bfloat16: bool = True,
) -> Callable[[], None]:
    """Return a function that takes one optimizer step: draw, forward, backward, clip, update.

    Args:
        peer: One of `PACKAGES`.
        form: One of `FORMS`.
        shape: Sizes of the model.
        batches: Endless pairs of inputs and targets, both (batch, context).
        seed: Seed of the initial weights.
        device: "cpu" or "cuda".
        bfloat16: whether matmuls run in bfloat16, under autocast, or in float32.
    """
    import torch

    torch.manual_seed(seed)
    model, blocks, logits_of = _litgpt(shape) if peer == "litgpt" else _transformers(shape)
    model.to(device)
    loss_of: Callable[[Tensor, Tensor], Tensor] = partial(_loss, logits_of)
    if form == "compiled":
        loss_of = torch.compile(loss_of)
    elif form == "blocks compiled":
        for block in blocks:
            block.compile()
    parameters = list(model.parameters())
    optimizer = _faster_adamw(parameters)

    def step() -> None:
        inputs, targets = next(batches)
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            loss = loss_of(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _loss(logits_of: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy. The losses of both libraries end in this call; litgpt computes it in chunks."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits_of(inputs).flatten(0, 1).float(), targets.flatten())


def _faster_adamw(parameters: list[Tensor]) -> torch.optim.AdamW:
    """Return torch's AdamW in its faster form for these parameters: fused or foreach."""
    import torch

    def seconds(**kind: bool) -> float:
        optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, **kind)  # changes no weight
        times = []
        for _ in range(4):
            start = time.perf_counter()
            optimizer.step()
            if parameters[0].is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    kinds: list[dict[str, bool]] = [{"fused": True}, {"foreach": True}]
    fastest = min(kinds, key=lambda kind: seconds(**kind))
    for parameter in parameters:
        parameter.grad = None
    return torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01, **fastest)


def _litgpt(shape: Shape) -> tuple[torch.nn.Module, Iterable[torch.nn.Module], Callable[[Tensor], Tensor]]:
    from litgpt.config import Config
    from litgpt.model import GPT

    model = GPT(Config(
        block_size=shape["context_length"], vocab_size=shape["vocab_size"], padded_vocab_size=shape["vocab_size"],
        n_layer=shape["num_layers"], n_head=shape["num_heads"], n_embd=shape["d_model"],
        intermediate_size=shape["d_ff"], rotary_percentage=1.0, parallel_residual=False, bias=False,
        norm_class_name="RMSNorm", norm_eps=1e-5, mlp_class_name="LLaMAMLP",
    ))
    model.apply(model._init_weights)
    return model, model.transformer.h, model


def _transformers(shape: Shape) -> tuple[torch.nn.Module, Iterable[torch.nn.Module], Callable[[Tensor], Tensor]]:
    model = llama(shape)
    return model, model.model.layers, lambda inputs: model(input_ids=inputs, use_cache=False).logits


def llama(shape: Shape, rope_theta: float = 10_000.0) -> Any:
    """Return transformers' Llama with its own initial weights and torch's attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(
        vocab_size=shape["vocab_size"], hidden_size=shape["d_model"], intermediate_size=shape["d_ff"],
        num_hidden_layers=shape["num_layers"], num_attention_heads=shape["num_heads"],
        max_position_embeddings=shape["context_length"], rms_norm_eps=1e-5, tie_word_embeddings=False,
        attn_implementation="sdpa", use_cache=False, rope_theta=rope_theta,
    ))


_LLAMA_NAMES = {
    "token_embeddings": "model.embed_tokens", "layers": "model.layers", "attn": "self_attn", "output_proj": "o_proj",
    "ln1": "input_layernorm", "ln2": "post_attention_layernorm", "ffn": "mlp", "w1": "gate_proj", "w2": "down_proj",
    "w3": "up_proj", "ln_final": "model.norm",
}


def llama_of(model: TransformerLM) -> Any:
    """Return transformers' Llama with the weights of a tslm model, so that both compute the same logits.

    The rotary embedding of transformers rotates components i and i + K/2 of a head together, and tslm's rotates 2i and
    2i + 1. So the rows of W_q and W_k are permuted.
    """
    c = model.config
    shape = {name: value for name, value in vars(c).items() if name != "rope_theta"}
    state = {}
    for name, weight in model.state_dict().items():
        if ".q_proj" in name or ".k_proj" in name:
            pairs = weight.view(c.num_heads, c.head_dim // 2, 2, c.d_model)
            weight = pairs.transpose(1, 2).reshape(c.d_model, c.d_model)
        state[".".join(_LLAMA_NAMES.get(part, part) for part in name.split("."))] = weight
    theirs = llama(shape, c.rope_theta)
    theirs.load_state_dict(state)
    return theirs
