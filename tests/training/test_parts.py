"""Every part of a checkpoint that is missing or has another type is named in one sentence, by every command."""

import re

import pytest
import torch

from tests.loops.conftest import data  # noqa: F401 (a fixture)
from tests.loops.test_lightning import fit, make_module, make_trainer
from tslm.errors import UserError
from tslm.training.runs import load_model

READ = ["global_step", "state_dict", "tslm", "tslm.architecture", "tslm.tokenizer"]
RESUMED = [
    "epoch", "loops", "loops.fit_loop", "loops.fit_loop.epoch_progress", "loops.fit_loop.epoch_loop.state_dict",
    "loops.fit_loop.epoch_loop.batch_progress.current", "callbacks", "callbacks.StepMetrics.tokens_seen",
    "callbacks.Checkpoints.best_loss", "callbacks.Checkpoints.folder", "optimizer_states", "lr_schedulers", "tslm.rng",
    "tslm.rng.cpu", "tslm.rng.cuda",
]
WRONG = [None, 7, "text", [], [7], {}, {"a": 7}, torch.zeros(2)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, story_file, cache_dir):
    """What the checkpoint of a run of two steps holds, and its path."""
    from tslm.data.datamodule import TextDataModule

    folder = tmp_path_factory.mktemp("parts")
    text = {"train_files": [str(story_file)], "cache_dir": str(cache_dir), "num_workers": 1}
    fit(folder, lambda **options: TextDataModule(**text, vocab_size=300, context_length=32, **options), 2)
    return next(folder.rglob("last.ckpt"))


def parent_and_name(state, part):
    """The dictionary that holds a part, and the part's name; names of Lightning's loops contain dots."""
    while part not in state:
        name = next(part[:dot.start()] for dot in re.finditer(r"\.", part) if part[:dot.start()] in state)
        state, part = state[name], part[len(name) + 1 :]
    return state, part


def resume(path, data):  # noqa: F811
    make_trainer(path.parent, 4, limit_val_batches=0).fit(make_module(), datamodule=data(), ckpt_path=str(path))


def load(path, data):  # noqa: F811
    load_model(path)


def validate(path, data):  # noqa: F811
    make_trainer(path.parent, 4).validate(make_module(), datamodule=data(), ckpt_path=str(path), verbose=False)


@pytest.mark.parametrize(("part", "use"), [
    *((part, resume) for part in READ + RESUMED), *((part, validate) for part in READ),
    *((part, load) for part in READ),
])
def test_a_part_that_is_missing_or_has_another_type_is_named(saved, tmp_path, data, part, use):  # noqa: F811
    path = tmp_path / "spoilt.ckpt"
    original, name = parent_and_name(torch.load(saved, weights_only=True), part)
    wrong = [value for value in WRONG if not isinstance(value, type(original[name]))]
    if part == "tslm.tokenizer":
        wrong = [value for value in wrong if value is not None]  # of a model that was not trained on text
    for value in ["missing", *wrong]:
        state = torch.load(saved, weights_only=True)
        parent, name = parent_and_name(state, part)
        if value == "missing" and isinstance(value, str):
            del parent[name]
        else:
            parent[name] = value
        torch.save(state, path)
        with pytest.raises(UserError, match=r"spoilt\.ckpt (lacks|holds|does not (hold|fit)|was not written)"):
            use(path, data)


@pytest.mark.parametrize("spoil", [
    lambda state: state["state_dict"].update({"model.ln_final.weight": torch.ones(16).to_sparse()}),
    lambda state: state["state_dict"].update({"model.ln_final.weight": torch.ones(17)}),
    lambda state: state["state_dict"].pop("model.ln_final.weight"),
    lambda state: state["tslm"]["architecture"].update(extra=1),
    lambda state: state["state_dict"].update({"model.ln_final.weight": torch.ones(16, device="meta")}),
    lambda state: state["tslm"]["tokenizer"].pop("merges.txt"),
    lambda state: state["optimizer_states"][0]["state"][0].update(exp_avg=torch.ones(3)),
    lambda state: state["optimizer_states"][0]["state"].update({99: state["optimizer_states"][0]["state"][0]}),
    lambda state: state["optimizer_states"][0]["param_groups"].clear(),
    lambda state: state["optimizer_states"][0]["state"][0].update(step=torch.tensor(torch.nan)),
    lambda state: state["optimizer_states"][0]["state"][0]["exp_avg"].view(-1)[:1].fill_(torch.nan),
    lambda state: state["optimizer_states"][0]["state"][0]["exp_avg_sq"].view(-1)[:1].fill_(-1.0),
    lambda state: state["lr_schedulers"][0].update(base_lrs=[0.1, 0.1]),
    lambda state: state["tslm"]["rng"].update(cpu=torch.zeros(5, dtype=torch.uint8)),
    lambda state: state["tslm"]["rng"].update(cpu=torch.zeros_like(state["tslm"]["rng"]["cpu"])),
    lambda state: state["callbacks"]["StepMetrics"].update(train_loss="x"),
    lambda state: state["callbacks"]["StepMetrics"].update(skipped_steps="x"),
])
def test_a_part_with_other_contents_is_named(saved, tmp_path, data, spoil):  # noqa: F811
    state = torch.load(saved, weights_only=True)
    spoil(state)
    torch.save(state, tmp_path / "spoilt.ckpt")
    use = load if "extra" in state["tslm"]["architecture"] else resume  # which takes the architecture from the module
    with pytest.raises(UserError, match=r"spoilt\.ckpt "):
        use(tmp_path / "spoilt.ckpt", data)


@pytest.mark.parametrize("version", [None, 5, "99.x", "1.0.0"])
@pytest.mark.parametrize("use", [resume, validate])
def test_the_version_of_lightning_that_a_checkpoint_states_does_not_matter(saved, tmp_path, data, version, use):  # noqa: F811
    state = torch.load(saved, weights_only=True)
    if version is None:
        del state["pytorch-lightning_version"]
    else:
        state["pytorch-lightning_version"] = version
    torch.save(state, tmp_path / "spoilt.ckpt")
    use(tmp_path / "spoilt.ckpt", data)


@pytest.mark.parametrize("sizes", [
    {"d_model": 2**20}, {"d_ff": 2**24}, {"num_layers": 2**24}, {"vocab_size": 2**24}, {"context_length": 2**24},
])
@pytest.mark.parametrize("shared", [False, True])
def test_an_architecture_without_the_weights_for_it_is_refused_before_a_model_is_built(saved, tmp_path, sizes, shared):
    state = torch.load(saved, weights_only=True)
    state["tslm"]["architecture"].update(sizes)
    if shared:  # weights of huge shapes whose elements are all the same number in memory
        state["state_dict"] = {name: torch.ones(1).expand(2**20, 2**20) for name in state["state_dict"]}
    torch.save(state, tmp_path / "spoilt.ckpt")
    with pytest.raises(UserError, match=r"spoilt\.ckpt holds [0-9,]+ bytes of weights, which do not suffice"):
        load_model(tmp_path / "spoilt.ckpt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_command_uses_weights_that_are_not_finite(saved, tmp_path, value):
    state = torch.load(saved, weights_only=True)
    state["state_dict"]["model.lm_head.weight"][3, 3] = value
    torch.save(state, tmp_path / "spoilt.ckpt")
    with pytest.raises(UserError, match=r"spoilt\.ckpt has weights in lm_head\.weight that are not finite"):
        load_model(tmp_path / "spoilt.ckpt")
