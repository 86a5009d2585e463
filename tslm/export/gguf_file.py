"""A trained model as a GGUF file, for llama.cpp and what is built on it.

llama.cpp rotates the pairs (2i, 2i + 1) of its Llama, as `TransformerLM` does, so the weights are taken as they are.
Rows of the embedding that belong to no token are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tslm.errors import UserError
from tslm.files import new_output
from tslm.model import TransformerConfig
from tslm.tokenizer import Tokenizer
from tslm.tokenizer.pretokenize import GPT2
from tslm.tokenizer.serialization import bytes_to_text
from tslm.tokenizer.tokenizer_json import token_names
from tslm.training.llama import EPS, NEEDS_EXPORT, translate
from tslm.training.runs import LoadedModel

if TYPE_CHECKING:
    import gguf


def write_gguf(loaded: LoadedModel, output: Path) -> None:
    """Write a GGUF file in float32.

    Raises:
        UserError: the file exists, `gguf` is missing, or the form cannot express the tokenizer.
        OSError: the file cannot be written.
    """
    try:
        import gguf
    except ImportError:
        raise UserError(NEEDS_EXPORT.format(what="--format gguf", package="gguf")) from None
    model, tokenizer, config = loaded.model, loaded.tokenizer, loaded.model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_layers)
    tokens = token_list(tokenizer)
    with new_output(output) as path:
        writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
        try:
            _add_sizes(writer, config, len(tokens))
            _add_tokenizer(writer, tokenizer, tokens)
            for ours, weight in model.state_dict().items():
                if ours == "lm_head.weight" and config.tie_embeddings:
                    continue
                if ours in ("token_embeddings.weight", "lm_head.weight"):
                    weight = weight[: len(tokens)]
                writer.add_tensor(str(names.get_name(str(translate(ours)), (".weight",))), weight.float().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def token_list(tokenizer: Tokenizer) -> list[str]:
    """Return the name of each id; an id without a token that a text could need has one in brackets.

    Raises:
        UserError: llama.cpp cannot express the pattern, there is no special token to end a text, or two tokens would
            have one name.
    """
    if tokenizer.pattern != GPT2:
        raise UserError(f"the tokenizer splits text with the pattern {tokenizer.pattern[:100]!r}, and of those that "
                        f"llama.cpp knows only {GPT2} is the same here: train a tokenizer with --data.pattern {GPT2}")
    if tokenizer.separator is None:
        raise UserError("the tokenizer has no special token, and llama.cpp would end texts at an ordinary one: train a "
                        "tokenizer with --data.special_tokens")
    by_id = {id_: name for name, id_ in token_names(tokenizer).items()}
    return [by_id.get(id_, f"[UNUSED_{id_}]") for id_ in range(tokenizer.vocab_size)]


def _add_sizes(writer: gguf.GGUFWriter, config: TransformerConfig, vocab_size: int) -> None:
    writer.add_file_type(0)  # gguf.LlamaFileType.ALL_F32
    writer.add_vocab_size(vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_heads)
    writer.add_layer_norm_rms_eps(EPS)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, tokens: list[str]) -> None:
    normal, control, unused = 1, 3, 5  # gguf.TokenType
    special, known = set(tokenizer.special_ids.values()), {*token_names(tokenizer).values()}
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre("gpt-2")  # its pattern
    writer.add_token_list(tokens)
    writer.add_token_types([control if id_ in special else normal if id_ in known else unused
                            for id_ in range(len(tokens))])
    writer.add_token_merges([f"{bytes_to_text(left)} {bytes_to_text(right)}" for left, right in tokenizer.merges])
    stop = next(iter(tokenizer.special_ids.values()))
    writer.add_bos_token_id(stop)
    writer.add_eos_token_id(stop)
    writer.add_add_bos_token(False)  # what precedes a text may be more than one token
    writer.add_add_space_prefix(False)
