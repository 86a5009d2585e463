"""`export` against the real readers: transformers, safetensors, gguf and, where it is installed, llama.cpp."""

import contextlib
import errno
import itertools
import json
import os
import random
import re
import resource
import signal
import sys

import gguf
import pytest
import safetensors.torch
import torch
import transformers

import tslm
from tests.tokenizer.test_exchange import make
from tslm import TransformerConfig, TransformerLM
from tslm.__main__ import main
from tslm.errors import MissingFileError, UserError
from tslm.export.formats import check_is_llama
from tslm.tokenizer import Tokenizer, tokenizer_texts

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


def test_transformers_opens_the_folder_without_code_of_ours(exported):
    run = tslm.load_run(exported / "model.ckpt")
    model = transformers.AutoModelForCausalLM.from_pretrained(exported / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported / "hf")
    assert type(model) is transformers.LlamaForCausalLM
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == run.tokenizer.separator == 0
    ids = torch.randint(0, CONFIG.vocab_size, (3, CONFIG.context_length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = run.model(ids), model(ids).logits
    assert ours.std() > 0.5
    assert (ours - theirs).abs().max() < 1e-4
    endings = set()
    for prompt, story in zip(PROMPTS, stories(exported / "model.ckpt"), strict=True):
        text = run.tokenizer.decode(run.prefix) + prompt
        inputs = tokenizer(text, return_tensors="pt")
        assert inputs.input_ids[0].tolist() == run.tokenizer.encode(text)
        new = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs.input_ids.shape[1]:].tolist()
        new = new[: new.index(0)] if 0 in new else new
        assert run.tokenizer.decode(new) == story.text
        specials = {*run.tokenizer.special_ids.values()}
        assert tokenizer.decode(new, skip_special_tokens=True) == run.tokenizer.decode(
            [id_ for id_ in new if id_ not in specials])
        endings.add(story.stop_reason)
    assert len({story.text for story in stories(exported / "model.ckpt")}) > 2
    assert "length" in endings


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


def test_the_gguf_file_is_read_back_by_its_own_reader(exported):
    run, reader = tslm.load_run(exported / "model.ckpt"), gguf.GGUFReader(exported / "gguf")
    size, vocab = run.tokenizer.vocab_size, tslm.load_run(exported / "model.ckpt").tokenizer.vocab
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert fields["general.architecture"] == "llama"
    assert [fields[f"llama.{name}"] for name in (
        "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
        "attention.head_count_kv", "rope.dimension_count", "rope.freq_base", "vocab_size",
    )] == [2, 64, 32, 96, 4, 4, 8, 5000.0, size]
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert [fields[f"tokenizer.ggml.{name}"] for name in ("model", "pre", "bos_token_id", "eos_token_id",
                                                          "add_bos_token")] == ["gpt2", "gpt-2", 0, 0, False]
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(set(tokens)) == len(types) == size
    assert tokens[:3] == ["<|end of text|>", "«fin»", "a b"]
    assert types[:3] == [3, 3, 3]
    shadowed = {vocab[id_]: tokens[id_] == f"[UNUSED_{id_}]" for id_, type_ in enumerate(types) if type_ == 5}
    assert shadowed == {b" ": True, "Ω".encode(): True}
    assert len(fields["tokenizer.ggml.merges"]) == len(run.tokenizer.merges)
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    assert torch.equal(tensors["blk.1.attn_q.weight"], run.model.layers[1].attn.q_proj.weight)
    assert torch.equal(tensors["blk.0.ffn_gate.weight"], run.model.layers[0].ffn.w1.weight)
    assert torch.equal(tensors["token_embd.weight"], run.model.token_embeddings.weight[:size])
    assert ("output.weight" in tensors) is not run.model.config.tie_embeddings


def test_llama_cpp_writes_the_same_stories(exported):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    run = tslm.load_run(exported / "model.ckpt")
    llama = llama_cpp.Llama(str(exported / "gguf"), n_ctx=64, n_threads=1, verbose=False, logits_all=True,
                            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)  # else float16
    ids = torch.randint(0, run.tokenizer.vocab_size, (48,), generator=torch.Generator().manual_seed(0))
    llama.eval(ids.tolist())
    theirs = torch.from_numpy(llama.scores[:48].copy())
    with torch.no_grad():
        assert (run.model(ids)[:, : run.tokenizer.vocab_size] - theirs).abs().max() < 1e-3
    llama.reset()
    for prompt, story in zip(PROMPTS, stories(exported / "model.ckpt"), strict=True):
        text = run.tokenizer.decode(run.prefix) + prompt
        ids = llama.tokenize(text.encode(), add_bos=False, special=True)
        assert ids == run.tokenizer.encode(text)
        new = []
        for id_ in llama.generate(ids, temp=0.0, repeat_penalty=1.0):
            if id_ == 0 or len(new) == 20:
                break
            new.append(id_)
        assert run.tokenizer.decode(new) == story.text


def test_the_tokenizer_alone(exported, tmp_path, capsys):
    own = tslm.load_run(exported / "model.ckpt").tokenizer
    command = ["export", "--format=tokenizer", f"--ckpt_path={exported / 'model.ckpt'}"]
    assert main([*command, f"--output={tmp_path / 'new' / 'tok'}"]) == 0
    folder = tmp_path / "new" / "tok"
    assert sorted(path.name for path in folder.iterdir()) == [
        "tokenizer.json", "tokenizer.tiktoken", "tokenizer.tiktoken.json", "tokenizer_config.json"]
    for path in (folder, folder / "tokenizer.json", folder / "tokenizer.tiktoken"):
        assert Tokenizer.from_dir(path).hash == own.hash
    small = Tokenizer(dict(enumerate([b"<|e|>", b"a", b"b", b"ab"])), [(b"a", b"b")], ["<|e|>"])
    path = checkpoint(tmp_path / "small.ckpt", small)
    assert main(["export", "--format=tokenizer", f"--ckpt_path={path}", f"--output={tmp_path / 'small'}"]) == 0
    assert "tokenizer.tiktoken is left out: the vocabulary lacks the byte 0x00" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_what_cannot_be_written_is_one_sentence_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    paths = {"good": checkpoint(tmp_path / "good.ckpt")}
    paths |= {name: checkpoint(tmp_path / f"{name}.ckpt", make(*arguments)) for name, arguments in {
        "cl100k": ("cl100k", ("<|e|>",)), "nameless": ("gpt2", ()), "clash": ("gpt2", ("<|e|>", "é")),
        "own": (r"\w+|\W", ("<|e|>",))}.items()}
    (tmp_path / "there").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for name, kind, output, sentence in [
        ("good", "onnx", "x", "format"),
        ("good", "hf", "there", "the output .*there exists, and it is not replaced: give another --output"),
        ("good", "gguf", "good.ckpt", "the output .*good.ckpt exists"),
        ("missing", "hf", "x", "there is no checkpoint at .*missing"),
        ("cl100k", "gguf", "x", "pattern 'cl100k', and of those that llama.cpp knows only gpt2"),
        ("nameless", "gguf", "x", "no special token, and llama.cpp would end texts at an ordinary one"),
        ("clash", "hf", "x", "both have the name 'é'"),
        ("clash", "gguf", "x", "both have the name 'é'"),
        ("own", "tokenizer", "x", "may have another meaning in other programs"),
        ("good", "hf", "good.ckpt/x", "Not a directory|File exists"),
    ]:
        path = paths.get(name, tmp_path / name)
        assert main(["export", f"--format={kind}", f"--ckpt_path={path}", f"--output={tmp_path / output}"]) == 2
        error = capsys.readouterr().err
        assert re.search(sentence, error), error
        assert error.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
    for kind, package in [("hf", "safetensors"), ("gguf", "gguf")]:
        for module in ("safetensors", "safetensors.torch", "gguf"):
            monkeypatch.setitem(sys.modules, module, None)
        options = [f"--format={kind}", f"--ckpt_path={paths['good']}", f"--output={tmp_path / 'x'}"]
        assert main(["export", *options]) == 2
        assert f"needs the package {package}: install it with pip install 'tslm[export]'" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["hf", "gguf", "tokenizer"])
def test_a_full_disk_leaves_nothing(tmp_path, capsys, monkeypatch, kind):
    path = checkpoint(tmp_path / "model.ckpt")
    command = ["export", f"--format={kind}", f"--ckpt_path={path}", f"--output={tmp_path / 'x'}"]

    def fail(_file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        assert main(command) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "x") in error
    assert "No space left on device" in error
    assert [each.name for each in tmp_path.iterdir()] == ["model.ckpt"]
    handler, limit = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limit[1]))
        assert main(command) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    error = capsys.readouterr().err
    assert str(tmp_path / "x") in error
    assert error.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["model.ckpt"]
    assert main(command) == 0


@pytest.mark.parametrize(("setting", "value", "known"), [
    ("norm", "post", "pre"), ("position", "none", "rope"), ("ffn", "silu", "swiglu"), ("ffn", "mine.Layer", "swiglu"),
    ("qk_norm", True, "false")])
def test_a_model_that_is_no_llama_is_refused_by_its_setting(tmp_path, setting, value, known):
    config = TransformerConfig(**vars(CONFIG) | {setting: value})
    shown = "true" if value is True else value
    with pytest.raises(UserError, match=f"trained with model.{setting} {shown}, and .*only with {known}: train one"):
        check_is_llama(config, "x")


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
