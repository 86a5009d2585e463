"""`export` against the real readers: transformers, gguf and, where it is installed, llama.cpp."""

import errno
import os
import re
import resource
import signal
import sys

import gguf
import pytest
import tokenizers
import torch
import transformers

import tslm
from tests.export.conftest import CONFIG, PROMPTS, checkpoint, stories
from tests.tokenizer.test_exchange import make
from tslm import TransformerConfig
from tslm.__main__ import main
from tslm.errors import UserError
from tslm.export.formats import check_is_llama
from tslm.tokenizer import Tokenizer


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


def test_special_tokens_that_begin_others_are_announced(tmp_path, capsys):
    """Of two such tokens tiktoken takes the one that its hash table has first."""
    path = checkpoint(tmp_path / "model.ckpt", make("gpt2", ("<", "<a>", "b")))
    assert main(["export", "--format=tokenizer", f"--ckpt_path={path}", f"--output={tmp_path / 'x'}"]) == 0
    said = capsys.readouterr().out
    assert "The special token '<' begins '<a>': where the second is meant, tiktoken may take the first." in said
    assert said.count(" begins ") == 1
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "x" / "tokenizer.json"))
    for text in ("a<a>x", "<<a>xb"):
        assert theirs.encode(text, add_special_tokens=False).ids == tslm.load_run(path).tokenizer.encode(text)


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
