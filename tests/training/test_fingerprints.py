"""A run is resumed on the text and with the tokenizer of its earlier part, unless the user allows a change."""

import pytest
import torch

from tests.loops.test_lightning import fit, make_module, make_trainer, weights
from tslm.data.datamodule import TextDataModule
from tslm.errors import UserError
from tslm.tokenizer import Tokenizer, train_bpe
from tslm.training.checkpoint import read_checkpoint
from tslm.training.checkpoint_callback import Checkpoints

CHANGES = {
    "training text": lambda folder: (folder / "train.txt").write_text((folder / "train.txt").read_text() + "One day."),
    "validation text": lambda folder: (folder / "valid.txt").write_text("Once upon a time there was another fox. " * 9),
}


@pytest.fixture
def folder(tmp_path, story_file):
    """A folder with a training text, a validation text and the checkpoint of a run on them."""
    text = story_file.read_text()
    (tmp_path / "train.txt").write_text(text[:-5000])
    (tmp_path / "valid.txt").write_text(text[-5000:])
    fit(tmp_path, data_of(tmp_path), 2)
    return tmp_path


def data_of(folder, **more):
    def data(**options):
        texts = {"train_files": [str(folder / "train.txt")], "valid_files": [str(folder / "valid.txt")]}
        return TextDataModule(**texts, cache_dir=str(folder / "cache"), context_length=32, num_workers=1,
                              **{"vocab_size": 300} | options | more)

    return data


def resume(folder, **more):
    return fit(folder, data_of(folder, **more), 4, ckpt_path="last")


@pytest.mark.parametrize("name", CHANGES)
def test_another_text_is_refused_with_both_fingerprints_and_a_flag_allows_it(folder, capsys, name):
    before = data_of(folder)()
    before.load()
    CHANGES[name](folder)
    after = data_of(folder)()
    after.use_tokenizer(before.tokenizer)  # as the command line does
    after.load()
    old, new = (data.fingerprints[name][:12] for data in (before, after))
    keep = {"tokenizer": str(folder / "lightning_logs" / "version_0" / "tokenizer")}
    runs = sorted((folder / "lightning_logs").iterdir())
    with pytest.raises(UserError, match=rf"the {name} has the fingerprint {new}, but .* was trained with {old}"):
        resume(folder, **keep)
    assert sorted((folder / "lightning_logs").iterdir()) == runs
    assert resume(folder, allow_changed_text=True, **keep)[1].global_step == 4
    assert f"Changed: the {name} has the fingerprint {new}" in capsys.readouterr().out


def test_another_tokenizer_is_refused_with_both_fingerprints_and_a_flag_allows_it(folder, capsys):
    data = data_of(folder)()
    data.load()
    texts = {"input_path": str(folder / "valid.txt"), "special_tokens": data.special_tokens, "num_workers": 1}
    other = Tokenizer(*train_bpe(vocab_size=299, **texts), data.special_tokens)
    other.save(folder / "other")
    options = {"tokenizer": str(folder / "other")}
    changed = f"the tokenizer has the fingerprint {other.hash[:12]}, but .* was trained with {data.tokenizer.hash[:12]}"
    with pytest.raises(UserError, match=changed):
        resume(folder, **options)
    module, trainer = resume(folder, allow_changed_text=True, **options)
    assert trainer.global_step == 4
    assert module.tokenizer.hash == other.hash
    assert f"Changed: the tokenizer has the fingerprint {other.hash[:12]}" in capsys.readouterr().out
    (checkpoints,) = [each for each in trainer.callbacks if isinstance(each, Checkpoints)]
    assert read_checkpoint(checkpoints.last_path)["tslm"]["fingerprints"]["tokenizer"] == other.hash


def test_a_model_is_not_evaluated_with_another_tokenizer(folder):
    Tokenizer(dict(enumerate(map(bytes, zip(range(256))))), [], ["<|endoftext|>"]).save(folder / "other")
    with pytest.raises(UserError, match="the tokenizer has the fingerprint"):
        make_trainer(folder, 1).validate(make_module(), datamodule=data_of(folder, tokenizer=str(folder / "other"))(),
                                         ckpt_path=str(next(folder.rglob("last.ckpt"))), verbose=False)


def test_on_the_command_line_another_tokenizer_is_refused_with_both_fingerprints(folder):
    before, after = data_of(folder)(), data_of(folder)(vocab_size=299)
    for data in (before, after):
        data.load()
    with pytest.raises(UserError, match=rf"{after.tokenizer.hash[:12]}, but .* {before.tokenizer.hash[:12]}: leave"):
        after.use_tokenizer(before.tokenizer)
    after.allow_changed_text, tokenizer = True, after.tokenizer
    after.use_tokenizer(before.tokenizer)
    assert after.tokenizer is tokenizer


def test_the_same_text_in_another_place_and_an_early_checkpoint_are_resumed(folder):
    (folder / "moved").mkdir()
    for name in ("train.txt", "valid.txt"):
        (folder / name).rename(folder / "moved" / name)
    last = next(folder.rglob("last.ckpt"))
    resumed, _ = fit(folder / "a", data_of(folder / "moved"), 4, ckpt_path=str(last))
    state = torch.load(last, weights_only=True)
    del state["tslm"]["fingerprints"]
    torch.save(state, folder / "early.ckpt")
    early, _ = fit(folder / "b", data_of(folder / "moved"), 4, ckpt_path=str(folder / "early.ckpt"))
    assert torch.equal(weights(resumed), weights(early))
