"""Every checkpoint says what it was made with, and other versions are named where results may depend on them."""

import platform

import numpy as np
import pytest
import torch

from tests.loops.conftest import data  # noqa: F401 (a fixture)
from tests.loops.test_lightning import fit, make_module, make_trainer
from tslm.errors import UserError
from tslm.training import provenance
from tslm.training.provenance import changed_versions, versions


@pytest.fixture
def saved(tmp_path, data):  # noqa: F811
    """The checkpoint of a run of two steps."""
    torch.manual_seed(99)
    module = make_module()
    torch.manual_seed(99)
    fit(tmp_path, data, 2, module=module)
    return next(tmp_path.rglob("last.ckpt"))


def change(path, **changed):
    """Write other versions into a checkpoint."""
    state = torch.load(path, weights_only=True)
    state["tslm"]["provenance"]["versions"] |= changed
    torch.save(state, path)


def resume(path, data):  # noqa: F811
    make_trainer(path.parent, 4).fit(make_module(), datamodule=data(), ckpt_path=str(path))


def validate(path, data):  # noqa: F811
    make_trainer(path.parent, 4).validate(make_module(), datamodule=data(), ckpt_path=str(path), verbose=False)


def test_a_checkpoint_carries_its_provenance(saved, data):  # noqa: F811
    own = torch.load(saved, weights_only=True)["tslm"]
    found = own["provenance"]
    assert found["versions"] == versions()
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["numpy"] == np.__version__
    assert set(found["versions"]) == {"tslm", "torch", "lightning", "numpy", "python", "regex", "unicode"}
    assert found["seed"] == 99
    assert found["tokens_seen"] == 2 * 4 * 32
    assert found["resolved"] == {
        "precision": "32-true", "device": "cpu", "processes": 1, "accumulate_grad_batches": 1, "max_steps": 2,
        "warmup_steps": 0, "cosine_steps": 2, "compiled": False, "batch_size": 4, "context_length": 32, "data_seed": 0,
    }
    again = data()
    again.load()
    assert own["fingerprints"] == again.fingerprints
    assert set(own["fingerprints"]) == {"tokenizer", "training text", "validation text"}


@pytest.mark.parametrize("use", [resume, validate])
def test_other_versions_are_named_in_one_line(saved, data, use, capsys):  # noqa: F811
    use(saved, data)
    assert "Other versions" not in capsys.readouterr().out
    change(saved, torch="1.0", numpy="0.9")
    use(saved, data)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Other versions")]
    assert f"torch {torch.__version__} (was 1.0), numpy {np.__version__} (was 0.9); results may differ" in line


def test_other_unicode_tables_are_named_with_their_consequence():
    saved = versions() | {"regex": "2024.1.1", "unicode": "0" * 12}
    line = changed_versions(saved, "x.ckpt")
    assert line.startswith("Other versions than those of x.ckpt: regex ")
    assert line.endswith("(was 2024.1.1); the Unicode tables of regex differ, so a text with new characters may have "
                         "other ids.")
    assert "Unicode tables; the Unicode" in changed_versions(versions() | {"unicode": "0" * 12}, "x.ckpt")
    assert changed_versions({}, "x.ckpt") is changed_versions(versions(), "x.ckpt") is None


def test_a_provenance_of_another_form_is_refused_and_an_early_checkpoint_has_none(saved, data):  # noqa: F811
    state = torch.load(saved, weights_only=True)
    for wrong in (None, 7, {}, {"versions": {"torch": 7}}, {"versions": {"torch": "\x1b[2J"}},
                  {"versions": {}, "tokens_seen": "many"}):
        state["tslm"]["provenance"] = wrong
        torch.save(state, saved)
        for use in (resume, validate):
            with pytest.raises(UserError, match=r"the part tslm\.provenance in another form"):
                use(saved, data)
    del state["tslm"]["provenance"]
    torch.save(state, saved)
    resume(saved, data)
    validate(saved, data)


def test_the_versions_survive_weights_only(tmp_path):
    torch.save(provenance.versions(), tmp_path / "versions.pt")
    assert torch.load(tmp_path / "versions.pt", weights_only=True) == versions()
