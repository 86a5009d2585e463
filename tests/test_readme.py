"""The README: every command in it parses, every file it names exists, every name it imports is there."""

import ast
import re
import shlex

import pytest
import yaml

import tslm
from tests.conftest import ROOT
from tests.test_configs import fit_parser  # noqa: F401 (a fixture)
from tslm.__main__ import COMMANDS
from tslm.commands.options import flag_keys, leaves

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
LINES = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
OURS = [part.strip() for line in LINES for part in line.split("&&") if "python -m tslm" in part]


def test_nothing_is_left_to_fill_in():
    assert "@@" not in README + (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_readme_has_the_two_commands_that_do_everything():
    assert "pip install -e . && python -m tslm fit --config configs/quickstart.yaml" in LINES
    assert "pip install -e '.[test]' && pytest" in LINES


@pytest.mark.parametrize("line", OURS)
def test_every_command_in_the_readme_parses(line, fit_parser, monkeypatch):  # noqa: F811
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)
    command, options = words[3], words[4:]
    assert command in COMMANDS
    if command == "fit":
        fit_parser.parse_args(options)
    else:
        known = {"generate": {"prompt", "temperature", "top_p", "top_k", "max_new_tokens", "seed", "ckpt_path"}}
        assert flag_keys(options) <= known.get(command, {"ckpt_path", "generation.max_new_tokens"})


def test_the_options_that_the_readme_mentions_exist(fit_parser):  # noqa: F811
    defaults = yaml.safe_load(fit_parser.dump(fit_parser.get_defaults(), skip_none=False, skip_link_targets=True))
    keys = {key for key, _ in leaves(defaults)} | {"ckpt_path", "config"}
    for option in re.findall(r"--((?:data|model|optimizer|trainer|checkpoint|generation)\.\w+)", README):
        assert option in keys, option


def test_every_command_is_in_the_readme():
    for name in COMMANDS:
        assert f"`{name}`" in README, name


def test_the_files_that_the_readme_names_exist():
    tree = next(text for kind, text in BLOCKS if not kind and text.startswith("tslm/"))
    folder = None
    for line in tree.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        if indent == 2 and name.endswith("/"):
            folder = ROOT / "tslm" / name
            assert folder.is_dir(), name
        for file in re.findall(r"\b[\w/]+\.py\b", line) if indent else []:
            assert any((place / file).is_file() for place in (folder, ROOT / "tslm")), file
    for config in re.findall(r"configs/([\w-]+\.yaml)", README):
        assert (ROOT / "configs" / config).is_file()


def test_the_names_in_the_example_are_public():
    (example,) = [text for kind, text in BLOCKS if kind == "python"]
    names = {node.attr for node in ast.walk(ast.parse(example))
             if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tslm"}
    assert names
    for name in names:
        assert hasattr(tslm, name), name
