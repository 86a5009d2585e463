"""The Transformer language model: logits of the next token for each position of a sequence of token ids.

    token_embeddings → num_layers × block → ln_final → lm_head;   block:  x += attn(ln1 x);  x += ffn(ln2 x)

These are the default parts; `TransformerConfig` names the alternatives.

Shapes: B batch (any leading dimensions), T positions, S cached positions, D d_model, V vocab_size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import Module, ModuleList
from torch.utils.checkpoint import checkpoint

from tslm.errors import UserError
from tslm.model.attention import MultiHeadSelfAttention
from tslm.model.config import Norm, TransformerConfig
from tslm.model.kv_cache import KeyValueCache, LayerCache
from tslm.model.layers import Embedding, Linear, RMSNorm, SiLUFeedForward, SwiGLU
from tslm.model.own_classes import import_named
from tslm.model.rope import RotaryEmbedding


class TransformerLM(Module):
    """A decoder-only Transformer without biases; by default with pre-norm RMSNorm, RoPE, SwiGLU and an untied head.

    Args:
        config: sizes and parts; the weights are drawn from torch's global generator (see init.py).

    Attributes:
        recompute: whether the backward pass computes the activations inside each block again instead of keeping them
            (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").

    Source: Vaswani et al. 2017, with the changes of LLaMA (Touvron et al. 2023).

    State-dict names: token_embeddings.weight, layers.{i}.attn.{q,k,v,output}_proj.weight, layers.{i}.ln1.weight,
    layers.{i}.ln2.weight, layers.{i}.ffn.{w1,w2,w3}.weight, ln_final.weight, lm_head.weight. A part that a config
    leaves out has none. With qk_norm there are layers.{i}.attn.{q,k}_norm.weight.

    Example:
        >>> model = TransformerLM(TransformerConfig(vocab_size=512, context_length=64, d_model=32, num_layers=2,
        ...                                         num_heads=4, d_ff=96))
        >>> model(torch.zeros(8, 10, dtype=torch.int64)).shape
        torch.Size([8, 10, 512])
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embeddings = Embedding(config.vocab_size, config.d_model)
        has_rope = config.position == "rope"
        self.rope = RotaryEmbedding(config.head_dim, config.context_length, config.rope_theta) if has_rope else None
        self.layers = ModuleList(
            TransformerBlock(config.d_model, config.num_heads, config.d_ff, config.norm, config.ffn, config.qk_norm)
            for _ in range(config.num_layers))
        self.ln_final = RMSNorm(config.d_model) if config.norm == "pre" else None  # `post` has just normalised
        self.lm_head = Linear(config.d_model, config.vocab_size)
        if config.tie_embeddings:  # with the head's small weights: the embedding's would give logits of size √D
            self.token_embeddings.weight = self.lm_head.weight
        self.recompute = False
        self._run_compiled: Callable[..., Tensor] | None = None

    def forward(self, token_ids: Tensor, positions: Tensor | None = None,
                cache: KeyValueCache | None = None) -> Tensor:
        """Logits (..., T, V) of the token after each of `token_ids` (..., T); arguments as in `hidden`."""
        return self.lm_head(self.hidden(token_ids, positions, cache))  # type: ignore[no-any-return]

    def hidden(self, token_ids: Tensor, positions: Tensor | None = None, cache: KeyValueCache | None = None,
               document_starts: Tensor | None = None) -> Tensor:
        """The normalised output of the last block (..., T, D), from which the head computes the logits.

        Training uses this, because `objective.linear_cross_entropy` joins the head with the loss.

        Args:
            token_ids: (..., T), integers in 0 … V-1, T at most context_length.
            positions: each token's position in its sequence (B, T), for tokens that continue cached sequences; None
                for 0 … T-1.
            cache: keys and values of earlier tokens, which this call extends.
            document_starts: the first position of each token's document (..., T), see `ops.document_starts_of`: a
                token attends to its own document only. Not together with positions or a cache. None if each sequence
                is one document.

        Raises:
            UserError: T exceeds context_length.
        """
        length = token_ids.shape[-1]
        if length > self.config.context_length:
            raise UserError(f"a sequence of {length} tokens is longer than context_length = "
                            f"{self.config.context_length}; pass at most the last {self.config.context_length} tokens")
        rotation = None if self.rope is None else self.rope.at(positions, length)
        mask = None
        if cache is not None and positions is not None:
            mask = torch.arange(cache.length, device=token_ids.device) <= positions.unsqueeze(-1)  # (B, T, S)
        x = self.token_embeddings(token_ids)
        training = cache is None and torch.is_grad_enabled()
        run = (self._run_compiled or _run) if training else _run
        recomputed = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
        run_block = recomputed if self.recompute and training else run
        for i, block in enumerate(self.layers):
            layer_cache = None if cache is None else cache.layers[i]
            x = run_block(block, x, rotation, document_starts, layer_cache, positions, mask)
        return x if self.ln_final is None else run(self.ln_final, x)

    def compile_layers(self, on: bool = True) -> None:
        """Run the layers compiled, from the next call on, wherever gradients are recorded; `on=False` undoes this.

        One block is compiled at its first use, and all blocks use the result; compiling the whole model would take
        minutes instead of seconds. Validation and generation, whose shapes change, are not compiled. The compiler's
        errors appear in the first forward and backward pass, and the caller must handle them.
        """
        self._run_compiled = torch.compile(_run, dynamic=False) if on else None

    def num_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self) -> int:
        """Floating-point operations per token of training at full context, forward and backward.

        6 per weight of a matmul (2 forward, 4 backward; the embedding is a lookup), plus
        6 · num_layers · context_length · d_model for the two matmuls of causal attention. Chowdhery et al. 2022,
        "PaLM", appendix B, have 12 instead of this 6, because they count the masked half too.
        """
        c = self.config
        weights = sum(p.numel() for p in self.parameters() if p.ndim == 2)
        weights -= 0 if c.tie_embeddings else self.token_embeddings.weight.numel()
        return 6 * (weights + c.num_layers * c.context_length * c.d_model)


class TransformerBlock(Module):
    """Attention, then the feed-forward layer, each added to its input x.

        pre     x + layer(ln(x))     normalisation inside the branch (Xiong et al. 2020)
        post    ln(x + layer(x))     the original Transformer (Vaswani et al. 2017, section 3.1)
        none    x + layer(x)

    Shapes: (..., T, D) to (..., T, D). The arguments are those of `TransformerConfig`.
    """

    def __init__(self, d_model: int, num_heads: int, d_ff: int, norm: Norm = "pre", ffn: str = "swiglu",
                 qk_norm: bool = False) -> None:
        super().__init__()
        self.norm = norm
        # The state of an optimizer numbers the weights in this order.
        self.ln1 = None if norm == "none" else RMSNorm(d_model)
        self.attn = MultiHeadSelfAttention(d_model, num_heads, qk_norm)
        self.ln2 = None if norm == "none" else RMSNorm(d_model)
        self.ffn = feed_forward(ffn, d_model, d_ff)

    def forward(self, x: Tensor, rotation: Tensor | None = None, document_starts: Tensor | None = None,
                cache: LayerCache | None = None, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Apply the block to (..., T, D); the other arguments are those of the attention."""
        x = self._add(x, self.ln1, lambda x: self.attn(x, rotation, document_starts, cache, positions, mask))
        return self._add(x, self.ln2, self.ffn)

    def _add(self, x: Tensor, ln: Module | None, layer: Callable[[Tensor], Tensor]) -> Tensor:
        if ln is None:
            return x + layer(x)
        return x + layer(ln(x)) if self.norm == "pre" else ln(x + layer(x))


def feed_forward(kind: str, d_model: int, d_ff: int) -> Module:
    """Make the feed-forward layer of a block: `swiglu`, `silu`, or an instance of the class that `kind` names.

    Raises:
        UserError: the class cannot be imported, refuses d_model and d_ff, or makes no layer from (..., D) to (..., D).
    """
    builtin: dict[str, Callable[[int, int], Module]] = {"swiglu": SwiGLU, "silu": SiLUFeedForward}
    if kind in builtin:
        return builtin[kind](d_model, d_ff)
    make, place = import_named(kind, "model.ffn"), f"model.ffn is {kind}, which"
    try:
        layer = make(d_model, d_ff)
    except (Exception, SystemExit) as error:  # whatever the user's class raises
        raise UserError(f"{place} cannot be made from d_model and d_ff: {type(error).__name__}: {error}") from error
    if not isinstance(layer, Module):
        raise UserError(f"{place} makes no layer: name a subclass of Module")
    x = torch.zeros(1, 2, d_model)
    try:
        with torch.random.fork_rng([]), torch.no_grad():
            y = copy.deepcopy(layer)(x)  # a copy, because a layer may count its calls
    except (Exception, SystemExit) as error:
        raise UserError(f"{place} fails for an input of the shape {(*x.shape,)}: {type(error).__name__}: {error}"
                        ) from error
    if not isinstance(y, Tensor) or y.shape != x.shape:
        found = f"the shape {(*y.shape,)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise UserError(f"{place} makes {found} of an input of the shape {(*x.shape,)}: it must keep the shape")
    return layer


def _run(layer: Module, *arguments: object) -> Tensor:
    """Call a layer; compiled once, this function serves all blocks."""
    return layer(*arguments)  # type: ignore[no-any-return]
