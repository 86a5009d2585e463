"""A folder of Hugging Face as a checkpoint: the way back of `export`, and what our model cannot express."""

import contextlib
import itertools
import json
import os
import random
import sys

import pytest
import safetensors.torch
import torch
import transformers

import tslm
from tests.export.conftest import stories
from tslm.__main__ import main
from tslm.errors import MissingFileError, UserError
from tslm.tokenizer import Tokenizer


def test_the_folder_is_read_back_bit_for_bit(exported):
    first, again = tslm.load_run(exported / "model.ckpt"), tslm.load_run(exported / "hf")
    assert again.model.config == first.model.config
    assert again.tokenizer.hash == first.tokenizer.hash
    assert again.tokenizer.special_tokens == first.tokenizer.special_tokens
    assert (again.prefix, again.step, again.summary, again.config) == (first.prefix, 0, {}, {})
    for (name, weight), other in zip(first.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(weight, other), name
    assert stories(exported / "hf") == stories(exported / "model.ckpt")
    second = exported / "again"
    if not second.exists():
        assert main(["export", "--format=hf", f"--ckpt_path={exported / 'hf'}", f"--output={second}"]) == 0
    for path in sorted(second.iterdir()):
        assert path.read_bytes() == (exported / "hf" / path.name).read_bytes()


def test_transformers_own_folder_is_read(exported, tmp_path):
    """What transformers saves, in several files and bfloat16, and what a training of another program has begun."""
    model = transformers.AutoModelForCausalLM.from_pretrained(exported / "hf")
    transformers.AutoTokenizer.from_pretrained(exported / "hf").save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 1
    ours = tslm.load_run(tmp_path).model
    expected = tslm.load_run(exported / "hf")
    for weight, other in zip(ours.state_dict().values(), expected.model.state_dict().values(), strict=True):
        assert torch.equal(weight, other)
    assert tslm.load_run(tmp_path).tokenizer.encode("the «fin»a b") == expected.tokenizer.encode("the «fin»a b")
    half = tmp_path / "half"
    transformers.AutoTokenizer.from_pretrained(exported / "hf").save_pretrained(half)
    model.bfloat16().save_pretrained(half)
    read = tslm.load_run(half).model
    assert read.token_embeddings.weight.dtype == torch.float32
    query, rounded = (each.layers[1].attn.q_proj.weight for each in (read, expected.model))
    assert torch.equal(query, rounded.bfloat16().float())


@pytest.mark.parametrize(("change", "sentence"), [
    ({"model_type": "gpt2"}, r'model_type is "gpt2", which this model cannot express; it must be "llama"'),
    ({"attention_bias": True}, r"attention_bias is true"),
    ({"mlp_bias": True}, r"mlp_bias is true"),
    ({"num_key_value_heads": 2}, r"num_key_value_heads is 2, which this model cannot express; it must be 4"),
    ({"head_dim": 16}, r"head_dim is 16"),
    ({"hidden_act": "gelu"}, r'hidden_act is "gelu"'),
    ({"rms_norm_eps": 1e-6}, r"rms_norm_eps is 1e-06, .* must be 1e-05"),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, r'rope_scaling is "llama3"'),
    ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, r'rope_scaling is "linear"'),
    ({"quantization_config": {"bits": 4}}, r"quantization_config is"),
    ({"hidden_size": "big"}, r'hidden_size is "big"; it must be a whole number'),
    ({"num_hidden_layers": 0}, r"num_hidden_layers is 0"),
    ({"num_hidden_layers": 3}, r"layers\.2\.attn\.k_proj\.weight is absent in the checkpoint"),
    ({"num_hidden_layers": 10**6}, r"bytes of weights, which do not suffice"),
    ({"max_position_embeddings": 10**9}, r"impossible context_length"),
    ({"vocab_size": 512}, r"vocab_size is 512, but the tokenizer beside it has ids up to 599"),
    ({"rope_theta": "x", "rope_parameters": None}, r'rope_theta is "x"'),
    ({"rope_parameters": {"rope_theta": -1.0}}, r"rope_theta"),
    ({"bos_token_id": 3.5, "document_prefix": "no"}, r"holds the part tslm\.document_prefix"),
])
def test_a_llama_that_our_model_cannot_express_is_refused_by_its_field(exported, tmp_path, change, sentence):
    folder = tmp_path / "llama"
    folder.mkdir()
    for path in (exported / "hf").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=sentence):
        tslm.load_run(folder)


ODD = [None, True, -1, 0, 2.5, 10**30, 1e400, "", "x", "\ud800", [], [1], ["a b"], {}, {"type": "Split"}]


def leaves(value, path=()):
    """Yield the paths of a JSON value's parts; of long lists and of vocabularies the first ones."""
    if path:
        yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in [*parts][:24]:
        yield from leaves(each, (*path, key))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.tiktoken.json"])
def test_odd_values_in_a_folder_of_others_are_refused_in_a_sentence(exported, tmp_path, name):
    assert main(["export", "--format=tokenizer", f"--ckpt_path={exported / 'hf'}", f"--output={tmp_path / 'tok'}"]) == 0
    folder = tmp_path / "tok"
    (folder / "config.json").write_bytes((exported / "hf" / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes((exported / "hf" / "model.safetensors").read_bytes())
    text, refused = (folder / name).read_text(encoding="utf-8"), 0
    cases = [*itertools.product(leaves(json.loads(text)), ODD)]
    for path, odd in random.Random(name).sample(cases, 60):
        content = json.loads(text)
        part = content
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = odd
        (folder / name).write_text(json.dumps(content))
        with contextlib.suppress(UserError):
            run = tslm.load_run(folder)
            Tokenizer.from_dir(folder / "tokenizer.tiktoken")
            tslm.complete(run.model, run.tokenizer, ["the"], 1, prefix=run.prefix)
            refused -= 1
        refused += 1
    assert refused > 10


def test_a_folder_needs_the_package_of_its_weights(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match=r"hf needs the package safetensors: .* pip install 'tslm\[export\]'"):
        tslm.load_run(exported / "hf")


def test_weights_that_our_model_has_no_place_for_are_named(exported, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((exported / "hf" / name).read_bytes())
    (tmp_path / "tokenizer.json").rename(tmp_path / "aside")
    with pytest.raises(MissingFileError, match=r"has no tokenizer\.json, without which its model reads no text"):
        tslm.load_run(tmp_path)
    (tmp_path / "aside").rename(tmp_path / "tokenizer.json")
    with pytest.raises(MissingFileError, match=r"has no \.safetensors file, and other files of weights may hold code"):
        tslm.load_run(tmp_path)
    weights = safetensors.torch.load_file(exported / "hf" / "model.safetensors")
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}
    safetensors.torch.save_file(weights | bias, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"has the weight model\.layers\.0\.self_attn\.q_proj\.bias"):
        tslm.load_run(tmp_path)
    del weights["model.norm.weight"]
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"ln_final\.weight is absent"):
        tslm.load_run(tmp_path)
    content = (exported / "hf" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content)
    (tmp_path / "other.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"other\.safetensors has the weight .*, which another file of .* has too"):
        tslm.load_run(tmp_path)
    (tmp_path / "other.safetensors").unlink()
    os.mkfifo(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other\.safetensors is no regular file"):
        tslm.load_run(tmp_path)
    (tmp_path / "other.safetensors").unlink()
    for damaged in (content[:-8], content[:100], b"", b"\xff" * 64):
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.safetensors is damaged or cannot be read"):
            tslm.load_run(tmp_path)
    for text in ("[]", "{", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config\.json is not the configuration of a model"):
            tslm.load_run(tmp_path)


def test_commands_take_a_llama_of_hugging_face(exported, project, story_file, capsys):
    """`generate` and `fit --init_from` start from it; there is nothing that `fit --ckpt_path` could resume."""
    folder = exported / "hf"
    story = ["--prompt=the lower", "--temperature=0", "--max_new_tokens=20"]
    assert main(["generate", f"--ckpt_path={exported / 'model.ckpt'}", *story]) == 0
    expected = capsys.readouterr().out
    assert main(["generate", f"--ckpt_path={folder}", *story]) == 0
    assert capsys.readouterr().out == expected
    fit = ["fit", f'--data.train_files=["{story_file}"]', f"--data.cache_dir={project / 'cache'}",
           "--data.batch_size=2", "--data.num_workers=1", "--trainer.max_steps=1", "--trainer.accelerator=cpu",
           "--optimizer.lr=0", "--trainer.precision=32-true", "--generation.max_new_tokens=2",
           "--trainer.enable_progress_bar=false"]
    assert main([*fit, f"--ckpt_path={folder}"]) == 2
    assert "start a new run from its weights with --init_from" in capsys.readouterr().err
    assert not [*project.glob("lightning_logs/*")]
    assert main([*fit, f"--init_from={folder}"]) == 0
    trained, first = tslm.load_run("last"), tslm.load_run(folder)
    assert trained.model.config == first.model.config
    assert trained.tokenizer.hash == first.tokenizer.hash
    assert torch.equal(trained.model.layers[0].attn.k_proj.weight, first.model.layers[0].attn.k_proj.weight)
    options = [f"--data.tokenizer={folder / 'tokenizer.json'}", f"--data.vocab_size={first.tokenizer.vocab_size}",
               "--data.context_length=32", "--model.d_model=16", "--model.num_layers=1", "--model.num_heads=2",
               "--model.d_ff=32", '--data.special_tokens=["<|end of text|>"]']
    assert main([*fit, *options, "--name=second"]) == 0  # a new model with the tokenizer alone
    assert tslm.load_run("last").tokenizer.hash == first.tokenizer.hash
    assert [path.name for path in project.glob("lightning_logs/second")] == ["second"]
