"""The project from which the commands of a campaign start: a text, a vocabulary, a token file and a run."""

import contextlib
import gzip
import json
import lzma
import os
import shutil
from pathlib import Path

import zstandard

from tests.campaigns.forked import run_command
from tests.conftest import ROOT
from tslm.data.toy import write_corpus
from tslm.fast.cpu.build import _folder

TINY = [
    "--data.corpus=files", '--data.train_files=["s.txt"]', "--data.cache_dir=c", "--data.vocab_size=300",
    "--data.context_length=32", "--data.batch_size=4", "--data.num_workers=1", "--model.d_model=16",
    "--model.num_layers=1", "--model.num_heads=2", "--model.d_ff=32", "--trainer.max_steps=1",
    "--trainer.precision=32-true", "--trainer.accelerator=cpu", "--generation.max_new_tokens=2",
    "--trainer.enable_progress_bar=false",
]
FIT = ["fit", "--config", str(ROOT / "configs" / "text.yaml"), *TINY]
VOCABULARY = ["--input=s.txt", "--vocab_size=270", "--num_workers=1"]


def fresh_project(folder: Path) -> Path:
    """Return a copy of the project in a folder; the first call makes the project."""
    template, project = folder / "template", folder / "project"
    if not template.exists():
        template.mkdir()
        write_corpus(template / "s.txt", 100, seed=7)
        write_forms(template)
        (template / "v.yaml").write_text("data: {seed: 3}\n", encoding="utf-8")
        for words in (["train-tokenizer", "--output=v", *VOCABULARY], FIT,
                      ["tokenize", "--tokenizer=v", "--input=s.txt", "--output=old", "--num_workers=1"]):
            outcome = run_command(words, template)
            assert outcome.code == 0, outcome.text
    shutil.rmtree(project, ignore_errors=True)
    shutil.copytree(template, project)
    return project


def write_forms(folder: Path) -> None:
    """Write the text `s.txt` of a folder in all other forms that are read, all with checksums."""
    text = (folder / "s.txt").read_bytes()
    documents = [{"text": document} for document in text.decode().split("<|endoftext|>")]
    records = "".join(json.dumps(document) + "\n" for document in documents).encode()
    (folder / "many").mkdir()
    for number, document in enumerate(documents):
        (folder / "many" / f"{number}.txt").write_text(document["text"], encoding="utf-8")
    packed = zstandard.ZstdCompressor(write_checksum=True).compress(text)
    files = {"s.jsonl": records, "s.jsonl.gz": gzip.compress(records), "s.txt.xz": lzma.compress(text),
             "s.txt.zst": packed, "s.txt.gz": gzip.compress(text)}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with contextlib.suppress(ImportError):  # an extra of the project
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(documents), folder / "s.parquet", write_page_checksum=True)


def contents(folder: Path) -> set[str]:
    """Return the paths of all files."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def private_environment(folder: Path):
    """Keep the commands from the user's cache folder, from the network and from other processors."""
    ours = {"XDG_CACHE_HOME": str(folder / "home"), "HF_ENDPOINT": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1"}
    if not (folder / "home").exists() and _folder().is_dir():  # the C kernels need not be compiled again
        shutil.copytree(_folder(), folder / "home" / "tslm", ignore=shutil.ignore_patterns(".*.new"))
    before = dict(os.environ)
    os.environ |= ours
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before
