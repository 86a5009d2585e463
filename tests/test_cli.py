"""The commands fit, validate, test, predict and generate: what they write, print and refuse."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import ROOT, hear_ctrl_c
from tslm.__main__ import main

TEXT = str(ROOT / "configs" / "text.yaml")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny):
    """A folder with one finished run of the tiny model."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        often = ["--trainer.val_every_n_steps=2", "--trainer.log_every_n_steps=1"]
        assert main(["fit", "--config", TEXT, *tiny, *often, "--model.loss_chunk_size=50"]) == 0
    return folder


@pytest.fixture
def in_runs(runs, tmp_path, monkeypatch):
    """A copy of that folder as the working folder, for tests that add to it."""
    shutil.copytree(runs / "lightning_logs", tmp_path / "lightning_logs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "lightning_logs" / "version_0"


def complaint(capsys):
    """Return the sentence about a mistake: the last line that starts with "tslm: ", without a traceback."""
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return [line for line in captured.err.splitlines() if line.startswith("tslm: ")][-1]


def test_fit_writes_a_self_contained_run_directory(runs):
    run = runs / "lightning_logs" / "version_0"
    names = {path.name for path in run.iterdir()}
    assert {"checkpoints", "config.yaml", "tokenizer", "metrics.csv", "summary.json"} <= names
    assert {"last.ckpt", "best.ckpt", "step-00000004.ckpt"} <= {path.name for path in (run / "checkpoints").iterdir()}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["tokens_seen"] == 4 * 4 * 32
    for name in ("tokens_per_second", "train_loss", "valid_loss", "perplexity", "bits_per_byte", "seconds"):
        assert summary[name] > 0, name
    assert (runs / summary["checkpoint"]).is_file()
    with (run / "metrics.csv").open() as file:
        losses = {int(row["step"]): float(row["valid/loss"]) for row in csv.DictReader(file) if row["valid/loss"]}
    assert summary["best_step"] == min(losses, key=losses.get)
    assert summary["best_valid_loss"] == min(losses.values())  # one figure, with all its digits


def test_a_monitor_that_does_not_exist_is_one_sentence_and_the_weights_are_kept(tmp_path, tiny, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stop = ["--trainer.val_every_n_steps=2", "--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=nothing"]
    assert main(["fit", "--config", TEXT, *tiny, *stop]) == 2
    sentence = complaint(capsys)
    assert "`nothing` which is not available" in sentence
    assert "`valid_loss`" in sentence
    assert (tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "step-00000002.ckpt").is_file()


def test_fit_writes_tensorboard_events(runs):
    events = EventAccumulator(str(runs / "lightning_logs" / "version_0")).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {
        "train/loss", "train/perplexity", "train/learning_rate", "train/gradient_norm", "train/tokens_per_second",
        "valid/loss", "valid/perplexity", "valid/bits_per_byte",
    } <= scalars
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("valid/loss")] == [2, 4]
    assert "story/text_summary" in events.Tags()["tensors"]


def test_fit_writes_the_same_figures_to_a_csv_file(runs):
    with (runs / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [1, 2, 3, 4]
    assert [int(row["step"]) for row in rows if row["valid/loss"]] == [2, 4]


def test_the_saved_configuration_repeats_the_training(runs, project, capsys):
    config = runs / "lightning_logs" / "version_0" / "config.yaml"
    assert main(["fit", "--config", str(config)]) == 0
    first, second = (json.loads((folder / "lightning_logs/version_0/summary.json").read_text())
                     for folder in (runs, project))
    for name in ("train_loss", "valid_loss", "tokens_seen"):
        assert first[name] == second[name]


def test_the_saved_configuration_of_a_named_run_repeats_it_under_the_next_name(in_runs, capsys):
    (in_runs.parent / "mine").mkdir()
    settings = yaml.safe_load((in_runs / "config.yaml").read_text())
    (in_runs.parent.parent / "named.yaml").write_text(yaml.safe_dump(settings | {"name": "mine"}))
    for name in ("mine-2", "mine-3"):
        assert main(["fit", "--config", "named.yaml"]) == 0
        assert f"{name}\n" in capsys.readouterr().out
        first, again = (json.loads((run / "summary.json").read_text()) for run in (in_runs, in_runs.parent / name))
        assert first["valid_loss"] == again["valid_loss"]
    assert main(["fit", "--config", "named.yaml", "--name", "mine"]) == 2
    assert "mine exists, and another run may be in it: give another --name" in complaint(capsys)


def test_validate_names_the_newest_run_and_measures_its_best_checkpoint(in_runs, capsys):
    assert main(["validate"]) == 0
    out = capsys.readouterr().out
    assert "version_0/checkpoints/best.ckpt (version_0's best)" in out
    assert main(["test", "--ckpt_path", "last"]) == 0
    figures = dict(line.split() for line in out.splitlines() if line.startswith("valid_"))
    assert set(figures) == {"valid_loss", "valid_perplexity", "valid_bits_per_byte"}
    tested = dict(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("test_"))
    summary = json.loads((in_runs / "summary.json").read_text())
    assert float(tested["test_loss"]) == pytest.approx(summary["valid_loss"], abs=1e-4)
    assert sorted(path.name for path in in_runs.parent.iterdir()) == ["version_0"]  # measuring makes no run


def test_predict_writes_one_line_per_prompt(in_runs, capsys):
    prompts = ["Once upon a time", "", "Ünïcödé 🙂"]
    as_option = f"--data.prompts={json.dumps(prompts, ensure_ascii=False)}"
    assert main(["predict", as_option, "--generation.max_new_tokens=6"]) == 0
    lines = [json.loads(line) for line in (in_runs / "predictions.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    for line in lines:
        assert set(line) == {"prompt", "text", "stop_reason", "tokens"}
        assert line["stop_reason"] in ("stop_token", "length")
        assert line["tokens"] <= 6
    assert "Once upon a time" in capsys.readouterr().out


def test_predict_refuses_a_device_as_file_of_prompts(in_runs, capsys):
    assert main(["predict", "--data.prompts_file=/dev/null"]) == 2
    assert "/dev/null is no file of prompts: give --data.prompts_file a text file" in complaint(capsys)


def test_a_stock_callback_with_an_enumeration_among_its_defaults_is_used(in_runs, capsys):
    assert main(["validate", "--trainer.callbacks=Timer"]) == 0


def test_a_training_without_time_for_a_step_is_a_mistake(project, tiny, capsys):
    assert main(["fit", "--config", TEXT, *tiny, "--trainer.max_time=00:00:00:00"]) == 2
    assert "the training ended before its first step" in complaint(capsys)


def test_the_command_that_the_summary_proposes_works_in_every_folder(project, tiny, capsys):
    assert not (project / "configs").exists()
    assert main(["fit", "--config", "configs/text.yaml", *tiny, "--trainer.max_steps=1"]) == 0
    out, err = capsys.readouterr()
    assert f"configs/text.yaml is not in this folder; the one that comes with tslm is used: {TEXT}" in err
    assert "python -m tslm fit --config configs/text.yaml --data.train_files" in out
    assert main(["fit", "--config", "configs/text.yaml", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["context_length"] == 256
    assert main(["study", "accounting", "--config", "configs/text.yaml", "--json=true"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["context_length"] == 256


def test_predict_reads_prompts_from_a_file(in_runs, tmp_path):
    (tmp_path / "prompts.txt").write_text("One day\n\nTwo days\n")
    assert main(["predict", "--data.prompts_file=prompts.txt", "--generation.max_new_tokens=2"]) == 0
    lines = [json.loads(line) for line in (in_runs / "predictions.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["One day", "Two days"]


def test_stated_prompts_replace_those_of_weaker_sources(project, tiny, capsys):
    def predicted(*options):
        assert main(["predict", "--generation.max_new_tokens=1", *options]) == 0
        path = project / "lightning_logs" / "version_0" / "predictions.jsonl"
        return [json.loads(line)["prompt"] for line in path.read_text().splitlines()]

    (project / "prompts.txt").write_text("file\n")
    (project / "prompts.yaml").write_text("data: {prompts: [yaml]}\n")
    assert main(["fit", "--config", TEXT, *tiny, "--data.prompts=[fit]"]) == 0
    assert predicted() == ["fit"]
    assert predicted("--data.prompts_file=prompts.txt") == ["file"]
    assert predicted("--config=prompts.yaml") == ["yaml"]
    assert predicted("--config=prompts.yaml", "--data.prompts_file=prompts.txt") == ["file"]
    assert main(["predict", "--data.prompts=[a]", "--data.prompts_file=prompts.txt"]) == 2
    assert "--data.prompts and --data.prompts_file both give the prompts: leave one of them out" in complaint(capsys)


def test_a_stated_corpus_replaces_the_files_of_a_checkpoint(project, tiny, capsys):
    assert main(["fit", "--config", TEXT, *tiny]) == 0
    assert main(["validate", "--data.corpus=toy", "--data.toy_stories=20"]) == 0
    assert "held-out stories of the embedded corpus" in capsys.readouterr().out
    assert main(["validate", "--data.corpus=files"]) == 0
    assert "held-out stories" not in capsys.readouterr().out


def test_generate_prints_the_prompt_and_repeats_itself_with_one_seed(in_runs, capsys):
    assert main(["generate", "--prompt", "Once upon", "--max_new_tokens", "5", "--seed", "1"]) == 0
    first = capsys.readouterr().out
    assert "Once upon" in first
    assert "version_0's best" in first
    assert main(["generate", "--prompt", "Once upon", "--max_new_tokens", "5", "--seed", "1"]) == 0
    assert capsys.readouterr().out == first


def story(capsys, *options, seed=0):
    """What `generate` prints after its notice."""
    assert main(["generate", "--max_new_tokens", "12", "--seed", str(seed), *options]) == 0
    return capsys.readouterr().out.split("\n", 1)[1]


def test_generate_tells_several_stories_each_of_which_can_be_told_alone(in_runs, capsys):
    alone = [story(capsys, "--prompt", "Once", seed=seed) for seed in (5, 6, 7)]
    several = story(capsys, "--prompt", "Once", "--num_samples", "3", seed=5)
    assert several == "".join(f"--- seed {seed}\n{text}" for seed, text in zip((5, 6, 7), alone, strict=True))
    for options in (["--temperature=0"], ["--top_k=1"], []):
        assert main(["generate", "--num_samples", "2" if options else "0", *options]) == 2
        assert ("all samples are the same" if options else "num_samples is 0: give 1 or more") in complaint(capsys)


def test_generate_stops_at_a_text_of_which_nothing_is_printed(in_runs, capsys):
    whole = story(capsys, "--prompt", "Once")
    new = whole.removeprefix("Once").removesuffix("\n")
    stop = new[3:6]
    for more in (["--stop", "not in it", stop], ["--stop", stop, "--stop", "not in it"]):
        assert story(capsys, "--prompt", "Once", *more) == f"Once{new[:new.index(stop)]}\n"
    assert main(["generate", "--ffn", "mine.Layer"]) == 2
    assert "the feed-forward layer is given as 'mine.Layer', but" in complaint(capsys)
    assert main(["generate", "--stop", ""]) == 2
    assert "stop is ['']; give a list of texts of at least one character each" in complaint(capsys)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_generate_reads_a_prompt_from_standard_input(in_runs, capsys, monkeypatch, end):
    expected = story(capsys, "--prompt", "Zwei Igel\nsaßen")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"Zwei Igel\nsaßen{end}".encode())))
    assert story(capsys, "--prompt", "-") == expected


def test_a_prompt_on_standard_input_that_is_no_text_is_a_mistake(in_runs, capsys, monkeypatch):
    for stdin, part in ((io.TextIOWrapper(io.BytesIO(b"ab\xff")), "is not UTF-8: byte 0xff at offset 2"),
                        (None, "--prompt - reads the standard input, which is closed")):
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["generate", "--prompt", "-"]) == 2
        assert part in complaint(capsys)
    assert main(["generate", "--interactive"]) == 2
    assert "--interactive reads the standard input, which is closed: give --prompt" in complaint(capsys)
    assert main(["generate", "--prompt", "a", "--interactive"]) == 2
    assert "leave one of them out" in complaint(capsys)


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_generate_reads_prompts_until_ctrl_d_or_ctrl_c(in_runs, capsys, monkeypatch, end):
    expected = [story(capsys, "--prompt", prompt, seed=seed) for seed, prompt in enumerate(["Once", "", "Once"])]
    bad = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    lines = iter(["Once", "", "\udcff", bad, "Once", end()])

    def answer(sign):
        assert sign == "> "
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", answer)
    assert main(["generate", "--max_new_tokens", "12", "--interactive"]) == 0
    out, err = capsys.readouterr()
    assert out.split("\n", 2)[2] == "".join(expected) + "\n"
    first, second = err.splitlines()
    assert "U+DCFF" in first
    assert second == "tslm: this line is not UTF-8: type another one"


def test_generate_works_with_a_moved_run_directory_and_a_copied_checkpoint(in_runs, tmp_path, capsys):
    shutil.move(in_runs, tmp_path / "elsewhere")
    assert main(["generate", "--ckpt_path", str(tmp_path / "elsewhere"), "--max_new_tokens", "3"]) == 0
    single = shutil.copy(tmp_path / "elsewhere" / "checkpoints" / "last.ckpt", tmp_path / "alone.ckpt")
    assert main(["generate", "--ckpt_path", str(single), "--max_new_tokens", "3"]) == 0


def test_generate_skips_damaged_checkpoints_with_a_notice(in_runs, capsys):
    for name in ("best", "last", "step-00000004"):
        path = in_runs / "checkpoints" / f"{name}.ckpt"
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-100])
    assert main(["generate", "--max_new_tokens", "3"]) == 0
    out = capsys.readouterr().out
    assert "step-00000004.ckpt is damaged" in out
    assert "step-00000002.ckpt" in out


def test_generate_truncates_a_long_prompt_on_the_left_with_a_warning(in_runs):
    with pytest.warns(UserWarning, match="context"):
        assert main(["generate", "--prompt", "Once upon a time there was a fox. " * 30, "--max_new_tokens", "2"]) == 0


def test_a_budget_in_a_file_that_the_command_line_replaces_is_no_change(in_runs, tiny, capsys):
    options = [option for option in tiny if "max_steps" not in option]
    assert main(["fit", "--config", TEXT, "--ckpt_path", "last", "--trainer.max_steps", "6", *options]) == 0
    assert "max_tokens" not in capsys.readouterr().out


def test_fit_resumes_with_the_settings_of_the_checkpoint_where_none_is_stated(in_runs, capsys):
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_steps", "6", "--optimizer.lr=0.001"]) == 0
    out = capsys.readouterr().out
    assert "Changed: trainer.max_steps is 6; the checkpoint was trained with 4." in out
    assert "Changed: optimizer.lr is 0.001" in out
    config = yaml.safe_load((in_runs.parent / "version_0-continued" / "config.yaml").read_text())
    assert config["data"]["batch_size"] == 4
    assert config["model"]["loss_chunk_size"] == 50  # not of the architecture, but it changes rounding
    assert config["optimizer"]["lr"] == 0.001
    summary = json.loads((in_runs.parent / "version_0-continued" / "summary.json").read_text())
    assert (summary["tokens_seen"], summary["continues"]) == (6 * 4 * 32, "version_0")


def test_the_user_names_the_run_directory(in_runs, capsys):
    text = in_runs.parent.parent
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_steps", "5", "--name", "my run"]) == 0
    summary = json.loads((in_runs.parent / "my run" / "summary.json").read_text())
    assert (summary["steps"], summary["continues"]) == (5, "version_0")
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_steps", "6", "--name", "my run"]) == 2
    assert "my run exists, and another run may be in it: give another --name" in complaint(capsys)
    for name in ("../elsewhere", "a/b", "", ".hidden", "a\0b", "x" * 101, "last", "best", " ", "-x", "x "):
        assert main(["fit", "--ckpt_path", "last", "--trainer.max_steps", "6", f"--name={name}"]) == 2
        assert "the name of the run is " in complaint(capsys)
    assert sorted(path.name for path in in_runs.parent.iterdir()) == ["my run", "version_0"]
    assert not (text / "elsewhere").exists()


def test_tokens_on_the_command_line_replace_steps_in_a_file(in_runs, capsys):
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_tokens", str(5 * 4 * 32 - 1)]) == 0
    assert json.loads((in_runs.parent / "version_0-continued" / "summary.json").read_text())["steps"] == 5


def test_a_budget_in_a_file_replaces_the_other_kind_in_the_checkpoint(in_runs, tmp_path):
    (tmp_path / "more.yaml").write_text(f"trainer:\n  max_tokens: {5 * 4 * 32}\n")
    assert main(["fit", "--ckpt_path", "last", "--config", "more.yaml"]) == 0
    assert json.loads((in_runs.parent / "version_0-continued" / "summary.json").read_text())["steps"] == 5


def test_a_run_without_an_intact_checkpoint_is_skipped_with_a_notice(in_runs, capsys):
    newer = in_runs.parent / "version_1"
    shutil.copytree(in_runs, newer)
    for path in (newer / "checkpoints").glob("*.ckpt"):
        path.write_bytes(b"damaged")
    assert main(["generate", "--max_new_tokens", "1"]) == 0
    out = capsys.readouterr().out
    assert "version_1 has no intact checkpoint" in out
    assert "version_0/checkpoints/best.ckpt" in out


def test_fit_resumes_from_a_checkpoint_that_was_written_but_not_yet_linked_as_last(in_runs, capsys):
    checkpoints = in_runs / "checkpoints"
    (checkpoints / "last.ckpt").unlink()
    (checkpoints / "last.ckpt").hardlink_to(checkpoints / "step-00000002.ckpt")
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_steps", "5"]) == 0
    assert "step-00000004.ckpt" in capsys.readouterr().out


def test_a_run_without_loggers_has_its_own_directory(project, tiny):
    (project / "config.yaml").write_text("mine: untouched\n")
    assert main(["fit", "--config", TEXT, *tiny, "--trainer.logger=false", "--trainer.max_steps=1"]) == 0
    assert (project / "config.yaml").read_text() == "mine: untouched\n"
    assert {path.name for path in project.iterdir()} == {"config.yaml", "lightning_logs"}
    assert main(["generate", "--max_new_tokens=1"]) == 0


def test_text_without_special_tokens_trains(project, tiny):
    options = ["--data.special_tokens=[]", "--trainer.max_steps=1"]
    assert main(["fit", "--config", TEXT, *tiny, *options]) == 0


def test_json_lines_train_like_text(project, tiny, story_file):
    stories = [story for story in story_file.read_text(encoding="utf-8").split("<|endoftext|>") if story]
    lines = [json.dumps({"id": n, "text": story}) + "\n" for n, story in enumerate(stories)]
    (project / "stories.jsonl").write_text("".join(lines), encoding="utf-8")
    options = ['--data.train_files=["stories.jsonl"]', "--trainer.max_steps=1"]
    assert main(["fit", "--config", TEXT, *tiny, *options]) == 0


@pytest.mark.parametrize(("clip", "split"), [
    pytest.param("null", [], marks=pytest.mark.slow), pytest.param("0.1", [], marks=pytest.mark.slow),
    ("0.1", ["--data.micro_batch_size=1"]),
])
def test_two_processes_train_like_one_with_the_same_batch(project, tiny, clip, split):
    """Runs in a subprocess, because `ddp` starts the second process from the command line of the first."""
    options = [
        *tiny, "--trainer.max_steps=3", "--trainer.val_every_n_steps=2", "--trainer.log_every_n_steps=1",
        "--trainer.precision=32-true", f"--trainer.gradient_clip_val={clip}", "--optimizer.eps=1e-3",
    ]
    shared = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", *split]
    run = subprocess.run(
        [sys.executable, "-m", "tslm", "fit", "--config", TEXT, *options, *shared], capture_output=True, text=True,
        timeout=120, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert main(["fit", "--config", TEXT, *options]) == 0
    two, one = (project / f"lightning_logs/version_{i}" for i in (0, 1))
    figures, expected = (json.loads((each / "summary.json").read_text()) for each in (two, one))
    assert figures["tokens_seen"] == expected["tokens_seen"]
    for name in ("train_loss", "valid_loss", "bits_per_byte"):
        assert figures[name] == pytest.approx(expected[name], rel=1e-5), name
    norms, expected_norms = ([float(row["train/gradient_norm"]) for row in csv.DictReader(file.splitlines())
                              if row["train/gradient_norm"]]
                             for file in ((each / "metrics.csv").read_text() for each in (two, one)))
    assert len(norms) == 3
    assert min(norms) > 0.1  # so that clipping changes the gradient
    assert norms == pytest.approx(expected_norms, rel=1e-4)  # the mean over both, before clipping, not the sum
    # With ε larger than most gradients, Adam's step depends on their scale, so a wrong scale changes the weights.
    states = [torch.load(each / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for each in (two, one)]
    for name, weight in states[1].items():
        torch.testing.assert_close(states[0][name], weight, rtol=1e-5, atol=1e-6)


def test_checkpoints_are_written_to_the_folder_that_the_user_names(project, tiny):
    assert main(["fit", "--config", TEXT, *tiny, "--checkpoint.dirpath=mine", "--trainer.max_steps=1"]) == 0
    assert {path.name for path in (project / "mine").iterdir()} == {"last.ckpt", "best.ckpt", "step-00000001.ckpt"}
    assert main(["validate"]) == 0


@pytest.mark.parametrize(("options", "part"), [
    (["--model.d_model=32"], "model.d_model is 32, but"),
    (["--data.context_length=16"], "data.context_length is 16, but"),
    (["--trainer.max_steps=4"], "is at step 4 and the budget is 4 steps"),
])
def test_resuming_refuses_another_architecture_and_a_spent_budget(in_runs, capsys, options, part):
    assert main(["fit", "--ckpt_path", "last", *options]) == 2
    assert part in complaint(capsys)


@pytest.mark.parametrize(("arguments", "part"), [
    (["fit", "--optimizer.lrr=3"], "did you mean --optimizer.lr?"),
    (["fit", "--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
    (["fit", "--config", "typo.yaml"], "optimizer"),
    (["fit", "--config", TEXT], "give --data.train_files"),
    (["fit", "--config", TEXT, '--data.train_files=["nowhere.txt"]'], "nowhere.txt does not exist; check the name"),
    (["fit", "--config", TEXT, '--data.train_files=["empty.txt"]'], "empty.txt is empty"),
    (["fit", "--config", TEXT, '--data.train_files=["bad.txt"]'], "bad.txt is not UTF-8: byte 0xff at offset 1"),
    (["fit", "--config", TEXT, '--data.train_files=["short.txt"]', "--data.vocab_size=100"], "data.vocab_size is 100"),
    (["fit", "--config", TEXT, '--data.train_files=["short.txt"]'], "context_length"),
    (["fit", "--trainer.max_steps=0"], "max_steps is 0"),
    (["fit", "--trainer.max_steps=3", "--trainer.max_tokens=3"], "one of them"),
    (["fit", '--data.train_files=["short.txt"]', "--data.corpus=toy"], "data.corpus is 'toy', but files are named"),
    (["fit", "--optimizer.lr=-1"], "optimizer.lr is -1"),
    (["fit", "--optimizer.lr_min=1"], "optimizer.lr_min is 1"),
    (["fit", "--optimizer.betas=[0.9,1.5]"], "optimizer.betas"),
    (["fit", "--model.loss_chunk_size=0"], "model.loss_chunk_size is 0"),
    (["fit", "--data.num_workers=0"], "data.num_workers is 0: give --data.num_workers at least 1"),
    (["fit", "--optimizer.cosine_steps=-5"], "tslm: optimizer.cosine_steps is -5, but it must be 0 or more"),
    (["fit", "--optimizer.warmup_steps=-1"], "tslm: optimizer.warmup_steps is -1, but it must be 0 or more"),
    (["fit", "--data.micro_batch_size=0"], "data.micro_batch_size is 0"),
    (["fit", "--data.batch_size=6", "--data.micro_batch_size=4"], "must be a multiple of 4: give --data.batch_size 4"),
    (["fit", "--trainer.accumulate_grad_batches=2"], "give --data.batch_size 12 and --data.micro_batch_size 6 instead"),
    (["fit", "--generation.top_p=7"], "top_p"),
    (["fit", "--trainer.gradient_clip_val=0"], "gradient_clip_val is 0"),
    (["fit", "--trainer.accumulate_grad_batches=0"], "accumulate_grad_batches is 0: give 1 or more"),
    (["fit", "--trainer.accumulate_grad_batches=-1"], "accumulate_grad_batches is -1: give 1 or more"),
    (["fit", "--seed_everything=-5"], "seed_everything is -5"),
    (["fit", f"--seed_everything={2**40}"], "seed_everything is 1099511627776"),
    (["fit", "--optimizer.lr=1e39"], "tslm: optimizer.lr is 1e+39, but it must be between 0 and"),
    (["fit", "--model.rope_theta=.nan"], "model.rope_theta is nan"),
    (["fit", f"--generation.seed={2**63}"], "tslm: generation.seed is 9.22337e+18, but it must be a whole number"),
    (["fit", "--config", "twice.yaml"], "twice.yaml states the key 'lr' twice, the second time in line 3"),
    (["fit", "--config", "dotted.yaml"], "dotted.yaml states the key 'trainer.max_steps' twice, once dotted and"),
    (["fit", "--optimizer={lr: 1, lr: 2}"], "--optimizer states the key 'lr' twice"),
    (["fit", "--data.tokenizer=\udcff"], "data.tokenizer contains the lone surrogate U+DCFF at position 0"),
    (["fit", "--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=a", "--trainer.callbacks.mode=best"],
     "cannot be used: `mode` can be min, max, got best"),
    (["fit", "--config", TEXT, "--trainer.max_tokens=3Q"], "--trainer.max_tokens is '3Q', but it must be a number"),
    (["fit", "--trainer.callbacks=[3]"], "--trainer.callbacks is '[3]', but it must be the name of a class of"),
    (["fit", "--trainer.callbacks=NoSuch"], "--trainer.callbacks is 'NoSuch', but it must be the name of a class of"),
    (["fit", "--trainer.callbacks=[EarlyStoping]"], "'[EarlyStoping]', but it must be the name of a class of"),
    (["fit", "--trainer.callbacks=LambdaCallback", "--trainer.callbacks.on_fit_start=print"],
     "--trainer.callbacks.on_fit_start is 'print', but lightning.pytorch.callbacks.LambdaCallback takes one of"),
    (["fit", "--model.ffn.class_path=mine.Layer"], "unknown option --model.ffn.class_path: give --model.ffn, which"),
    (["fit", "--optimizer.eps=0"], "optimizer.eps is 0.0, but it must be between 1e-37 and 1e+18"),
    (["fit", "--trainer.logger=lightning.pytorch.loggers.CSVLogger"], "give --trainer.logger.save_dir"),
    (["fit", "--trainer.limit_train_batches=3"], "trainer.limit_train_batches is 3, but a training is counted in"),
    (["fit", "--trainer.max_time=soon"], "cannot be used: `Timer(duration='soon')` is not a valid duration"),
    (["generate", "--seed=9223372036854775808"], "seed is 9.22337e+18"),
    (["fit", "--trainer.max_steps=5", "--optimizer.warmup_steps=9"], "warmup_steps is 9"),
    (["fit", "--ckpt_path", "nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
    (["fit", "--ckpt_path", "bad.txt"], "bad.txt is damaged or no checkpoint"),
    (["validate"], "there is no run under lightning_logs with a checkpoint; "),
    (["predict"], "no run under"),
    (["generate"], "no run under"),
    (["generate", "--ckpt_path", "nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
])
def test_a_mistake_is_reported_in_one_sentence_and_leaves_no_files(project, capsys, arguments, part):
    (project / "typo.yaml").write_text("optmizer:\n  lr: 3.0e-3\n")
    (project / "twice.yaml").write_text("optimizer:\n  lr: 3.0e-3\n  lr: 3.0e-4\n")
    (project / "dotted.yaml").write_text("trainer.max_steps: 3\ntrainer:\n  max_steps: 4\n")
    (project / "empty.txt").write_text("")
    (project / "bad.txt").write_bytes(b"a\xff\xfeb not UTF-8\n")
    (project / "short.txt").write_text("Once upon a time.\n" * 3)
    before = {path.name for path in project.iterdir()}
    assert main(arguments) == 2
    assert part in complaint(capsys)
    left = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()} - before
    assert {name for name in left if not name.startswith(".cache/tslm/")} == set()
    assert {name for name in left if name.endswith(".bin")} == set() or "short.txt" in str(arguments)


def test_predict_refuses_an_empty_list_of_prompts(in_runs, capsys):
    assert main(["predict", "--data.prompts=[]"]) == 2
    assert "data.prompts is an empty list" in complaint(capsys)


@pytest.mark.parametrize(("option", "part"), [
    ("--top_p=7", "top_p"), ("--temperature=-1", "temperature"), ("--top_k=0", "top_k"),
    ("--max_new_tokens=-3", "max_new_tokens"),
])
def test_generate_refuses_settings_out_of_range(in_runs, capsys, option, part):
    assert main(["generate", "--prompt", "", option]) == 2
    assert part in complaint(capsys)


@pytest.mark.parametrize(("option", "part"), [
    ("--trainer.strategy=telepathy", "invalid strategy name"),
    ("--trainer.accelerator=abacus", "invalid accelerator name"),
    ("--trainer.devices=-7", "devices"),
    ("--trainer.devices=x", "should be an int > 0"),
    ("--trainer.limit_val_batches=-1", "invalid value -1 for limit_val_batches"),
])
def test_what_lightning_refuses_is_reported_in_one_sentence(project, tiny, capsys, option, part):
    assert main(["fit", "--config", TEXT, *tiny, option]) == 2
    assert part in complaint(capsys)
    assert list(project.iterdir()) == []


def test_a_checkpoint_that_does_not_name_its_text_is_not_validated_on_another(in_runs, capsys):
    for path in (in_runs / "checkpoints").glob("*.ckpt"):
        state = torch.load(path, weights_only=True)
        state["tslm"]["config"] = {}
        path.unlink()
        torch.save(state, path)
    assert main(["validate"]) == 2
    assert "does not say which text it was trained and validated on" in complaint(capsys)


def test_ctrl_c_ends_a_conversation_without_an_error(in_runs):
    process = subprocess.Popen(
        [sys.executable, "-m", "tslm", "generate", "--max_new_tokens=3", "--interactive"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=0, preexec_fn=hear_ctrl_c,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    process.stdin.write("Once\n")
    shown = ""
    while shown.count("> ") < 2:  # the story is printed, and the next prompt is asked for
        shown += process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "\n", "")
