"""The package: its public names, its console command, what its import costs, and the checks before a commit."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import tslm
from tests.conftest import ROOT
from tslm.__main__ import main
from tslm.errors import as_called


def test_every_public_name_is_that_of_its_package():
    assert sorted(tslm.__all__) == sorted([*tslm._HOME, "__version__"])
    for name, package in tslm._HOME.items():
        found = getattr(tslm, name)
        assert found is getattr(importlib.import_module(package), name)
        assert found.__module__.startswith(package)


def test_type_checkers_see_every_public_name():
    tree = ast.parse(Path(tslm.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert {alias.name: node.module for node in block.body for alias in node.names} == tslm._HOME
    assert Path(tslm.__file__).with_name("py.typed").is_file()


def test_the_import_of_tslm_is_light_until_torch_is_needed():
    """In one process, so that a busy machine slows both down."""
    source = """
import sys, time
before = time.perf_counter()
import tslm
after = time.perf_counter()
assert "torch" not in sys.modules
tslm.softmax
assert "torch" in sys.modules
print(after - before, time.perf_counter() - after)
"""
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True)
    light, heavy = map(float, done.stdout.split())
    assert light < heavy / 10


def test_the_console_command_speaks_of_itself(tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = project["project"]["scripts"]["tslm"].partition(":")
    script = tmp_path / "tslm"  # as pip writes it
    script.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")

    def tslm_says(*words):
        done = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True,
                              env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, check=False)  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    code, text = tslm_says()
    assert (code, "usage: tslm COMMAND [OPTIONS]" in text) == (0, True)
    assert tslm_says("fti") == (2, "tslm: unknown command 'fti': did you mean 'fit'?\n")
    code, text = tslm_says("runs")
    assert (code, text.endswith(": train with `tslm fit`, or give another --dir\n")) == (2, True)
    code, text = tslm_says("train-tokenizer", "--help")
    assert (code, text.startswith("usage: tslm train-tokenizer")) == (0, True)


@pytest.mark.parametrize(("started", "expected"), [
    ("/usr/bin/tslm", "tslm fit"), ("tslm.exe", "tslm fit"), ("/x/tslm/__main__.py", "python -m tslm fit"),
    ("", "python -m tslm fit"), ("pytest", "python -m tslm fit"),
])
def test_commands_are_named_as_the_program_was_called(started, expected, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [started])
    assert as_called("python -m tslm fit") == expected
    assert main(["study", "--help"]) == 0
    assert f"usage: {expected.removesuffix('fit')}study NAME" in capsys.readouterr().out


def test_the_checks_before_a_commit_are_those_of_the_ci():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    hooks = {hook["entry"] for hook in repo["hooks"]}
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = set(re.findall(r"^(ruff check|mypy|pytest -n 2)$", ci, re.MULTILINE))
    assert hooks == commands == {"ruff check", "mypy", "pytest -n 2"}
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in repo["hooks"])
