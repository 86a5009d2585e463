"""Reads the Llama of a folder of Hugging Face as a checkpoint, if `TransformerLM` can express it.

Only names and an order differ: RoPE rotates the features (i, i + K/2) of a head there and (2i, 2i + 1) here, which a
permutation of the rows of W_q and W_k undoes. Weights are read from safetensors files only, which hold no code.

Source: transformers, models/llama/modeling_llama.py and convert_llama_weights_to_hf.py.

Shapes: D d_model, H heads, K head dimension.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from tslm.errors import MissingFileError, UserError
from tslm.tokenizer import Tokenizer, tokenizer_texts

CONFIG = "config.json"
EPS = 1e-5  # of `layers.RMSNorm`
NEEDS_EXPORT = "{what} needs the package {package}: install it with pip install 'tslm[export]'"
# Our names of weights and Hugging Face's, without `.weight`; {} is the number of the block.
NAMES = {
    "token_embeddings": "model.embed_tokens", "ln_final": "model.norm", "lm_head": "lm_head",
    "layers.{}.attn.q_proj": "model.layers.{}.self_attn.q_proj",
    "layers.{}.attn.k_proj": "model.layers.{}.self_attn.k_proj",
    "layers.{}.attn.v_proj": "model.layers.{}.self_attn.v_proj",
    "layers.{}.attn.output_proj": "model.layers.{}.self_attn.o_proj",
    "layers.{}.ln1": "model.layers.{}.input_layernorm", "layers.{}.ln2": "model.layers.{}.post_attention_layernorm",
    "layers.{}.ffn.w1": "model.layers.{}.mlp.gate_proj", "layers.{}.ffn.w2": "model.layers.{}.mlp.down_proj",
    "layers.{}.ffn.w3": "model.layers.{}.mlp.up_proj",
}
SIZES = {"vocab_size": "vocab_size", "context_length": "max_position_embeddings", "d_model": "hidden_size",
         "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "d_ff": "intermediate_size"}


def is_llama_folder(path: Path) -> bool:
    """Whether a path is a folder of a model of Hugging Face, and not one of checkpoints."""
    return (path / CONFIG).is_file() and not any(path.glob("*.ckpt"))


def translate(name: str, *, ours: bool = False) -> str | None:
    """Return Hugging Face's name of one of our weights, or with `ours` our name of theirs; None if there is none."""
    table = {theirs: our for our, theirs in NAMES.items()} if ours else NAMES
    number = re.search(r"(?<=layers\.)\d+", name)
    key = (name if number is None else name.replace(number[0], "{}", 1)).removesuffix(".weight")
    found = table.get(key) if name.endswith(".weight") else None
    return found and f"{found.format(number[0] if number else '')}.weight"


def pairs_apart(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder the rows of W_q or W_k (D, D): in each head first those of the even features, then those of the odd."""
    return weight.view(num_heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def pairs_together(weight: Tensor, num_heads: int) -> Tensor:
    """Undo `pairs_apart`."""
    return weight.view(num_heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def read_llama(folder: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, as far as `load_model` needs it.

    Raises:
        MissingFileError: the folder has no safetensors file or no tokenizer.
        UserError: `safetensors` is not installed, a file is damaged, or the model differs from ours; the message names
            the field or the weight.
    """
    place = folder / CONFIG
    try:
        config = json.loads(place.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no object")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not the configuration of a model ({error}): give another folder") from None
    architecture = _architecture(config, place)
    try:
        tokenizer = Tokenizer.from_dir(folder)
    except MissingFileError as error:
        raise MissingFileError(f"{folder} has no tokenizer.json, without which its model reads no text: save its "
                               "tokenizer there") from error
    if tokenizer.vocab_size > architecture["vocab_size"]:
        raise UserError(f"{place}: vocab_size is {architecture['vocab_size']}, but the tokenizer beside it has ids up "
                        f"to {tokenizer.vocab_size - 1}: give a folder whose files belong together")
    begin = config.get("bos_token_id")
    prefix = config.get("document_prefix", [begin] if type(begin) is int and begin in tokenizer.vocab else [])
    if isinstance(prefix, list) and not all(type(id_) is int and id_ in tokenizer.vocab for id_ in prefix):
        raise UserError(f"{place}: document_prefix is {json.dumps(prefix)[:60]}, but it must be a list of ids of the "
                        "tokenizer")
    return {
        "global_step": 0,
        "state_dict": {f"model.{name}": weight for name, weight in _weights(folder, architecture).items()},
        "tslm": {"architecture": architecture, "document_prefix": prefix, "is_llama_folder": True,
                 "tokenizer": tokenizer_texts(tokenizer)},
    }


def _architecture(config: dict[str, Any], place: Path) -> dict[str, Any]:
    """Return the arguments of `TransformerConfig`; what they cannot express is refused."""
    _expect(place, "model_type", config.get("model_type"), "llama")
    sizes: dict[str, int] = {}
    for ours, theirs in SIZES.items():
        size = config.get(theirs)
        if type(size) is not int or size < 1:
            raise UserError(f"{place}: {theirs} is {json.dumps(size)}; it must be a whole number of at least 1")
        sizes[ours] = size
    # An absent field has the default of transformers.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = rope if isinstance(rope, dict) else {"rope_type": rope}
    head_dim = sizes["d_model"] // sizes["num_heads"]
    for field, value, expected in [
        ("num_key_value_heads", config.get("num_key_value_heads") or sizes["num_heads"], sizes["num_heads"]),
        ("head_dim", config.get("head_dim") or head_dim, head_dim),
        ("hidden_act", config.get("hidden_act", "silu"), "silu"),
        ("rms_norm_eps", config.get("rms_norm_eps", 1e-6), EPS),
        ("attention_bias", config.get("attention_bias", False), False),
        ("mlp_bias", config.get("mlp_bias", False), False),
        ("rope_scaling", rope.get("rope_type", rope.get("type", "default")), "default"),
        ("partial_rotary_factor", rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)), 1.0),
        ("quantization_config", config.get("quantization_config"), None),
    ]:
        _expect(place, field, value, expected)
    theta, tied = rope.get("rope_theta", config.get("rope_theta", 10_000.0)), config.get("tie_word_embeddings", False)
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not isinstance(tied, bool):
        raise UserError(f"{place}: rope_theta is {json.dumps(theta)} and tie_word_embeddings {json.dumps(tied)}; the "
                        "first must be a number, the second true or false")
    return {**sizes, "rope_theta": float(theta), "tie_embeddings": tied}


def _expect(place: Path, field: str, value: object, expected: object) -> None:
    if value != expected:
        raise UserError(f"{place}: {field} is {json.dumps(value)[:60]}, which this model cannot express; it must be "
                        f"{json.dumps(expected)}")


def _weights(folder: Path, architecture: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights under our names, in float32."""
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(NEEDS_EXPORT.format(what=f"reading {folder}", package="safetensors")) from None
    weights, files = {}, sorted(folder.glob("*.safetensors"))
    if not files:
        raise MissingFileError(f"{folder} has no .safetensors file, and other files of weights may hold code: save the "
                               "model with safetensors")
    for path in files:
        if path.exists() and not path.is_file():  # to open a named pipe would wait for its writer
            raise UserError(f"{path} is no regular file: save the model again")
        try:
            tensors = load_file(path)
        except Exception as error:  # SafetensorError, OSError, ValueError, …
            raise UserError(f"{path} is damaged or cannot be read ({' '.join(str(error).split())[:120]})") from error
        for theirs, tensor in tensors.items():
            ours = translate(theirs, ours=True)
            if theirs.endswith("rotary_emb.inv_freq"):  # follows from rope_theta
                continue
            if ours is None:
                raise UserError(f"{path} has the weight {theirs[:100]}, for which this model has no place: its layers "
                                "have no biases and no other parts")
            if ours in weights:
                raise UserError(f"{path} has the weight {theirs}, which another file of {folder} has too: keep only "
                                "the files of one model there")
            tensor = tensor.float() if tensor.is_floating_point() else tensor
            if ours.endswith(("q_proj.weight", "k_proj.weight")) and tensor.shape == (architecture["d_model"],) * 2:
                tensor = pairs_together(tensor, architecture["num_heads"])
            weights[ours] = tensor
    if architecture["tie_embeddings"] and "token_embeddings.weight" in weights:
        weights["lm_head.weight"] = weights["token_embeddings.weight"]
    return weights

