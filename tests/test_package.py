"""The public names of `tslm`, at run time and for type checkers."""

import ast
import importlib
from pathlib import Path

import tslm


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
