"""One thing of one's own, in one's own file: an optimizer, a schedule, a layer; and the built-in alternatives."""

import json
import sys

import pytest
import torch
import yaml

from tests.conftest import ROOT
from tests.test_cli import complaint
from tslm import load_run
from tslm.__main__ import main
from tslm.errors import UserError

TEXT = str(ROOT / "configs" / "text.yaml")
MINE = '''
import numpy
import torch
from torch import nn

from tslm.model import Linear


class ReLUSquared(nn.Module):
    def __init__(self, d_model, d_ff):
        super().__init__()
        self.up, self.down = Linear(d_model, d_ff), Linear(d_ff, d_model)

    def forward(self, x):
        return self.down(torch.clamp(self.up(x), min=0) ** 2)


class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr, betas=(0.9, 0.99), sharpness=1.0):
        assert sharpness == 2.0
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    m = self.state[p].setdefault("m", torch.zeros_like(p))
                    p.add_((m * group["betas"][0] + p.grad * (1 - group["betas"][0])).sign(), alpha=-group["lr"])
                    m.lerp_(p.grad, 1 - group["betas"][1])
        return loss


class Wide(ReLUSquared):
    def forward(self, x):
        return self.up(x)


class One(ReLUSquared):
    def forward(self, x):
        return x[..., :1]


class Pair(ReLUSquared):
    def forward(self, x):
        return x, x


class Fails(ReLUSquared):
    def forward(self, x):
        raise KeyError("no such key")


class Refuses(nn.Module):
    def __init__(self, d_model, d_ff):
        raise KeyError("no such key")


class Exits(ReLUSquared):
    def __init__(self, *arguments):
        raise SystemExit(0)


class Counts(ReLUSquared):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Plain(torch.optim.SGD):
    def keep(self, p):
        pass

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.keep(p)
        return loss


class Divides(Plain):
    def __init__(self, params, lr, weight_decay=0.5, dampening=0.25):
        super().__init__(params, lr=lr, momentum=0.5, weight_decay=weight_decay, dampening=dampening)

    @staticmethod
    def groups(model):
        matrices, rest = ([each for each in model.parameters() if (each.ndim == 2) is kind] for kind in (True, False))
        return [{"params": matrices, "dampening": 0.5}, {"params": rest, "weight_decay": 0.0}]


class Nested(Plain):
    def keep(self, p):
        self.state[p].update(history=[torch.zeros(2), {"n": 1}], kinds={1, 2}, counts=torch.ones(2, dtype=torch.int64))
        self.state["calls"] = self.state.get("calls", 0) + 1


class Numpy(Plain):
    def keep(self, p):
        self.state[p]["scale"] = numpy.float64(2)


class Stops(Plain):
    def keep(self, p):
        raise ValueError("cannot step")


class NoClosure(Plain):
    def step(self):
        pass


class Shares(Plain):
    """The second group learns half as fast, and some weights do not learn."""

    @staticmethod
    def groups(model):
        return [{"params": [model.lm_head.weight]}, {"params": [model.token_embeddings.weight], "share": 0.5}]

    def __init__(self, params, lr):
        super().__init__([{"params": each["params"], "lr": lr * each.get("share", 1.0)} for each in params], lr=lr)


def halving(t, lr_max, lr_min, warmup_steps, total_steps):
    return max(lr_min, lr_max / 2**t)


def negative(t, lr_max, lr_min, warmup_steps, total_steps):
    return -1.0


def fails():
    raise RuntimeError
'''


@pytest.fixture
def mine(project, monkeypatch):
    """A folder with the file of a user, as the working folder."""
    (project / "mine_of_a_test.py").write_text(MINE)
    (project / "broken_of_a_test.py").write_text("import math\nmath.nothing\n")
    (project / "exits_of_a_test.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(str(project))
    yield project
    sys.modules.pop("mine_of_a_test", None)


def run_of(folder, number=0):
    return folder / "lightning_logs" / f"version_{number}"


def fit(tiny, *options):
    return main(["fit", "--config", TEXT, *tiny, "--trainer.log_every_n_steps=1", *options])


def rates(run):
    rows = (run / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train/learning_rate")
    return [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]


def test_a_layer_of_ones_own_trains_is_kept_in_the_configuration_and_resumes_only_when_stated(mine, tiny, capsys):
    layer = "--model.ffn=mine_of_a_test.ReLUSquared"
    assert fit(tiny, layer) == 0
    run = run_of(mine)
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["ffn"] == "mine_of_a_test.ReLUSquared"
    assert main(["fit", "--ckpt_path", str(run), "--trainer.max_steps=6"]) == 2
    assert "a checkpoint may not name code: if it is yours, state --model.ffn mine_of_a_test" in complaint(capsys)
    assert main(["fit", "--ckpt_path", str(run), "--trainer.max_steps=6", layer]) == 0
    assert main(["fit", "--ckpt_path", str(run), "--config", str(run / "config.yaml"), "--trainer.max_steps=7"]) == 0
    with pytest.raises(UserError, match="may not name code"):
        load_run(run)
    found = load_run(run, ffn="mine_of_a_test.ReLUSquared")
    assert type(found.model.layers[0].ffn).__name__ == "ReLUSquared"
    assert main(["runs"]) == 0  # needs no class
    capsys.readouterr()
    assert main(["generate", "--max_new_tokens=2", "--ffn=mine_of_a_test.ReLUSquared"]) == 0
    assert main(["generate", "--max_new_tokens=2"]) == 2
    assert "state --model.ffn mine_of_a_test.ReLUSquared, or --ffn for generate, score and compare" in complaint(capsys)


def test_runs_with_a_layer_of_ones_own_are_verified_without_it_and_compared_with_it(mine, tiny, capsys):
    assert fit(tiny, "--model.ffn=mine_of_a_test.ReLUSquared") == 0
    assert fit(tiny, "--model.ffn=mine_of_a_test.Counts") == 0
    sys.modules.pop("mine_of_a_test")
    assert main(["runs", "--verify"]) == 0
    assert "mine_of_a_test" not in sys.modules
    assert torch.load(run_of(mine, 1) / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"][
        "model.layers.0.ffn.calls"] == 4  # the check of the shape is no call
    capsys.readouterr()
    options = ["compare", "version_0", "version_1", "--ffn", "mine_of_a_test.ReLUSquared"]
    assert main(options) == 2
    assert "--ffn for generate, score and compare" in complaint(capsys)
    assert main([*options, "mine_of_a_test.Counts"]) == 0
    assert "model.ffn" in capsys.readouterr().out
    path = run_of(mine) / "checkpoints" / "best.ckpt"
    state = torch.load(path, weights_only=True)
    state["state_dict"]["model.layers.0.attn.q_proj.weight"] = torch.zeros(3)
    torch.save(state, path)
    assert main(["runs", "--verify"]) == 2
    assert "layers.0.attn.q_proj.weight is (3,)" in complaint(capsys)


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("name", ["Nested", "Shares"])
def test_whatever_an_optimizer_of_ones_own_keeps_is_restored(name, mine, tiny):
    option = f"--optimizer.class_path=mine_of_a_test.{name}"
    assert fit(tiny, option, "--trainer.save_every_n_steps=2", "--checkpoint.keep=9", "--optimizer.lr=0.5") == 0
    half = run_of(mine) / "checkpoints" / "step-00000002.ckpt"
    assert main(["fit", "--ckpt_path", str(half), "--trainer.max_steps=4", option]) == 0
    whole, resumed = (torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
                      for folder in (run_of(mine), run_of(mine).with_name("version_0-continued")))
    for key in whole["state_dict"]:
        assert torch.equal(whole["state_dict"][key], resumed["state_dict"][key])
    groups = [[each["lr"] for each in state["optimizer_states"][0]["param_groups"]] for state in (whole, resumed)]
    assert groups[0] == groups[1]
    assert groups[0][-1] == groups[0][0] / len(groups[0])
    assert main(["runs", "--verify"]) == 0


def test_a_resumed_run_has_the_arguments_of_its_options_and_the_groups_of_its_optimizer(mine, tiny):
    option, argument = "--optimizer.class_path=mine_of_a_test.Divides", "--optimizer.init_args={dampening: 0.1}"
    assert fit(tiny, option, argument, "--trainer.save_every_n_steps=2", "--checkpoint.keep=9",
               "--optimizer.lr=0.5") == 0
    half = run_of(mine) / "checkpoints" / "step-00000002.ckpt"
    resume = ["fit", "--ckpt_path", str(half), "--trainer.max_steps=4", option]
    assert main([*resume, argument, "--name=as-before"]) == 0
    assert main([*resume, "--name=default"]) == 0
    whole, resumed, default = (torch.load(run_of(mine).with_name(name) / "checkpoints" / "last.ckpt", weights_only=True)
                               for name in (run_of(mine).name, "as-before", "default"))
    for key in whole["state_dict"]:
        assert torch.equal(whole["state_dict"][key], resumed["state_dict"][key])
    found = [[(each["weight_decay"], each["dampening"]) for each in state["optimizer_states"][0]["param_groups"]]
             for state in (whole, resumed, default)]
    assert found[0] == found[1] == [(0.1, 0.5), (0.0, 0.1)]
    assert found[2] == [(0.1, 0.5), (0.0, 0.25)]


def test_the_arguments_of_another_optimizer_are_not_taken_from_a_checkpoint(project, tiny, capsys):
    assert fit(tiny, "--optimizer.class_path=Muon", "--optimizer.init_args={momentum: 0.5, iterations: 2}") == 0
    resume = ["fit", "--ckpt_path", str(run_of(project)), "--trainer.max_steps=6"]
    assert main([*resume, "--optimizer.class_path=AdamW"]) == 2
    assert "holds the state of the optimizer Muon, but optimizer.class_path is AdamW" in complaint(capsys)
    assert main([*resume, "--optimizer.init_args={momentum: 0.25}", "--name=other"]) == 0
    state = torch.load(run_of(project).with_name("other") / "checkpoints" / "last.ckpt", weights_only=True)
    groups = state["optimizer_states"][0]["param_groups"]
    assert [(each["momentum"], each["iterations"], each["orthogonalize"]) for each in groups] == [
        (0.25, 5, True), (0.25, 5, False)]


@pytest.mark.parametrize(("name", "part"), [
    ("Numpy", "the state of the optimizer.state.0.scale is a numpy.float64, which no checkpoint can hold"),
    ("Stops", "in keep: ValueError: cannot step; TSLM_TRACEBACK=1 shows all"),
    ("NoClosure", "NoClosure.step() got an unexpected keyword argument 'closure'"),
])
def test_an_optimizer_of_ones_own_that_fails_is_one_sentence_at_the_first_report(name, part, mine, tiny, capsys):
    assert fit(tiny, f"--optimizer.class_path=mine_of_a_test.{name}") == 2
    assert part in complaint(capsys)
    assert not (mine / "lightning_logs" / "version_0" / "checkpoints").exists()


def test_flags_win_over_configuration_files_that_follow_them(project, tiny):
    assert fit(tiny) == 0
    config = str(run_of(project) / "config.yaml")  # which states ckpt_path and max_steps
    assert main(["fit", "--ckpt_path", str(run_of(project)), "--trainer.max_steps=6", "--config", config]) == 0
    resumed = run_of(project).with_name("version_0-continued")
    assert torch.load(resumed / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


def test_an_optimizer_and_a_schedule_of_ones_own(mine, tiny, capsys):
    options = ["--optimizer.class_path=mine_of_a_test.Lion", "--optimizer.init_args.sharpness=2.0",
               "--optimizer.schedule=mine_of_a_test.halving", "--optimizer.lr=0.008", "--optimizer.warmup_steps=0"]
    assert fit(tiny, *options) == 0
    assert rates(run_of(mine)) == [0.008, 0.004, 0.002, 0.001]
    capsys.readouterr()
    assert main(["fit", "--ckpt_path", str(run_of(mine)), "--trainer.max_steps=6"]) == 2
    assert "state of the optimizer mine_of_a_test.Lion, but optimizer.class_path is AdamW" in complaint(capsys)
    assert main(["fit", "--ckpt_path", str(run_of(mine)), "--trainer.max_steps=6", *options[:3]]) == 0
    resumed = run_of(mine).with_name("version_0-continued")
    assert rates(resumed) == pytest.approx([0.0005, 0.00025])


@pytest.mark.parametrize("name", ["SGD", "Muon", "torch.optim.Adagrad"])
def test_another_optimizer_resumes_exactly(name, project, tiny):
    option = f"--optimizer.class_path={name}"
    often = ["--trainer.save_every_n_steps=2", "--checkpoint.keep=9", "--optimizer.lr=0.01"]
    assert fit(tiny, option, *often) == 0
    half = run_of(project) / "checkpoints" / "step-00000002.ckpt"
    state = [option] if "." in name else []  # a checkpoint may name tslm's own
    assert main(["fit", "--ckpt_path", str(half), "--trainer.max_steps=4", *state]) == 0
    whole, resumed = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (run_of(project), run_of(project).with_name("version_0-continued"))
    )
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    start = torch.load(half, weights_only=True)["state_dict"]
    assert not all(torch.equal(whole[key], start[key]) for key in whole)
    assert main(["runs", "--verify"]) == 0


@pytest.mark.parametrize(("schedule", "expected"), [
    ("constant", [0.5, 1, 1, 1]), ("linear", [0.5, 1, 2 / 3, 1 / 3]), ("wsd", [0.5, 1, 1, 1]),
    ("cosine", [0.5, 1, 0.75, 0.25]),
])
def test_the_schedule_is_a_setting(project, tiny, schedule, expected):
    """Four steps with a warm-up of two steps, reported from step 1 on, to the end of the schedule at step 5."""
    assert fit(tiny, f"--optimizer.schedule={schedule}", "--optimizer.lr=1e-3", "--optimizer.warmup_steps=2",
               "--optimizer.cosine_steps=5", "--trainer.max_steps=5") == 0
    assert rates(run_of(project))[1:] == pytest.approx([1e-3 * each for each in expected])


@pytest.mark.parametrize("options", [
    ["--model.norm=post"], ["--model.norm=none", "--optimizer.lr=1e-4"], ["--model.position=none"],
    ["--model.ffn=silu", "--model.d_ff=64"], ["--model.tie_embeddings=true"], ["--model.qk_norm=true"],
])
def test_a_built_in_part_trains_validates_and_generates(options, project, tiny, capsys):
    assert fit(tiny, *options) == 0
    assert main(["fit", "--ckpt_path=last", "--trainer.max_steps=5"]) == 0  # the architecture is the checkpoint's
    assert main(["validate"]) == 0
    assert main(["generate", "--prompt=Once", "--max_new_tokens=4"]) == 0
    name = options[0].partition("=")[0]
    other = {"norm": "pre", "position": "rope", "ffn": "swiglu"}.get(name.removeprefix("--model."), "false")
    capsys.readouterr()
    assert main(["fit", "--ckpt_path=last", "--trainer.max_steps=6", f"{name}={other}"]) == 2
    assert "was trained with" in complaint(capsys)


@pytest.mark.parametrize(("option", "part"), [
    ("--optimizer.class_path=Adam", "optimizer.class_path is 'Adam': give one of AdamW, SGD, Muon, or a class of your"),
    ("--optimizer.class_path=nowhere_at_all.Adam", "there is no module 'nowhere_at_all'"),
    ("--optimizer.class_path=mine_of_a_test.Lion", "which cannot be made with"),
    ("--optimizer.class_path=mine_of_a_test.fails", "which cannot be made with"),
    ("--optimizer.class_path=mine_of_a_test.ReLUSquared", "which cannot be made with"),
    ("--optimizer.init_args.x=3", "which cannot be made with"),
    ("--optimizer.schedule=step", "optimizer.schedule is 'step': give one of cosine, linear, wsd, constant, or a"),
    ("--optimizer.schedule=mine_of_a_test.negative", "which returns -1.0 for step 0"),
    ("--optimizer.schedule=mine_of_a_test.fails", "optimizer.schedule is mine_of_a_test.fails, which fails"),
    ("--model.ffn=mine_of_a_test.Wide", "makes the shape (1, 2, 32) of an input of the shape (1, 2, 16)"),
    ("--model.ffn=mine_of_a_test.One", "makes the shape (1, 2, 1) of an input"),
    ("--model.ffn=mine_of_a_test.Pair", "makes a tuple of an input"),
    ("--model.ffn=mine_of_a_test.Fails", "fails for an input of the shape (1, 2, 16): KeyError: 'no such key'"),
    ("--model.ffn=mine_of_a_test.Refuses", "cannot be made from d_model and d_ff: KeyError: 'no such key'"),
    ("--model.ffn=mine_of_a_test.Exits", "cannot be made from d_model and d_ff: SystemExit: 0"),
    ("--model.ffn=broken_of_a_test.Layer", "importing broken_of_a_test fails: AttributeError"),
    ("--model.ffn=exits_of_a_test.Layer", "importing exits_of_a_test fails: SystemExit"),
    ("--model.ffn=math.Layer", "has no 'Layer': correct --model.ffn, or give a file of your own another name"),
    ("--model.ffn=gelu", "ffn is 'gelu'; it must be swiglu or silu, or the class of a layer of your own as"),
    ("--model.norm=layer", "norm"),
])
def test_what_cannot_be_used_is_one_sentence_and_leaves_nothing(option, part, mine, tiny, capsys):
    assert fit(tiny, option) == 2
    assert part in complaint(capsys)
    assert not (mine / "lightning_logs").exists()


def test_one_seed_changes_weights_and_windows(project, tiny):
    for seed in (1, 2, 1):
        assert fit(tiny, f"--seed_everything={seed}") == 0
    first, second, third = (
        torch.load(run_of(project, number) / "checkpoints" / "last.ckpt", weights_only=True) for number in range(3)
    )
    seeds = [each["tslm"]["provenance"]["resolved"]["data_seed"] for each in (first, second, third)]
    assert seeds == [1, 2, 1]
    for key, weight in first["state_dict"].items():
        assert torch.equal(weight, third["state_dict"][key])
    assert not torch.equal(first["state_dict"]["model.lm_head.weight"], second["state_dict"]["model.lm_head.weight"])
    assert fit(tiny, "--seed_everything=3", "--data.seed=9") == 0
    fourth = torch.load(run_of(project, 3) / "checkpoints" / "last.ckpt", weights_only=True)
    assert fourth["tslm"]["provenance"]["resolved"]["data_seed"] == 9


def test_the_arguments_of_a_built_in_optimizer_are_restored(project, tiny):
    """Numbers name no code, so a checkpoint may decide them."""
    words = ["fit", *tiny, "--optimizer.class_path=Muon", "--optimizer.init_args={momentum: 0.5, iterations: 2}"]
    assert main([*words, "--trainer.save_every_n_steps=2"]) == 0
    assert main(["fit", "--ckpt_path", "lightning_logs/version_0/checkpoints/step-00000002.ckpt"]) == 0
    whole, resumed = (torch.load(f"lightning_logs/{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
                      for name in ("version_0", "version_0-continued"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_arguments_in_a_file_belong_to_the_optimizer_in_the_file(project, tiny):
    """The quick start names Muon with its momentum, which AdamW does not have."""
    (project / "muon.yaml").write_text("optimizer:\n  class_path: Muon\n  init_args: {momentum: 0.5}\n")
    kept = []
    for number, words in enumerate((["--optimizer.class_path=AdamW"], [])):
        assert main(["fit", "--config", "muon.yaml", *tiny, *words]) == 0
        settings = yaml.safe_load((project / f"lightning_logs/version_{number}/config.yaml").read_text())
        kept.append(settings["optimizer"]["init_args"])
    assert kept == [None, {"momentum": 0.5}]


@pytest.mark.parametrize(("words", "init_args", "notice"), [
    (["--optimizer.class_path=AdamW"], None, True),
    (["--config=adamw.yaml"], None, True),
    (["--optimizer={class_path: AdamW, lr: 0.001}"], None, False),
    (["--optimizer={class_path: AdamW}"], None, True),
    (["--optimizer=group.yaml"], None, True),
    (["--optimizer={init_args: {iterations: 2}}"], {"iterations": 2}, False),
    (["--optimizer.class_path=Muon"], {"momentum": 0.5}, False),
    (["--config=adamw.yaml", "--optimizer.class_path=Muon", "--optimizer.init_args.iterations=2"], {"iterations": 2},
     True),
    (["--optimizer.init_args.iterations=2"], {"momentum": 0.5, "iterations": 2}, False),
    (["--config=muon3.yaml", "--optimizer.lr=0.001"], {"iterations": 3}, False),
])
def test_what_an_optimizer_keeps_of_the_settings_for_another_one(project, capsys, words, init_args, notice):
    for name, text in (("muon", "{class_path: Muon, init_args: {momentum: 0.5}, lr: 0.02}"),
                       ("adamw", "{class_path: AdamW}"), ("muon3", "{class_path: Muon, init_args: {iterations: 3}}")):
        (project / f"{name}.yaml").write_text(f"optimizer: {text}\n")
    (project / "group.yaml").write_text("class_path: AdamW\n")  # of the settings of the optimizer alone
    assert main(["fit", "--config=muon.yaml", *words, "--print_config"]) == 0
    said = capsys.readouterr()
    assert yaml.safe_load(said.out)["optimizer"]["init_args"] == init_args
    assert ("with settings that the configuration has for" in said.err) is notice
    assert said.err.count("\n") == notice
    assert not notice or said.err.rstrip().endswith("lr 0.02")


def test_the_seed_of_a_later_file_decides_the_windows(project, tiny):
    (project / "a.yaml").write_text("data: {seed: 5}\n")
    (project / "b.yaml").write_text("seed_everything: 7\n")
    found = []
    for number, words in enumerate((["a", "b"], ["b", "a"])):
        assert main(["fit", *(f"--config={name}.yaml" for name in words), *tiny]) == 0
        settings = yaml.safe_load((project / f"lightning_logs/version_{number}/config.yaml").read_text())
        found.append(settings["data"]["seed"])
    assert found == [7, 5]


@pytest.mark.parametrize(("words", "refused"), [
    ([], True), (["--optimizer.class_path=Muon", "--optimizer.eps=1e-6"], True),
    (["--optimizer.class_path=torch.optim.AdamW"], True),
    (["--optimizer.class_path=SGD"], False), (["--optimizer.eps=1e-4"], False),
    (["--trainer.precision=bf16-true"], False),
])
def test_in_float16_a_small_eps_would_make_steps_of_infinite_size(project, tiny, capsys, words, refused):
    options = [*tiny, "--trainer.precision=16-true", "--trainer.max_steps=40", "--optimizer.warmup_steps=0"]
    assert main(["fit", *options, *words]) == 2 * refused
    if refused:
        assert "give --optimizer.eps 0.0001 or more, or another --trainer.precision" in complaint(capsys)
        assert not (project / "lightning_logs").exists()
    else:
        assert json.loads((run_of(project) / "summary.json").read_text())["skipped_steps"] == 0
