"""A checkpoint's settings are data: only plain values of listed options are used, and nothing in them is executed."""

import collections
import copy
import importlib
import json
import os
import shutil
import sys
import typing

import pytest
import torch
import yaml

from tests.conftest import ROOT
from tests.test_configs import fit_parser  # noqa: F401 (a fixture)
from tslm.__main__ import main
from tslm.commands.options import leaves
from tslm.errors import UserError
from tslm.training.lightning_features import REFUSED_FLAGS
from tslm.training.runs import load_model
from tslm.training.saved_settings import (
    ALLOWED,
    KNOWN,
    NOT_TAKEN,
    PRECISIONS,
    plain_settings,
    read_architecture,
    read_settings,
    saved_form,
)
from tslm.training.trainer import Precision

NEVER_LOOKED_UP = {"config", "ckpt_path", "data.tokenizer", "name", "init_from"}
TEXT = str(ROOT / "configs" / "text.yaml")


def nested(key, value):
    """One setting with a dotted key as a nested dictionary."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


class Name(str):
    """A string with code of its own."""


class Mapping(dict):
    """A dictionary with code of its own."""


@pytest.fixture(scope="module")
def defaults(fit_parser):  # noqa: F811
    """The default of every option of `fit`."""
    return yaml.safe_load(fit_parser.dump(fit_parser.get_defaults(), skip_none=False, skip_link_targets=True))


def test_every_option_is_either_allowed_or_not(defaults):
    hidden = {f"trainer.{flag}" for flag in REFUSED_FLAGS}  # from the help, and from config.yaml
    options = {key for key, _ in leaves(defaults)} | hidden
    assert set(KNOWN) | NEVER_LOOKED_UP == options | NEVER_LOOKED_UP
    assert not set(ALLOWED) & set(NOT_TAKEN)
    assert {key: value for key, value in leaves(defaults) if key in NOT_TAKEN} == {
        key: value for key, value in NOT_TAKEN.items() if key not in hidden}
    assert typing.get_args(Precision) == PRECISIONS


def test_default_settings_are_allowed_and_stay_as_they_are(defaults):
    allowed, left_out = plain_settings(defaults)
    assert left_out == []
    assert set(allowed) == set(ALLOWED)
    assert allowed == {key: value for key, value in leaves(defaults) if key in ALLOWED}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_allowed(path):
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    stated = {key: value for key, value in leaves(config) if not key.startswith("optimizer.init_args.")}
    if "init_args" in config.get("optimizer", {}):
        stated["optimizer.init_args"] = config["optimizer"]["init_args"]
    assert plain_settings(config) == (stated, [])


def test_what_is_saved_is_what_is_read(defaults):
    own = copy.deepcopy(defaults)
    own["trainer"] |= {"strategy": "ddp", "max_steps": 7, "profiler": {"class_path": "SimpleProfiler"}}
    part = saved_form(own)
    assert set(part) == {"config", "left_out"}
    assert part["left_out"] == ["trainer.strategy", "trainer.profiler"]
    assert {key for key, _ in leaves(part["config"])} == set(ALLOWED)
    allowed, left_out = read_settings(part)
    assert allowed["trainer.max_steps"] == 7
    assert left_out == ["trainer.strategy", "trainer.profiler"]


def test_batches_of_earlier_versions_are_read_in_the_options_of_this_one():
    config = {"data": {"batch_size": 4}, "trainer": {"devices": "2"}, "model": {"micro_batch_size": 2}}
    allowed, left_out = read_settings({"config": config})
    assert allowed == {"data.batch_size": 8, "data.micro_batch_size": 2, "trainer.devices": 2}
    assert left_out == []
    config["model"]["micro_batch_size"] = "evil"
    assert read_settings({"config": config})[0]["data.micro_batch_size"] == 4
    config["data"]["micro_batch_size"] = None  # a setting of this version
    assert read_settings({"config": config})[0]["data.batch_size"] == 4


def test_devices_of_the_command_line_become_a_number():
    assert plain_settings({"trainer": {"devices": "2"}}) == ({"trainer.devices": 2}, [])
    assert plain_settings({"trainer": {"devices": [0, 1]}}) == ({"trainer.devices": [0, 1]}, [])
    for devices in ("0,1", 10_000, list(range(60)) * 1000):  # the last two would start very many processes
        assert plain_settings({"trainer": {"devices": devices}}) == ({}, ["trainer.devices"])


@pytest.mark.parametrize(("arguments", "taken"), [
    ({"momentum": 0.9, "iterations": 3}, True), ({"iterations": 10**9}, False), ({"momentum": "os.system"}, False),
    ({"momentum": {"class_path": "planted.Evil"}}, False), ({"a.b": 1}, False), ({Name("momentum"): 1}, False)])
def test_the_arguments_of_a_built_in_optimizer_are_a_few_small_numbers(arguments, taken):
    found = plain_settings({"optimizer": {"class_path": "Muon", "init_args": arguments}})
    assert found.allowed.get("optimizer.init_args") == (arguments if taken else None)
    assert found.left_out == ([] if taken else ["optimizer.init_args"])
    other = plain_settings({"optimizer": {"class_path": "planted.Evil", "init_args": arguments}})
    assert other.allowed == {}
    assert set(other.left_out) == {"optimizer.class_path", "optimizer.init_args"}


DEEP: dict = {}
for _ in range(100_000):
    DEEP = {"class_path": DEEP}

ODD = [
    "evil.yaml", "os.system", "planted.Evil", Name("auto"), Name("32-true"), {"class_path": "planted.Evil"},
    {"__path__": "evil.yaml"}, {"config": "evil.yaml"}, {"init_args": {}}, {}, DEEP, [{"class_path": "planted.Evil"}],
    [["nested"]], [Name("a")], b"auto", 1j, float("nan"), float("inf"), 2**64, -(2**64), 10**5000, "\ud800",
    "x" * 2_000_000, torch.zeros(3), print, object(), (), collections.OrderedDict(a=1),
]
SINGLE_TEXTS = {"data.prompts_file", "data.text_field", "data.pattern"}
TEXTS = {"data.special_tokens", "data.prompts", "data.train_files", "data.valid_files", *SINGLE_TEXTS}


@pytest.mark.parametrize("key", ALLOWED)
def test_an_allowed_option_takes_no_odd_value(key):
    for value in ODD:
        is_text = type(value) is str and len(value) < 100 and value.isprintable()
        if key in TEXTS and (is_text or (value == () and key not in ("data.text_field", "data.pattern"))):
            continue  # a text; that the parser leaves it a text is tested below
        assert plain_settings(nested(key, value)) == ({}, [key]), (key, str(type(value)))


@pytest.mark.parametrize("key", sorted(TEXTS - SINGLE_TEXTS))
def test_a_list_of_texts_is_flat_and_not_a_single_text(key):
    for value in ("evil.yaml", ["a", None], ["a", 1], ["a", ["b"]], ["a", {"class_path": "b"}], ["a\ud800"]):
        assert plain_settings(nested(key, value)) == ({}, [key])
    assert plain_settings(nested(key, ["evil.yaml", "b"])) == ({key: ["evil.yaml", "b"]}, [])


@pytest.mark.parametrize("key", NOT_TAKEN)
def test_a_restricted_option_is_named_and_not_taken(key):
    for value in [*ODD, "elsewhere", NOT_TAKEN[key] is not True, 2]:
        assert plain_settings(nested(key, value)) == ({}, [key])
    assert plain_settings(nested(key, NOT_TAKEN[key])) == ({}, [])


@pytest.mark.parametrize("config", [
    None, 3, "evil.yaml", [], ["trainer"], torch.zeros(2), Mapping(trainer={"max_steps": 3}), DEEP,
    {"class_path": "planted.Evil"}, {3: 4, None: {}, ("a",): 1, "trainer.max_steps": 5},
    {"trainer": "evil.yaml", "data": ["evil.yaml"], "optimizer": "planted.Evil", "model": 7, "checkpoint": None},
    {"trainer": {"unknown": 3, "__path__": "evil.yaml", "class_path": "planted.Evil", 3: 4}},
    {"trainer": Mapping(max_steps=3), "planted": {"Evil": 1}},
])
def test_settings_of_another_shape_hold_nothing(config):
    assert plain_settings(config) == ({}, [])
    assert read_settings({"config": config, "left_out": config}) == ({}, [])


def test_a_name_that_is_no_option_is_never_repeated():
    names = ["trainer.profiler", "\x1b[2J", "trainer.strategy; rm", 3, None, Name("trainer.plugins"), "data.x"]
    assert read_settings({"left_out": names}).left_out == ["trainer.profiler"]


SIZES = {"vocab_size": 300, "context_length": 32, "d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32,
         "rope_theta": 10_000.0}


@pytest.mark.parametrize("change", [
    {"optimizer": {"class_path": "planted.Evil"}}, {"optimizer.lr": 3}, {3: 4}, {"d_model": "16"}, {"d_model": 16.0},
    {"d_model": True}, {"d_model": {"class_path": "planted.Evil"}}, {"d_model": 10**5000}, {"num_heads": 3},
    {"norm": "x"}, {"position": 1}, {"ffn": "relu"}, {"ffn": "a.b c"}, {"ffn": ["a.b"]}, {"tie_embeddings": 1},
    {"rope_theta": "1"}, {"rope_theta": float("nan")}, {"vocab_size": 0}, {"d_ff": 2**40}, {"d_ff": None},
])
def test_an_architecture_is_sizes_and_names_of_parts(change):
    parts = {"norm": "pre", "position": "rope", "ffn": "swiglu", "tie_embeddings": False, "qk_norm": False}
    assert read_architecture({"architecture": SIZES}, "x.ckpt") == SIZES | parts  # as earlier versions wrote it
    assert read_architecture({"architecture": SIZES | parts}, "x.ckpt") == SIZES | parts
    with pytest.raises(ValueError, match=r"x\.ckpt|num_heads"):
        read_architecture({"architecture": SIZES | change}, "x.ckpt")


def test_a_layer_of_ones_own_is_taken_only_if_the_user_states_it():
    part = {"architecture": SIZES | {"ffn": "planted.Evil"}}
    with pytest.raises(UserError, match=r"a checkpoint may not name code: if it is yours, state --model\.ffn planted"):
        read_architecture(part, "x.ckpt")
    with pytest.raises(UserError, match="may not name code"):
        read_architecture(part, "x.ckpt", ffn="mine.Layer")
    assert read_architecture(part, "x.ckpt", ffn="planted.Evil")["ffn"] == "planted.Evil"
    assert read_architecture(part, "x.ckpt", for_sizes=True)["ffn"] == "planted.Evil"


def test_the_flags_that_are_refused_are_not_taken():
    for name, (default, _) in REFUSED_FLAGS.items():
        assert NOT_TAKEN[f"trainer.{name}"] == default


@pytest.mark.parametrize("part", [{}, {"architecture": None}, {"architecture": Mapping(SIZES)}, {"architecture": []}])
def test_a_missing_architecture_is_an_error(part):
    with pytest.raises(ValueError, match="does not hold the architecture"):
        read_architecture(part, "x.ckpt")


# The attacks. `planted.py` writes MARKER when it is imported; evil.yaml names it.

PLANTED = """
import pathlib
pathlib.Path(MARKER).write_text("executed")
from lightning.pytorch.callbacks import Callback as Evil
from lightning.pytorch.accelerators import CPUAccelerator as Accelerator
from lightning.pytorch.loggers import CSVLogger as Logger
def evil(*args, **kwargs):
    return None
"""
EVIL = {"class_path": "planted.Evil"}


def lambda_callback(function):
    """A stock callback that calls whatever function its setting names."""
    return [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": function}}]


SHELL = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "elsewhere"]}}
CONFIG_ATTACKS = {
    "callback": ("trainer.callbacks", [EVIL]),
    "one callback": ("trainer.callbacks", EVIL),
    "callable of a stock callback": ("trainer.callbacks", lambda_callback("planted.evil")),
    "os.system of a stock callback": ("trainer.callbacks", lambda_callback("os.system")),
    "callback that writes": ("trainer.callbacks", [{"class_path": "lightning.pytorch.callbacks.OnExceptionCheckpoint",
                                                    "init_args": {"dirpath": "elsewhere"}}]),
    "callbacks by name": ("trainer.callbacks", "planted.Evil"),
    "logger": ("trainer.logger", [{"class_path": "planted.Logger", "init_args": {"save_dir": "elsewhere"}}]),
    "stock logger": ("trainer.logger", {"class_path": "lightning.pytorch.loggers.CSVLogger",
                                        "init_args": {"save_dir": "elsewhere"}}),
    "plugin": ("trainer.plugins", EVIL),
    "plugins": ("trainer.plugins", [EVIL, SHELL]),
    "shell as a plugin": ("trainer.plugins", SHELL),
    "profiler": ("trainer.profiler", EVIL),
    "profiler that writes": ("trainer.profiler", {"class_path": "lightning.pytorch.profilers.SimpleProfiler",
                                                  "init_args": {"dirpath": "elsewhere", "filename": "x"}}),
    "strategy": ("trainer.strategy", {"class_path": "planted.Evil"}),
    "strategy by name": ("trainer.strategy", "planted.Evil"),
    "accelerator": ("trainer.accelerator", {"class_path": "planted.Accelerator"}),
    "accelerator by name": ("trainer.accelerator", "planted.Accelerator"),
    "registry": ("trainer.model_registry", "planted"),
    "root folder": ("trainer.default_root_dir", "elsewhere"),
    "checkpoint folder": ("checkpoint.dirpath", "elsewhere"),
    "cache folder": ("data.cache_dir", "elsewhere"),
    "trainer as a class": ("trainer", {"class_path": "planted.Evil", "init_args": {"max_steps": 5}}),
    "trainer as a file": ("trainer", "evil.yaml"),
    "trainer with a path": ("trainer.__path__", "evil.yaml"),
    "trainer with a config": ("trainer.config", "evil.yaml"),
    "model as a class": ("model", EVIL),
    "model as a file": ("model", "evil.yaml"),
    "optimizer as a class": ("optimizer", EVIL),
    "optimizer as a name": ("optimizer", "planted.Evil"),
    "optimizer as a file": ("optimizer", "evil.yaml"),
    "optimizer setting as a class": ("optimizer.lr", EVIL),
    "optimizer in the model": ("model.optimizer", EVIL),
    "generation as a class": ("generation", EVIL),
    "generation as a file": ("generation", "evil.yaml"),
    "generation in the model": ("model.generation", "evil.yaml"),
    "data as a class": ("data", EVIL),
    "data as a file": ("data", "evil.yaml"),
    "checkpoint as a class": ("checkpoint", EVIL),
    "checkpoint as a file": ("checkpoint", "evil.yaml"),
    "class path at the top": ("class_path", "planted.Evil"),
    "config": ("config", ["evil.yaml"]),
    "another checkpoint": ("ckpt_path", "other.ckpt"),
    "tokenizer folder": ("data.tokenizer", "elsewhere"),
    "budget as a file": ("trainer.max_time", "evil.yaml"),
    "devices as a file": ("trainer.devices", "evil.yaml"),
    "seed as a file": ("seed_everything", "evil.yaml"),
    "betas as a file": ("optimizer.betas", "evil.yaml"),
    "texts as a file": ("data.prompts", "evil.yaml"),
    "a huge number": ("trainer.max_steps", 10**500),
    "a key that is no string": ("trainer", {3: EVIL, None: EVIL}),
    "names to print": ("left_out", EVIL),
}
PART_ATTACKS = {
    "settings as a file": {"config": "evil.yaml"},
    "settings as a class": {"config": EVIL},
    "names of options": {"left_out": ["planted.Evil", "\x1b[2J", EVIL, 3]},
    "optimizer in the architecture": {"architecture": SIZES | {"optimizer": EVIL}},
    "callbacks in the architecture": {"architecture": SIZES | {"trainer.callbacks": [EVIL]}},
    "size as a class": {"architecture": SIZES | {"d_model": EVIL}},
    "size as a file": {"architecture": SIZES | {"d_model": "evil.yaml"}},
    "architecture as a file": {"architecture": "evil.yaml"},
}
COMMANDS = {
    "fit": ["--trainer.max_steps=3", "--trainer.limit_val_batches=1"],
    "validate": ["--trainer.limit_val_batches=1"],
    "test": ["--trainer.limit_test_batches=1"],
    "predict": ["--trainer.enable_progress_bar=false"],
    "generate": ["--max_new_tokens=1"],
}


def with_commands(attacks):
    """Every attack with every command; the everyday run tries each with `predict` and with one other command."""
    others = [command for command in COMMANDS if command != "predict"]
    return [
        pytest.param(
            name, command, marks=[] if command in ("predict", others[number % len(others)]) else pytest.mark.slow
        )
        for number, name in enumerate(attacks) for command in COMMANDS
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny):
    """A working folder with a run, a module whose import writes a file, and a YAML file that names that module."""
    folder = tmp_path_factory.mktemp("attacked")
    marker = folder / "marker"
    (folder / "planted.py").write_text(PLANTED.replace("MARKER", repr(str(marker))))
    (folder / "evil.yaml").write_text(yaml.dump({"callbacks": [EVIL], "trainer": {"callbacks": [EVIL]}, "lr": 0.5}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        importlib.import_module("planted")
        assert marker.is_file()  # the module does what the tests look for
        forget(folder)
        options = [option for option in tiny if not option.startswith("--data.cache_dir")]
        assert main(["fit", "--config", TEXT, *options, "--trainer.max_steps=2"]) == 0
        yield folder


def forget(folder):
    """Undo what an attack has done, so that the next one is judged by itself."""
    sys.modules.pop("planted", None)
    (folder / "marker").unlink(missing_ok=True)
    shutil.rmtree(folder / "elsewhere", ignore_errors=True)


def files(folder):
    """Every file of a folder that is in no run and no cache."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path for path in found if path.parts[0] not in ("lightning_logs", ".cache", "__pycache__")}


def edited(folder, edit):
    """Write a checkpoint, in the run's folder, whose own part `edit` has changed."""
    run = folder / "lightning_logs" / "version_0" / "checkpoints"
    state = torch.load(run / "step-00000002.ckpt", weights_only=True)
    edit(state["tslm"])
    torch.save(state, run / "edited.ckpt")
    return str(run / "edited.ckpt")


def attack(folder, command, checkpoint, capsys, options=()):
    """Run a command on a checkpoint; return its exit code and output after looking for traces of the attack."""
    before, outside = files(folder), set(os.listdir(folder.parent))
    try:
        code = main([command, "--ckpt_path", checkpoint, *COMMANDS[command], *options])
        captured = capsys.readouterr()
        assert not (folder / "marker").exists(), "executed"
        assert "planted" not in sys.modules, "imported"
        assert not (folder / "elsewhere").exists(), "written elsewhere"
    finally:
        forget(folder)
    assert files(folder) == before
    assert set(os.listdir(folder.parent)) == outside
    assert "Traceback" not in captured.out + captured.err
    complaints = [line for line in captured.err.splitlines() if line.startswith("tslm: ")]
    assert (code, len(complaints)) in ((0, 0), (2, 1))
    assert "\x1b[2J" not in captured.out
    return code, captured.out


def set_key(config, key, value):
    """Put a value at a dotted key."""
    *groups, name = key.split(".")
    for group in groups:
        config = config[group]
    config[name] = copy.deepcopy(value)


@pytest.mark.parametrize(("name", "command"), with_commands(CONFIG_ATTACKS))
def test_settings_that_name_code_are_not_obeyed(place, capsys, name, command):
    key, value = CONFIG_ATTACKS[name]
    checkpoint = edited(place, lambda part: set_key(part["config"], key, value))
    code, out = attack(place, command, checkpoint, capsys)
    if key.split(".")[0] not in ("data", "trainer") or "." in key:  # else the text or the budget is missing
        assert code == 0
    if command == "fit" and key in NOT_TAKEN:
        assert f"Not taken from the checkpoint: {key}; state it again if you want it." in out.splitlines()


@pytest.mark.parametrize(("name", "command"), with_commands(PART_ATTACKS))
def test_a_checkpoint_that_names_code_elsewhere_is_not_obeyed(place, capsys, name, command):
    code, _ = attack(place, command, edited(place, lambda part: part.update(PART_ATTACKS[name])), capsys)
    assert code == 2 or "architecture" not in PART_ATTACKS[name]


@pytest.mark.parametrize("command", ["predict", "validate"])
def test_texts_stay_texts(place, capsys, command):
    prompts = ["evil.yaml", "planted.Evil", "os.system", "{class_path: planted.Evil}", "null", "1", "@evil.yaml"]

    def edit(part):
        part["config"]["data"] |= {"prompts": prompts}
        part["config"]["generation"]["max_new_tokens"] = 1

    assert attack(place, command, edited(place, edit), capsys)[0] == 0
    if command == "predict":
        lines = (place / "lightning_logs" / "version_0" / "predictions.jsonl").read_text().splitlines()
        assert [json.loads(line)["prompt"] for line in lines] == prompts


def test_a_new_checkpoint_holds_only_what_is_read(place):
    part = torch.load(place / "lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)["tslm"]
    allowed, left_out = read_settings(part)
    assert saved_form(part["config"])["config"] == part["config"]
    assert set(allowed) == set(ALLOWED)
    assert left_out == part["left_out"] == []


def test_a_class_of_the_training_is_named_when_it_is_resumed_without_it(place, capsys):
    first = edited(place, lambda part: None)
    profiler = '--trainer.profiler={"class_path": "lightning.pytorch.profilers.PassThroughProfiler"}'
    used = [profiler, "--trainer.default_root_dir=lightning_logs/root"]
    _, out = attack(place, "fit", first, capsys, used)
    assert "Not taken" not in out
    last = "lightning_logs/root/lightning_logs/version_0/checkpoints/last.ckpt"
    sentence = ("Not taken from the checkpoint: trainer.default_root_dir, trainer.profiler; state them again if you "
                "want them.")
    _, out = attack(place, "fit", last, capsys, ["--trainer.max_steps=4"])
    assert out.splitlines().count(sentence) == 1
    _, out = attack(place, "fit", last, capsys, ["--trainer.max_steps=4", *used])
    assert "Not taken" not in out
    _, out = attack(place, "validate", last, capsys)
    assert "Not taken" not in out


def test_a_class_that_the_user_names_is_still_used(place, capsys):
    checkpoint = str(place / "lightning_logs/version_0/checkpoints/step-00000002.ckpt")
    try:
        assert main(["predict", "--ckpt_path", checkpoint, "--trainer.callbacks=planted.Evil"]) == 0
        assert (place / "marker").is_file()
    finally:
        forget(place)


def test_an_architecture_that_is_none_stops_loading_in_a_sentence(place):
    with pytest.raises(ValueError, match="does not hold the architecture"):
        load_model(edited(place, lambda part: part.update(architecture={"d_model": 16})))


def test_the_plain_settings_are_all_that_an_exact_resume_needs(project, tiny):
    changed = [
        "--trainer.val_every_n_steps=2", "--trainer.gradient_clip_val=0.3",
        "--seed_everything=5", "--data.seed=3", "--data.align_documents=true", "--optimizer.betas=[0.8,0.99]",
        "--optimizer.warmup_steps=1", "--optimizer.eps=1e-6", "--model.loss_chunk_size=50",
        "--data.micro_batch_size=2", "--trainer.devices=1",
    ]
    assert main(["fit", "--config", TEXT, *tiny, *changed]) == 0
    runs = project / "lightning_logs"
    cache = next(option for option in tiny if option.startswith("--data.cache_dir"))
    assert main(["fit", "--ckpt_path", str(runs / "version_0/checkpoints/step-00000002.ckpt"), cache]) == 0
    first, second = (torch.load(runs / f"version_0{name}/checkpoints/step-00000004.ckpt", weights_only=True)
                     for name in ("", "-continued"))
    assert first["tslm"]["config"] == second["tslm"]["config"]
    for part in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(first[part], second[part], rtol=0, atol=0)
