"""A trained model as a folder that transformers opens as `LlamaForCausalLM`, without code of ours.

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

`training.llama` reads such a folder; its docstring says what differs from a checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tslm.errors import UserError
from tslm.export.formats import tokenizer_files, write_texts
from tslm.files import atomic_write, new_output
from tslm.model import TransformerConfig, TransformerLM
from tslm.tokenizer import Tokenizer
from tslm.training.llama import CONFIG, EPS, NEEDS_EXPORT, SIZES, pairs_apart, translate
from tslm.training.runs import LoadedModel

GENERATION, WEIGHTS = "generation_config.json", "model.safetensors"


def write_huggingface(loaded: LoadedModel, output: Path) -> None:
    """Write config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json.

    Raises:
        UserError: the folder exists, `safetensors` is missing, or tokenizer.json cannot express the tokenizer.
        OSError: a file cannot be written.
    """
    try:
        from safetensors.torch import save
    except ImportError:
        raise UserError(NEEDS_EXPORT.format(what="--format hf", package="safetensors")) from None
    model, tokenizer, config = loaded.model, loaded.tokenizer, loaded.model.config
    texts = {
        CONFIG: _text(llama_config(config, tokenizer) | {"document_prefix": loaded.prefix}),
        GENERATION: _text(generation_config(config, tokenizer)),
        **tokenizer_files(tokenizer, model_max_length=config.context_length),
    }
    weights = save(llama_weights(model), {"format": "pt"})
    with new_output(output) as folder:
        write_texts(texts, folder)
        with atomic_write(folder / WEIGHTS) as file:
            file.write(weights)


def llama_config(config: TransformerConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of config.json, in the names of transformers 4 and 5."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
        "num_key_value_heads": config.num_heads, "head_dim": config.head_dim, "hidden_act": "silu", "rms_norm_eps": EPS,
        "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0,
        "rope_theta": config.rope_theta, "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings, "torch_dtype": "float32", "use_cache": True,
        "bos_token_id": tokenizer.separator, "eos_token_id": tokenizer.separator,
    }


def generation_config(config: TransformerConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of generation_config.json: the first special token ends a text.

    Rows of the embedding that belong to no token are suppressed, as `generate` does.
    """
    unused = list(range(tokenizer.vocab_size, config.vocab_size))
    stop = tokenizer.separator
    return {"bos_token_id": stop, "eos_token_id": stop, "pad_token_id": stop,
            **({"suppress_tokens": unused} if unused else {})}


def llama_weights(model: TransformerLM) -> dict[str, Any]:
    """Return the weights under Hugging Face's names and in its order of rotated pairs; a tied head has none."""
    weights = {}
    for ours, tensor in model.state_dict().items():
        if ours.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = pairs_apart(tensor, model.config.num_heads)
        if not (ours == "lm_head.weight" and model.config.tie_embeddings):
            weights[str(translate(ours))] = tensor.contiguous()
    return weights


def _text(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, indent=2) + "\n"
