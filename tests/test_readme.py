"""The README: its commands and its Python example run, and every file that it names exists.

Commands that take long run with smaller settings, which `APPENDED` adds. They run in this process, in a temporary
folder. `NOT_RUN` lists the commands that cannot run here, with the reason.
"""

import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml

from tests.conftest import ROOT
from tests.test_configs import fit_parser  # noqa: F401 (a fixture)
from tslm.__main__ import COMMANDS, main
from tslm.commands.options import leaves

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
LINES = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
BASH = [part.strip() for line in LINES for part in line.split("&&")]
# Code spans that are a command, such as `fit --ckpt_path last` and `study tokenizer` in the table of commands.
TABLE = [row for row in README.splitlines() if row.startswith("| `")]
SPANS = [span for row in TABLE for span in re.findall(r"`([a-z][^`]*)`", row) if span.split()[0] in COMMANDS]
SPANS += re.findall(r"`(python -m tests\.[^`]+)`", README)

NOT_RUN = {
    "pip install -e .": "it changes the environment of the tests",
    "pip install -e '.[test]'": "it changes the environment of the tests",
    "pytest -n 2": "it is this test run",
    "tensorboard --logdir lightning_logs": "it serves pages until it is stopped",
}
PARSED_ONLY = "tests.benchmarks."  # benchmarks measure for minutes; their own tests run them with tiny settings

_SIZES = ["--data.vocab_size=300", "--data.context_length=32", "--data.batch_size=4", "--data.num_workers=1",
          "--model.d_model=16", "--model.num_layers=1", "--model.num_heads=2", "--model.d_ff=32",
          "--trainer.max_steps=2", "--trainer.precision=32-true", "--trainer.accelerator=cpu",
          "--generation.max_new_tokens=4", "--data.cache_dir=cache"]  # fmt: skip
_TOY = [*_SIZES, "--data.toy_stories=300"]
_CPU = ["--trainer.accelerator=cpu", "--trainer.precision=32-true"]
APPENDED = {
    "fit": _TOY,
    "fit --config configs/quickstart.yaml": _TOY,
    "fit --config configs/text.yaml": _SIZES,
    "fit --config configs/tinystories.yaml": [*_TOY, "--data.corpus=toy"],  # the download is 2.2 GB
    "fit --optimizer.schedule mine.halving": _TOY,
    "export": ["--format=hf", "--output=exported"],
    "fit --ckpt_path last": ["--trainer.max_steps=4"],
    "fit --init_from best": ['--data.train_files=["train.txt"]', "--trainer.max_steps=2", "--data.batch_size=2",
                             "--generation.max_new_tokens=4", "--data.cache_dir=cache", *_CPU],
    "score": ["--input=valid.txt"],
    "compare": ["version_0", "version_0", "--max_documents=5"],
    "validate": _CPU,
    "test": _CPU,
    "predict": [*_CPU, "--generation.max_new_tokens=4", '--data.prompts=["One day"]'],
    "generate": ["--max_new_tokens=4"],
    "train-tokenizer": ["--input=train.txt", "--vocab_size=300", "--output=vocabulary"],
    "tokenize": ["--tokenizer=vocabulary", "--input=train.txt", "--output=ids.bin"],
    "runs": [],
    "runs --verify": [],
    "study": ["--help"],
    "study tokenizer": ["--input=train.txt", "--vocab_size=300", "--num_workers=1"],
    "study unicode": [],
    "study fast": ["--seconds=0"],
    "tests.campaigns.fuzz": ["--count=1"],
}


def words_of(command):
    """Split a command into environment variables, the module that Python runs, and the module's arguments."""
    words = shlex.split(command)
    variables = {}
    while "=" in words[0] and not words[0].startswith("-"):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    if words[:2] == ["python", "-m"]:
        return variables, words[2], words[3:]
    return variables, "tslm", words  # a code span of the table


def appended_to(module, words):
    """Return the options of the longest key of `APPENDED` that the command begins with."""
    line = " ".join(words if module == "tslm" else [module, *words])
    keys = [key for key in APPENDED if line == key or line.startswith(f"{key} ")]
    assert keys, f"APPENDED has no entry for `{line}`"
    return APPENDED[max(keys, key=len)]


def run(command, monkeypatch):
    variables, module, words = words_of(command)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    command_main = main if module == "tslm" else importlib.import_module(module).main
    return command_main([*words, *appended_to(module, words)])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, story_file):
    """A folder with the configurations, two texts, a vocabulary, and the run of the README's first command."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    shutil.copy(story_file, folder / "train.txt")
    text = story_file.read_text(encoding="utf-8")
    (folder / "valid.txt").write_text(text[: len(text) // 4], encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (own,) = [text for kind, text in BLOCKS if kind == "python" and text.startswith("# mine.py")]
        (folder / "mine.py").write_text(own, encoding="utf-8")
        assert main(["train-tokenizer", *APPENDED["train-tokenizer"]]) == 0
        assert run("python -m tslm fit --config configs/quickstart.yaml", patch) == 0
    return folder


def runnable():
    commands = {str(words_of(command)): command for command in [*SPANS, *BASH] if command not in NOT_RUN}
    return [command for command in commands.values() if not words_of(command)[1].startswith(PARSED_ONLY)]


@pytest.mark.parametrize("command", runnable())
def test_each_command_of_the_readme_runs(command, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    before = set((workplace / "lightning_logs").iterdir())
    assert run(command, monkeypatch) == 0
    if words_of(command)[2][:1] == ["fit"]:
        (new,) = set((workplace / "lightning_logs").iterdir()) - before
        assert json.loads((new / "summary.json").read_text(encoding="utf-8"))["steps"] >= 2


@pytest.mark.parametrize("command", [each for each in SPANS if words_of(each)[1].startswith(PARSED_ONLY)])
def test_each_benchmark_of_the_readme_parses(command):
    _, module, words = words_of(command)
    importlib.import_module(module)._parser().parse_args(words)


@pytest.mark.filterwarnings("ignore:Setuptools is replacing distutils")  # the import of tensorboard
def test_the_commands_that_are_not_run_exist():
    assert set(NOT_RUN) <= set(BASH)
    for program in ("pip", "pytest", "tensorboard"):
        assert importlib.util.find_spec(program), program
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "test" in project["optional-dependencies"]


def test_the_readme_begins_with_one_line_that_installs_and_trains():
    assert LINES[0] == "pip install -e . && python -m tslm fit --config configs/quickstart.yaml"


def test_the_python_example_runs(workplace):
    (example,) = [text for kind, text in BLOCKS if kind == "python" and text.startswith("import tslm")]
    done = subprocess.run([sys.executable, "-c", example], cwd=workplace, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once upon a time")


def test_every_command_is_in_the_readme():
    spans = {span.split()[0] for span in SPANS}
    assert spans >= set(COMMANDS)


def test_the_options_that_the_readme_mentions_exist(fit_parser):  # noqa: F811
    defaults = yaml.safe_load(fit_parser.dump(fit_parser.get_defaults(), skip_none=False, skip_link_targets=True))
    keys = {key for key, _ in leaves(defaults)}
    for option in re.findall(r"--((?:data|model|optimizer|trainer|checkpoint|generation)\.\w+)", README):
        assert option in keys, option


def named_paths():
    """Return every path that the README names: links, code spans, configurations, and the annotated tree."""
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    spans = [span for span in re.findall(r"`([\w./-]+)`", README) if re.match(r"(tslm|tests|configs|\.ci)/", span)]
    configs = re.findall(r"configs/[\w-]+\.yaml", README)
    return sorted({*links, *spans, *configs, *tree_paths()})


def tree_paths():
    (tree,) = [text for kind, text in BLOCKS if not kind and text.startswith("tslm/")]
    paths, folder = [], ROOT
    for line in tree.splitlines():
        names = re.findall(r"[\w/]+(?:\.py|/)(?![\w(])", line)
        for number, name in enumerate(names):
            if line == "tslm/":
                paths.append(ROOT / name)
            elif number == 0 and len(line) - len(line.lstrip()) <= 2:
                parent = ROOT / "tslm" if line.startswith(" ") else ROOT
                folder = (parent / name).parent if name.endswith(".py") else parent / name
                paths.append(parent / name)
            else:
                paths.append((ROOT / "tslm" if name.endswith("/") else folder) / name)
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("path", named_paths())
def test_each_path_that_the_readme_names_exists(path):
    assert (ROOT / path).exists()


def test_the_readme_is_short_and_has_no_placeholder():
    assert len(README.splitlines()) <= 150
    assert "@@" not in README + (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
