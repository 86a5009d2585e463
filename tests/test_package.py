"""`tslm` itself: the names of DESIGN.md, found at run time and by type checkers."""

import ast
import importlib
from pathlib import Path

import tslm


def test_every_public_name_is_that_of_its_room():
    assert sorted(tslm.__all__) == sorted([*tslm._HOME, "__version__"])
    for name, room in tslm._HOME.items():
        found = getattr(tslm, name)
        assert found is getattr(importlib.import_module(room), name)
        assert found.__module__.startswith(room)


def test_type_checkers_see_the_names_where_they_are():
    tree = ast.parse(Path(tslm.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert {alias.name: node.module for node in block.body for alias in node.names} == tslm._HOME
    assert Path(tslm.__file__).with_name("py.typed").is_file()
