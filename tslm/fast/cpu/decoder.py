"""Generation on a CPU in C: weights are packed and a cache is allocated once; then each step is one call.

torch's operators would spend most of a step on their own overhead and on products with a single row.

Shapes: B sequences, N tokens of a call, D d_model, H heads, K head dimension, F d_ff, V vocab_size, C slots.
"""

# ruff: noqa: ANN401 - the model's class belongs to the core, which this package does not import
from __future__ import annotations

import contextlib
import copy
import ctypes
import mmap
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tslm.fast.cpu import build
from tslm.fast.door import Case, Substitute
from tslm.fast.forms import cpu_multiplies_bfloat16, form_of

SOURCES = (Path(__file__).with_name("decode.c"),)
PANEL, HEAD_COLUMNS = 64, 32  # as in simd.h
MAX_CALL = 256  # most tokens of a call; a longer prompt takes several calls, which keeps the scratch buffers small
BFLOAT16_FROM = 2**22  # weights; a smaller model fits into the processor's cache even in float32
# Relative errors of the logits that are accepted. Correct kernels stay below 1e-5 and 1e-2; a wrong one is off by 1.
_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
_PROBE_TOKENS = 256  # at most; enough to show a window of attention


class _Layer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("ln1", "ln2", "qkv", "output", "gate_up", "down")]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("d_model", "num_layers", "num_heads", "d_ff", "vocab_size", "batch",
                                              "capacity", "threads")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("embeddings", "rotation", "ln_final", "head", "layers", "keys", "values",
                                               "x", "wide", "input")),
    ]


class ModelForm:
    """The key under which agreement is remembered: a model's sizes, the classes of its modules, and the dtype.

    Two models with the same key are equal here. The probes run on the model that the key was made from.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.model = weakref.ref(model)
        self._key = model.config, dtype, tuple((type(module), getattr(module, "eps", 0)) for module in model.modules())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelForm) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def kernel_dtype(model: Any) -> torch.dtype | None:
    """Return the dtype in which the kernel multiplies a model's weights; None if the kernel does not support the model.

    It is bfloat16 if the processor multiplies bfloat16 and one of these holds: the model is in bfloat16, it runs under
    autocast to bfloat16, or it has at least `BFLOAT16_FROM` weights, so that reading them takes most of a step.
    Otherwise it is float32. Models with hooks, other weights or weights outside the CPU are not supported.
    """
    modules = list(model.modules())
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return None
    if len({module.eps for module in modules if hasattr(module, "eps")}) != 1:  # the kernel has one for all norms
        return None
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if parameters.keys() != _names(model.config.num_layers) or model.config.position != "rope":
        return None
    dtype = form_of(model.lm_head.weight).compute_dtype
    if dtype not in _TOLERANCES or any(parameter.device.type != "cpu" for parameter in parameters.values()):
        return None
    if dtype == torch.float32 and sum(parameter.numel() for parameter in parameters.values()) < BFLOAT16_FROM:
        return torch.float32
    return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32


def _names(num_layers: int) -> set[str]:
    """The names of the weights that the kernel reads."""
    layer = [*(f"attn.{name}_proj" for name in ("q", "k", "v", "output")), "ln1", "ln2", "ffn.w1", "ffn.w2", "ffn.w3"]
    return {f"{name}.weight" for name in ("token_embeddings", "ln_final", "lm_head")} | {
        f"layers.{i}.{name}.weight" for i in range(num_layers) for name in layer}


class Decoder:
    """Packed weights, key-value cache and scratch buffers of one generation; substitute for `decoding.next_logits`.

    The matrices are copies in the kernel's order. Embedding and gains are read in place if they are float32, so the
    model must not change while this object is in use.

    Args:
        model: a TransformerLM.
        batch_size: number of sequences, B.
        max_length: largest number of tokens of a sequence in the cache, at most context_length.
        dtype: the dtype of the products; None for the one that `kernel_dtype` returns.
    """

    def __init__(self, model: Any, batch_size: int, max_length: int, dtype: torch.dtype | None = None) -> None:
        dtype = dtype or kernel_dtype(model)
        assert dtype is not None
        self._library = build.load(SOURCES, dtype)
        self._config, self._threads = model.config, torch.get_num_threads()
        self._per_word = 2 if dtype == torch.bfloat16 else 1
        self._kept: list[object] = []  # memory that only C points to
        self._length = [0] * batch_size  # tokens in the cache of each sequence
        c = model.config
        layers = (_Layer * c.num_layers)()
        for to, layer in zip(layers, model.layers, strict=True):
            to.ln1, to.ln2 = self._floats(layer.ln1.weight), self._floats(layer.ln2.weight)
            to.qkv = self._panels(layer.attn.q_proj, layer.attn.k_proj, layer.attn.v_proj)
            to.output = self._panels(layer.attn.output_proj)
            to.gate_up = self._panels(layer.ffn.w1, layer.ffn.w3)
            to.down = self._panels(layer.ffn.w2)
        self._kept.append(layers)
        capacity, heads = _padded(max_length), c.num_layers * batch_size * c.num_heads
        rows = min(MAX_CALL, batch_size * capacity)
        self._logits = torch.empty(batch_size, _padded(c.vocab_size), dtype=torch.float32)
        self._model = _Model(
            c.d_model, c.num_layers, c.num_heads, c.d_ff, c.vocab_size, batch_size, capacity, self._threads,
            model.ln_final.eps, self._floats(model.token_embeddings.weight), self._floats(model.rope.table),
            self._floats(model.ln_final.weight), self._panels(model.lm_head), ctypes.addressof(layers),
            # Zeros, because a masked slot takes part in a product with weight 0, and 0 · NaN is NaN.
            self._words(heads * self._depth(c.head_dim) * capacity),
            self._words(heads * self._depth(capacity) * _padded(c.head_dim, HEAD_COLUMNS)),
            self._words(rows * _padded(c.d_model)), self._words(rows * _padded(max(3 * c.d_model, 2 * c.d_ff))),
            self._words(rows * self._depth(max(c.d_model, c.d_ff))),
        )

    def __call__(self, growing: dict[int, list[int]]) -> Tensor:
        """Return the logits (B, V) of the next token, given {row: all tokens so far}; see `decoding.NextLogits`.

        Only new tokens pass through the model. Once a sequence is longer than context_length, its window slides, and
        the whole window passes through the model. The next call overwrites the result.
        """
        ids: list[int] = []
        rows: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        context = self._config.context_length
        for row, tokens in growing.items():
            start = self._length[row] if len(tokens) <= context else 0
            start = min(start, len(tokens) - 1)  # the logits of the last token are always needed
            new = tokens[-context:][start:]
            ids += new
            rows += [row] * len(new)
            positions += range(start, start + len(new))
            last.append(len(ids) - 1)
            self._length[row] = start + len(new)
        done = 0
        for first in range(0, len(ids), MAX_CALL):
            call = slice(first, first + MAX_CALL)
            ends = [index - first for index in last if first <= index < first + MAX_CALL]
            self._library.forward(
                ctypes.byref(self._model), len(ids[call]), _ints(ids[call]), _ints(rows[call]), _ints(positions[call]),
                len(ends), _ints(ends), ctypes.c_void_p(self._logits[done:].data_ptr()))
            done += len(ends)
        return self._logits[:done, : self._config.vocab_size]

    def _depth(self, size: int) -> int:
        return -(-size // self._per_word)

    def _words(self, count: int) -> int:
        """Allocate zeroed memory and return its address.

        The memory is in large pages if the system has them, which makes a step with 32 sequences a tenth faster.
        """
        memory = mmap.mmap(-1, 4 * count)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # an operating system without large pages
                memory.madvise(mmap.MADV_HUGEPAGE)
        self._kept.append(memory)
        return ctypes.addressof(ctypes.c_char.from_buffer(memory))

    def _floats(self, tensor: Tensor) -> int:
        memory = tensor.detach().float().contiguous()
        self._kept.append(memory)
        return memory.data_ptr()

    def _panels(self, *layers: Any) -> int:
        """Pack the weights of layers with the same input side by side."""
        size = layers[0].weight.shape[1]
        to = self._words(_padded(sum(len(layer.weight) for layer in layers)) * self._depth(size))
        first = 0
        for layer in layers:
            weight = layer.weight.detach().float().contiguous()
            self._library.pack(ctypes.c_void_p(weight.data_ptr()), len(weight), size, first, ctypes.c_void_p(to),
                               self._threads)
            first += len(weight)
        return to


def _padded(size: int, to: int = PANEL) -> int:
    return -(-size // to) * to


def _ints(values: Sequence[int]) -> ctypes.Array[ctypes.c_int32]:
    return (ctypes.c_int32 * len(values))(*values)


def _supports(model: Any, batch_size: int, max_length: int) -> ModelForm | None:
    dtype = kernel_dtype(model) if batch_size else None
    return None if dtype is None else ModelForm(model, dtype)


def _probes(form: ModelForm) -> list[Case]:
    build.load(SOURCES, form.dtype)
    model = form.model()
    assert model is not None
    if form.dtype != model.lm_head.weight.dtype == torch.bfloat16:  # the plain function would multiply in bfloat16
        model = copy.deepcopy(model).float()
    config = model.config
    length = min(_PROBE_TOKENS, config.context_length)
    tokens = [position % config.vocab_size for position in range(length)]

    def prompt_then_steps(next_logits: Callable[[dict[int, list[int]]], Tensor]) -> Tensor:
        """Return the logits after a prompt and after each of the tokens that follow."""
        with torch.inference_mode():
            return torch.cat([next_logits({0: tokens[:end]}).float().clone()
                              for end in range(max(1, length - 2), length + 1)])

    return [Case((model, 1, length), prompt_then_steps)]


def _precise(form: ModelForm) -> ModelForm | None:
    model = form.model()
    return ModelForm(model, torch.float32) if form.dtype != torch.float32 and model is not None else None


NEXT_LOGITS = Substitute(
    Decoder, _supports, _probes, tolerance=lambda form: _TOLERANCES[form.dtype], precise=_precise,
    probed=lambda form: partial(Decoder, dtype=form.dtype),
)
