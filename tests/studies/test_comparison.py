import json
import shutil

import pytest
import yaml

from tests.test_cli import TEXT, complaint, runs  # noqa: F401 (a fixture)
from tslm.__main__ import main
from tslm.studies.comparison import Curve, curve, differing_settings, measure, open_side
from tslm.tokenizer import Tokenizer
from tslm.tokenizer.corpus import Corpus


@pytest.fixture(scope="module")
def three(runs, tmp_path_factory, tiny):  # noqa: F811
    """A folder with three runs: of two seeds, and of another learning rate."""
    folder = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        often = ["--trainer.val_every_n_steps=2", "--trainer.log_every_n_steps=1"]
        for name, options in [("one", []), ("two", ["--seed_everything=1", "--data.seed=1"]),
                              ("fast", ["--optimizer.lr=0.02", "--optimizer.warmup_steps=0"])]:
            assert main(["fit", "--config", TEXT, *tiny, *often, "--name", name, *options]) == 0
    return folder


@pytest.fixture
def here(three, monkeypatch):
    monkeypatch.chdir(three)
    return three


def test_two_runs_are_compared_by_their_names(here, capsys, tmp_path):
    assert main(["compare", "one", "fast", "--plot", str(tmp_path / "curves.png")]) == 0
    out = capsys.readouterr().out
    assert "A   lightning_logs/one (best.ckpt, step " in out
    lines = out.splitlines()
    settings = lines[lines.index("Settings that differ:") + 1 : lines.index("", lines.index("Settings that differ:"))]
    assert [line.split()[0] for line in settings] == ["optimizer.lr", "optimizer.warmup_steps", "name"]
    assert settings[0].split()[1:] == ["A:", "0.002", "B:", "0.02"]
    assert "step  A tokens  A seconds  A train  A valid  B tokens" in out
    rows = [line.split() for line in lines if line.split() and line.split()[0].isdigit()]
    assert [row[0] for row in rows][-1] == "4"
    assert [rows[-1][n] for n in (1, 5)] == ["512", "512"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "Losses on documents held out of " in out
    assert " documents, " in out
    assert lines[-1].startswith(("B is better by ", "A is better by ", "No difference seen: "))
    assert lines[-1].endswith("it knows nothing of other seeds)")


def test_a_run_does_not_differ_from_itself(here, capsys):
    shutil.copytree("lightning_logs/one", "lightning_logs/copy", dirs_exist_ok=True)
    assert main(["compare", "one", "copy"]) == 0
    out = capsys.readouterr().out
    assert "Settings that differ:\n  none" in out
    assert "No difference seen: the loss of A minus that of B is 0.0000 ± 0.0000 nats per token." in out
    shutil.rmtree("lightning_logs/copy")


def test_groups_of_seeds_are_compared(here, capsys):
    assert main(["compare", "one", "two", "--to", "fast", "one"]) == 0
    out = capsys.readouterr().out
    assert "A2  lightning_logs/two" in out
    assert "\nOver seeds: " in out
    shutil.copytree("lightning_logs/fast", "lightning_logs/copy")
    assert main(["compare", "one", "two", "--to", "fast", "copy"]) == 0  # two equal runs would seem to have no spread
    shutil.rmtree("lightning_logs/copy")
    assert "\nOver seeds nothing can be said: B1 and B2 are the same model." in capsys.readouterr().out
    assert main(["compare", "one", "--to", "fast"]) == 0
    assert "Over seeds nothing can be said: give two runs or more on each side." in capsys.readouterr().out


def test_losses_equal_those_of_validate_on_the_same_text(here, tmp_path, capsys):
    sides = [open_side("one"), open_side("fast")]
    losses = measure(sides, None, 10**9)
    assert main(["validate", "--ckpt_path", str(sides[0].loaded.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    valid = float(next(line.split()[1] for line in lines if line.startswith("valid_loss")))
    # Here each document is scored from its beginning, there in windows that start anywhere.
    assert losses.means[0] == pytest.approx(valid, abs=0.02)
    assert losses.difference([0], [1]).mean == pytest.approx(losses.means[0] - losses.means[1])
    (tmp_path / "other.txt").write_text("Once upon a time there was a cat.\n" * 40)
    other = measure(sides, Corpus(str(tmp_path / "other.txt")), 10**9)
    assert other.text.startswith(f"{tmp_path}/other.txt: ")
    assert other.means != losses.means


def test_runs_with_other_tokenizers_are_compared_per_byte(here, tiny, capsys):
    options = [option for option in tiny if "vocab_size" not in option]
    assert main(["fit", "--config", TEXT, *options, "--data.vocab_size=280", "--name", "small"]) == 0
    capsys.readouterr()
    assert main(["compare", "one", "small"]) == 0
    out = capsys.readouterr().out
    assert "bytes (the tokenizers differ)" in out
    assert "nats per byte" in out.splitlines()[-1]
    shutil.rmtree("lightning_logs/small")


def test_a_text_that_has_changed_and_texts_that_differ_are_noticed(here, tiny, tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text("<|endoftext|>\n".join(f"Story {n} of a cat with {n % 7} hats." for n in range(300)))
    assert main(["fit", "--config", TEXT, *tiny, f'--data.train_files=["{text}"]', "--name", "other"]) == 0
    capsys.readouterr()
    assert main(["compare", "other", "one"]) == 0
    out = capsys.readouterr().out
    assert "The runs were not trained on the same files: one of them may have been trained on this text." in out
    assert "it has changed" not in out
    text.write_text(text.read_text() + "<|endoftext|>\nAnother story of a dog." * 300)
    assert main(["compare", "other", "other"]) == 0
    out = capsys.readouterr().out
    assert f"held out of {text} (it has changed since the training, which may have seen a part of it): " in out
    assert "not trained on the same files" not in out
    shutil.rmtree("lightning_logs/other")


def test_records_with_another_field_are_compared(here, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"body": "Once upon a time there was a cat."}\n' * 3)
    assert main(["compare", "one", "two", "--input", str(tmp_path / "a.jsonl"), "--text_field", "body"]) == 0
    assert "a.jsonl: 3 documents" in capsys.readouterr().out


def test_special_tokens_in_text_are_compared_as_they_were_trained(here, tmp_path):
    loaded = open_side("one").loaded
    (special,) = loaded.tokenizer.special_tokens
    word = "at"
    assert word.encode() in loaded.tokenizer.vocab.values()  # so that the model has a row for the special token
    tokenizer = Tokenizer(loaded.tokenizer.vocab, loaded.tokenizer.merges, [special, word])
    sides = [open_side("one")._replace(loaded=loaded._replace(tokenizer=tokenizer))]
    (tmp_path / "a.txt").write_text("The catat")
    (tmp_path / "a.jsonl").write_text('{"text": "The catat"}')
    text, records, allowed = (measure(sides, Corpus(tmp_path / name, allow_special=allow), 9).sizes.sum()
                              for name, allow in [("a.txt", False), ("a.jsonl", False), ("a.jsonl", True)])
    assert text == allowed == len(tokenizer.encode("The catat")) + 1
    assert records == len(tokenizer.encode("The catat", allow_special=False)) + 1


def test_a_damaged_checkpoint_is_named_before_another_takes_its_place(here, tmp_path, capsys):
    shutil.copytree("lightning_logs/one", tmp_path / "one")
    (best,) = (tmp_path / "one" / "checkpoints").glob("best.ckpt")
    best.unlink()
    best.write_bytes(b"x")
    assert main(["compare", str(tmp_path / "one"), "two"]) == 0
    assert f"{best} is damaged or cannot be read, and is skipped." in capsys.readouterr().out.splitlines()


def test_checkpoints_in_a_folder_of_their_own_belong_to_their_run(here, tiny, capsys):
    assert main(["fit", "--config", TEXT, *tiny, "--checkpoint.dirpath=kept", "--name", "apart"]) == 0
    assert open_side("apart").path.name == open_side("kept/best.ckpt").path.name == "apart"
    assert open_side("lightning_logs/one/checkpoints").path.name == "one"
    shutil.rmtree("lightning_logs/apart")


def test_curves_count_the_seconds_of_training(here):
    side = open_side("one")
    steps, tokens, seconds, losses = curve(side, "train/loss")
    assert (steps, tokens) == ([1, 2, 3, 4], [128, 256, 384, 512])
    assert seconds == sorted(seconds)
    assert len(losses) == 4
    assert curve(side._replace(metrics=[]), "train/loss") == Curve([], [], [], [])
    config = yaml.safe_load((here / "lightning_logs/one/config.yaml").read_text())
    assert side.settings["optimizer.lr"] == config["optimizer"]["lr"]
    assert differing_settings([side, side]) == []


def test_mistakes_in_a_comparison_are_sentences(here, tmp_path, capsys):
    shutil.copytree("lightning_logs/one", tmp_path / "broken")
    (tmp_path / "broken" / "metrics.csv").write_text("step,loss\n1")
    (here / "folder.png").mkdir()
    for options, sentence in [
        (["one"], "one run alone is named"),
        (["one", "nothing"], "nothing"),
        (["one", "two", "--max_documents=0"], "max_documents is 0: give at least 1"),
        (["one", "two", "--input", "nowhere.txt"], "nowhere.txt does not exist"),
        (["one", "two", "--plot", "folder.png"], "is a folder"),
        (["one", "two", "--plot", "config.yaml"], "the plot config.yaml does not end in .png"),
        ([], "RUNS must be given"),
        (["--to", "one"], "RUNS must be given"),
        (["one", str(tmp_path / "broken")], "broken has a damaged file"),
    ]:
        assert main(["compare", *options]) == 2
        assert sentence in complaint(capsys)


def test_a_text_that_is_elsewhere_is_named(here, tmp_path, monkeypatch, capsys):
    moved = tmp_path / "moved"
    shutil.copytree("lightning_logs/one", moved)
    import torch

    for path in (moved / "checkpoints").glob("*.ckpt"):
        state = torch.load(path, weights_only=True)
        state["tslm"]["config"]["data"]["train_files"] = ["elsewhere.txt"]
        path.unlink()
        torch.save(state, path)
    assert main(["compare", str(moved), "two"]) == 2
    assert "elsewhere.txt does not exist" in (said := complaint(capsys))
    assert said.endswith("or give another text with --input")
    assert json.loads((moved / "summary.json").read_text())["steps"] == 4
