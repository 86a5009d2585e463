"""DESIGN.md's table of who may import what, read off the imports of every file in tslm/, wherever they stand."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tslm"
FILES = sorted(PACKAGE.rglob("*.py"))
ANYTHING = {"fast", "tokenizer", "model", "generation", "objective", "optim", "data", "loops", "training", "export",
            "studies", "commands", "cli", ""}

# room: (rooms it may import from besides itself, third parties). "" is the package itself, `import tslm`.
# zstandard and pyarrow read compressed files and Parquet. DESIGN.md lists tqdm and filelock under "Dependencies": they
# show progress, and lock the folder in which data is prepared.
TABLE = {
    "fast": (set(), {"numpy", "regex", "torch", "triton"}),
    "tokenizer": ({"fast"}, {"numpy", "regex", "tqdm", "zstandard", "pyarrow"}),
    "model": ({"fast"}, {"torch"}),
    "generation": ({"model", "tokenizer", "fast"}, {"torch"}),
    "objective": ({"model", "fast"}, {"torch"}),
    "optim": ({"model", "fast"}, {"torch"}),
    "data": ({"tokenizer"}, {"torch", "numpy", "lightning", "huggingface_hub", "filelock", "tqdm"}),
    "loops": (set(), {"torch"}),
    "training": ({"fast", "tokenizer", "model", "generation", "objective", "optim", "data", "loops", ""},
                 {"torch", "numpy", "lightning", "tensorboard", "tqdm", "safetensors", "matplotlib"}),
    "export": (ANYTHING, {"torch", "numpy", "safetensors", "gguf", "jsonargparse", "lm_eval"}),
    "studies": (ANYTHING, {"torch", "numpy", "lightning", "jsonargparse", "tqdm", "yaml", "matplotlib"}),
    "commands": (ANYTHING, {"torch", "numpy", "jsonargparse", "tqdm", "yaml", "lightning"}),  # parsed.py alone
    "cli": (ANYTHING, {"torch", "lightning", "jsonargparse", "yaml"}),
    "errors": (set(), set()),  # every room but fast may import it
    "files": (set(), set()),  # every room may import it
    "__main__": ({"", "fast", "commands"}, set()),  # the first page of help, which imports nothing heavy
    "__init__": (ANYTHING, set()),
}
# Rooms of the core, which may import nothing of fast/ but the decorator.
CORE = {"tokenizer", "model", "generation", "objective", "optim"}
# What only loops/lightning.py may touch: everything in Lightning's loop modules, and its protected names elsewhere.
LOOP_ATTRIBUTES = {"fit_loop", "epoch_loop", "_batches_that_stepped", "automatic_optimization_loop"}


def room_of(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imports(tree):
    """Yield every imported module with its line, `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def violations(source, path):
    """Return what breaks the table in a file, one line each."""
    room, found, tree = room_of(path), [], ast.parse(source)
    rooms, third_parties = TABLE[room]
    is_lightning_driver = path.relative_to(PACKAGE).as_posix() == "loops/lightning.py"
    for line, name in imports(tree):
        top, *rest = name.split(".")
        if name.startswith("tslm.files.") or (name.startswith("tslm.errors.") and room != "fast"):
            continue
        if top == "tslm":
            other = rest[0] if rest and rest[0] in ANYTHING else ""
            if other != room and other not in rooms:
                found.append(f"line {line}: {room} may not import {name}")
            elif other == "fast" and room in CORE and name != "tslm.fast.replaceable":
                found.append(f"line {line}: {room} may import nothing of fast but replaceable, not {name}")
        elif top == "lightning" and is_lightning_driver:
            continue
        elif top not in sys.stdlib_module_names and top not in third_parties:
            found.append(f"line {line}: {room} may not import {top}")
        elif top == "lightning" and ("loops" in rest or any(part.startswith("_") for part in rest)):
            found.append(f"line {line}: {name} belongs to loops/lightning.py")
    if not is_lightning_driver:
        found += [
            f"line {node.lineno}: .{node.attr} belongs to loops/lightning.py"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in LOOP_ATTRIBUTES
        ]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_import_table(path):
    assert violations(path.read_text(), path) == []


def test_import_table_names_every_room():
    rooms = {room_of(path) for path in FILES}
    assert rooms <= set(TABLE)
    assert {"tokenizer", "model", "generation", "objective", "optim", "data", "loops", "training"} <= rooms


@pytest.mark.parametrize(("path", "source"), [
    ("tokenizer/bpe.py", "import torch"),
    ("tokenizer/bpe.py", "def f():\n    from torch import Tensor"),
    ("tokenizer/bpe.py", "from tslm.data import windows"),
    ("tokenizer/bpe.py", "from tslm import softmax"),
    ("model/layers.py", "import numpy as np"),
    ("model/ops.py", "from tslm.fast import shut"),
    ("tokenizer/bpe.py", "from tslm.fast.tokenizer import scanner"),
    ("fast/door.py", "from tslm.model import ops"),
    ("fast/door.py", "from tslm.errors import UserError"),
    ("files.py", "import torch"),
    ("files.py", "from tslm.tokenizer import Tokenizer"),
    ("model/layers.py", "from tslm.optim import AdamW"),
    ("generation/text.py", "from tslm import training"),
    ("optim/adamw.py", "from tslm.tokenizer import Tokenizer"),
    ("objective.py", "import lightning.pytorch as pl"),
    ("loops/step.py", "import lightning.pytorch as pl"),
    ("loops/step.py", "from tslm.training import trainer"),
    ("training/trainer.py", "from lightning.pytorch.loops.fit_loop import _FitLoop"),
    ("training/trainer.py", "from lightning.pytorch.trainer.call import _call_callback_hooks"),
    ("training/trainer.py", "trainer.fit_loop.epoch_loop = loop"),
    ("training/trainer.py", "from tslm.cli import main"),
    ("training/trainer.py", "import transformers"),
    ("__main__.py", "import jsonargparse"),
    ("__main__.py", "from tslm.tokenizer import Tokenizer"),
])
def test_import_table_catches_planted_violations(path, source):
    assert violations(source, PACKAGE / path) != []


def test_import_table_holds_when_things_run():
    """What is imported is more than what is written: the light parts must not pull the heavy ones in behind them."""
    source = """
import sys
HEAVY = {"torch", "lightning", "numpy", "jsonargparse", "huggingface_hub", "tensorboard"}
import tslm, tslm.__main__
assert not HEAVY & set(sys.modules), HEAVY & set(sys.modules)
assert "AdamW" in dir(tslm) and not HEAVY & set(sys.modules)
import tslm.fast
assert not HEAVY & set(sys.modules), HEAVY & set(sys.modules)
import tslm.tokenizer
from tslm import Tokenizer, train_bpe, encode_files, TokenFile, count_pretokens, merge_pretokens
assert not (HEAVY - {"numpy"}) & set(sys.modules), HEAVY & set(sys.modules)
import tslm.commands.arguments, tslm.commands.train_tokenizer, tslm.commands.tokenize
assert not {"torch", "lightning"} & set(sys.modules)
import tslm.model, tslm.objective, tslm.optim, tslm.generation, tslm.data, tslm.loops
assert "lightning" not in sys.modules
try:
    tslm.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error)
else:
    raise AssertionError("an unknown name was found")
"""
    subprocess.run([sys.executable, "-c", source], check=True, timeout=120)
