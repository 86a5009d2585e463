"""A folder with one file of every kind, made by a short training, and the uses of these files.

Each use runs in a child forked after the imports of torch and lightning. The parent computes nothing, so that children
inherit neither threads nor cached hashes.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import torch

import tslm.fast.cpu.kernels
import tslm.studies  # noqa: F401
from tests.campaigns.child import Outcome, Use, describe, in_child
from tests.campaigns.damage import replace_folder
from tests.campaigns.project import write_forms
from tslm.__main__ import main
from tslm.cli import CommandLine
from tslm.data.cache import Cache
from tslm.data.toy import write_corpus
from tslm.tokenizer import END_OF_TEXT, TokenFile, Tokenizer, count_pretokens, merge_pretokens
from tslm.training.runs import load_model

_SUBCOMMANDS = CommandLine.subcommands()  # a parser of all of them takes a second to build
SKIPPED = "is damaged or cannot be read, and is skipped"
RUN = "lightning_logs/version_0"
CACHE = "--data.cache_dir=cache"  # never taken from a checkpoint, so each command states it
TINY = [
    "--data.toy_stories=40", CACHE, "--data.vocab_size=300", "--data.context_length=16",
    "--data.batch_size=2", "--data.num_workers=1", "--model.d_model=16", "--model.num_layers=1",
    "--model.num_heads=2", "--model.d_ff=32", "--trainer.max_steps=4", "--trainer.val_every_n_steps=2",
    "--trainer.log_every_n_steps=1", "--trainer.limit_val_batches=3", "--trainer.precision=32-true",
    "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--optimizer.cosine_steps=6",
    "--optimizer.warmup_steps=1", "--generation.max_new_tokens=6", "--trainer.compile=false",
]  # fmt: skip


def command(*words: str) -> str:
    """Run a command line, and return what it prints; a failure ends the process with its exit code."""
    printed = io.StringIO()
    alone = {name: hidden for name, hidden in _SUBCOMMANDS.items() if name == words[0]}
    try:
        with redirect_stdout(printed), mock.patch.object(CommandLine, "subcommands", staticmethod(lambda: alone)):
            code = main(list(words))
    finally:
        print(printed.getvalue(), end="")
    if code:
        raise SystemExit(code)
    return printed.getvalue()


def fit() -> object:
    """Train a new run, from the cache."""
    command("fit", *TINY)
    return trained()


def resume() -> object:
    """Resume the newest run."""
    command("fit", "--ckpt_path=last", "--trainer.max_steps=6", CACHE)
    return trained()


def repeat() -> object:
    """Train as a configuration says."""
    command("fit", f"--config={RUN}/config.yaml")
    return trained()


def trained() -> object:
    """Return the state and the figures of the newest run, without its times and paths."""
    newest = max(Path("lightning_logs").glob("version_*/summary.json"), key=lambda path: path.parent.name)
    state = torch.load(newest.parent / "checkpoints" / "last.ckpt", weights_only=True)
    figures = json.loads(newest.read_text())
    for name in ("seconds", "tokens_per_second", "checkpoint", "continues"):
        del figures[name]
    parts = [state[name] for name in ("global_step", "state_dict", "optimizer_states", "lr_schedulers")]
    return [digest([*parts, state["tslm"]["rng"], state["tslm"]["tokenizer"]]), figures]


def digest(value: object) -> str:
    """Return a hash of nested values and tensors; it is equal only if all bits are equal."""
    if isinstance(value, torch.Tensor):
        value = [str(value.dtype), list(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()]
    if isinstance(value, Mapping):
        value = [[key, digest(each)] for key, each in sorted(value.items(), key=lambda item: repr(item[0]))]
    elif isinstance(value, list | tuple):
        value = [each if isinstance(each, bytes) else digest(each) for each in value]
    return hashlib.sha256(repr(value).encode()).hexdigest()


def validate(*options: str) -> object:
    """Return the figures of `validate`."""
    printed = command("validate", "--trainer.limit_val_batches=3", CACHE, *options)
    return re.findall(r"^valid_\w+ +\S+$", printed, re.MULTILINE)


def prepared() -> object:
    """Prepare everything in an empty cache, and train."""
    command("fit", *TINY, "--data.cache_dir=new_cache")
    return trained()


def predict(*options: str) -> object:
    """Return the stories of `predict`."""
    (path,) = re.findall(r"^Written to (.+)$", command("predict", "--data.prompts=[One day, In]", *options), re.M)
    return Path(path).read_text()


def generate(*options: str) -> object:
    """Return the text that `generate` prints after its notices."""
    text = command("generate", "--prompt=One day", "--max_new_tokens=6", *options)
    return text[text.index("One day") :]


def score(*options: str) -> object:
    """Return the log-probability of the text."""
    return re.findall(r'"log_prob": (\S+),', command("score", "--input=text.txt", *options))


def compare(path: str = RUN) -> object:
    """Return the losses of a run, or a checkpoint, that is compared with itself."""
    return re.findall(r"^  [AB] +\S+", command("compare", path, path), re.MULTILINE)


def runs() -> object:
    """List the runs; damage shows in a column."""
    command("runs", "--sort=valid_loss")
    command("runs", "--json")
    return None


def tokenize_form(name: str) -> object:
    """Encode a text that is compressed or holds records."""
    command("tokenize", "--tokenizer=tokenizer", f"--input={name}", "--output=new.bin", "--num_workers=1")
    return hashlib.sha256(Path("new.bin").read_bytes()).hexdigest()


def load(path: str) -> object:
    """Load a model as a library does."""
    loaded = load_model(path)
    return [digest(loaded.model.state_dict()), loaded.tokenizer.hash, loaded.step]


def read_ids() -> object:
    """Open a token file and read it."""
    return _content(TokenFile.open("ids.bin"))


def read_large_file() -> object:
    """Open a token file as a large one, which is read in full only if its times differ from those in the sidecar."""
    return _content(TokenFile.open("ids.bin", always_read=0))


def _content(file: TokenFile) -> object:
    return [hashlib.sha256(file.ids.tobytes()).hexdigest(), len(file), file.vocab_size, str(file.dtype),
            file.tokenizer_hash, file.source_bytes, file.special_ids]  # fmt: skip


def read_tokenizer() -> object:
    """Read a tokenizer, encode a text, and decode it."""
    tokenizer = Tokenizer.from_dir("tokenizer")
    ids = tokenizer.encode(Path("text.txt").read_text())
    return [tokenizer.hash, ids, tokenizer.decode(ids), tokenizer.special_ids]


def tokenize() -> object:
    """Encode with a tokenizer on the command line."""
    command("tokenize", "--tokenizer=tokenizer", "--input=text.txt", "--output=new.bin")
    return hashlib.sha256(Path("new.bin").read_bytes()).hexdigest()


def validate_with_tokenizer() -> object:
    """Validate with a tokenizer that must be that of the checkpoint."""
    return validate("--data.tokenizer=tokenizer")


class World:
    """The folder `world`, which is used and damaged, and its undamaged `copy`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self._copy = folder, folder / "world", folder / "copy"
        self._references: dict[str, Outcome] = {}

    @classmethod
    def of(cls, folder: Path) -> "World":
        """Return the world of a campaign's folder, made at the first use."""
        if folder not in _worlds:
            _worlds.clear()
            _worlds[folder] = cls(folder)
            _worlds[folder]._make()
        return _worlds[folder]

    def _make(self) -> None:
        self.path.mkdir()

        def make() -> None:
            fit()
            write_corpus(Path("text.txt"), 20, seed=5)
            Path("forms").mkdir()
            Path("forms/s.txt").write_bytes(Path("text.txt").read_bytes())
            write_forms(Path("forms"))
            Tokenizer.from_dir(Path(RUN) / "tokenizer").save("tokenizer")
            merged = merge_pretokens(count_pretokens("text.txt", [END_OF_TEXT]), 300, [END_OF_TEXT])
            Tokenizer(*merged, [END_OF_TEXT]).save("other")
            tokenize()
            os.replace("new.bin", "ids.bin")
            os.replace("new.bin.json", "ids.bin.json")
            validate()  # so that the copy has what a first use writes
            predict()
            compare()

        made = in_child(make, self.path)
        if made.code != 0:
            raise RuntimeError(made.err)
        os.replace(self.path, self._copy)

    def fresh(self) -> Path:
        """Restore the undamaged folder, and let the cache hash its files: their change times are new."""
        replace_folder(self.path, self._copy)
        cache = Cache(self.path / "cache")
        for path in self.files("cache/toy/*/*.txt"):
            cache.content_hash(path)
        TokenFile.open(self.path / "ids.bin")
        return self.path

    def files(self, *patterns: str) -> list[Path]:
        """Return the files that match patterns, in order."""
        return sorted(path for pattern in patterns for path in self.path.glob(pattern) if path.is_file())

    def use(self, use: Use) -> Outcome:
        """Run a use in a child."""
        return in_child(use, self.path)

    def reference(self, use: Use) -> Outcome:
        """Return what a use does in the undamaged folder; run it only once."""
        name = describe(use)
        if name not in self._references:
            self.fresh()
            found = self.use(use)
            if found.code != 0:
                raise RuntimeError(f"{name} fails in the undamaged folder: {found}")
            self._references[name] = found
        return self._references[name]


_worlds: dict[Path, World] = {}
