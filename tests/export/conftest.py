"""A checkpoint with certain text, and what `export` makes of it."""

import pytest
import torch

import tslm
from tests.tokenizer.test_exchange import make
from tslm import TransformerConfig, TransformerLM
from tslm.__main__ import main
from tslm.tokenizer import tokenizer_texts

CONFIG = TransformerConfig(vocab_size=640, context_length=64, d_model=32, num_layers=2, num_heads=4, d_ff=96,
                           rope_theta=5000.0)
PROMPTS = ["", "the lower", "字字 Ünïcode «fin»\n\n  x's", "a b 12345 \t\t"]


def checkpoint(path, tokenizer=None, config=CONFIG, prefix=(0, 12), seed=3):
    """Write a checkpoint with weights that give varied, certain text."""
    torch.manual_seed(seed)
    model = TransformerLM(config)
    tokenizer = make() if tokenizer is None else tokenizer
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(1 + 0.2 * torch.randn_like(weight)) if "ln" in name else weight.mul_(3.0)
        model.lm_head.weight[tokenizer.vocab_size:] += 0.5  # rows that belong to no token and would often win
        model.lm_head.weight[0] += 0.15  # the stop token ends some of the texts
    state = {
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()}, "global_step": 7,
        "tslm": {"architecture": vars(config), "tokenizer": tokenizer_texts(tokenizer),
                 "document_prefix": list(prefix), "config": {}, "left_out": []},
    }
    torch.save(state, path)
    return path


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def exported(request, tmp_path_factory):
    """A checkpoint, and its folder for transformers and file for llama.cpp."""
    folder = tmp_path_factory.mktemp("export")
    config = TransformerConfig(**vars(CONFIG) | {"tie_embeddings": request.param})
    path = checkpoint(folder / "model.ckpt", config=config)
    for kind in ("hf", "gguf"):
        assert main(["export", f"--format={kind}", f"--ckpt_path={path}", f"--output={folder / kind}"]) == 0
    return folder


def stories(path, prompts=PROMPTS):
    run = tslm.load_run(path)
    return tslm.complete(run.model, run.tokenizer, prompts, 20, temperature=0.0, prefix=run.prefix, allow_special=True)
