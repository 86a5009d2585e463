"""`runs` lists past runs, and `runs --verify` names every damaged file of every run."""

import csv
import json
import math
import os
import shutil

import pytest
import torch

from tests.loops.conftest import data  # noqa: F401 (a fixture)
from tests.loops.test_lightning import Fail, fit
from tslm.__main__ import main
from tslm.data.datamodule import TextDataModule
from tslm.loops.lightning import StepCallback
from tslm.tokenizer import Tokenizer
from tslm.training.run_table import COLUMNS, run_figures


@pytest.fixture(scope="module")
def trained(tmp_path_factory, story_file, cache_dir):
    """Two runs: the first is finished, the second is interrupted by an error in its fifth step."""
    folder = tmp_path_factory.mktemp("listed")

    def make(**options):
        return TextDataModule(train_files=[str(story_file)], cache_dir=str(cache_dir), vocab_size=300,
                              context_length=32, num_workers=1, **options)

    fit(folder, make, 4, val_every_n_steps=2, log_every_n_steps=1)
    with pytest.raises(RuntimeError):
        fit(folder, make, 9, val_every_n_steps=2, log_every_n_steps=1, callbacks=[Fail("on_train_batch_start", 5)])
    for run in (folder / "lightning_logs").iterdir():
        (run / "config.yaml").write_text("data:\n  seed: 0\n")
    (folder / "lightning_logs" / "version_0" / "predictions.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    return folder


@pytest.fixture
def runs(trained, tmp_path, monkeypatch):
    """A copy of the runs, in the working folder."""
    shutil.copytree(trained / "lightning_logs", tmp_path / "lightning_logs")
    for number, name in enumerate(("version_0", "version_1")):
        for path in (tmp_path / "lightning_logs" / name).rglob("*"):
            os.utime(path, (number, number))
    for checkpoints in (tmp_path / "lightning_logs").glob("*/checkpoints"):
        for name in ("best", "last"):  # names of one file, as a run has them
            same = next(path for path in sorted(checkpoints.glob("step-*")) if path.read_bytes()
                        == (checkpoints / f"{name}.ckpt").read_bytes())
            (checkpoints / f"{name}.ckpt").unlink()
            (checkpoints / f"{name}.ckpt").hardlink_to(same)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "lightning_logs"


def table(capsys, *options):
    """The cells of the table that `runs` prints, by run."""
    assert main(["runs", *options]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert rows[0] == list(COLUMNS)
    return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in rows[1:]}


def verify(capsys, *options):
    """The exit code of `runs --verify`, its lines, and its sentence about damaged files."""
    code = main(["runs", "--verify", *options])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out.splitlines(), err


def test_the_list_has_the_newest_run_first_with_its_figures(runs, story_file, capsys):
    rows = table(capsys)
    summary = json.loads((runs / "version_0" / "summary.json").read_text())
    assert list(rows) == ["version_1", "version_0"]
    run = rows["version_0"]
    assert run["tokens"] == f"{summary['tokens_seen']:,}"
    assert run["valid_loss"] == f"{summary['valid_loss']:.4f}"
    assert run["seconds"] == f"{summary['seconds']:,.0f}"
    assert (run["floor_gap"], run["state"]) == ("-", "finished")
    assert run["corpus"][:20] == story_file.as_posix()[:20]
    assert run["when"].startswith("1970-01-01")
    assert rows["version_1"]["tokens"] == f"{summary['tokens_seen']:,}"
    assert int(run["parameters"].replace(",", "")) == int(rows["version_1"]["parameters"].replace(",", "")) > 1000
    with (runs / "version_1" / "metrics.csv").open() as file:
        losses = [row["valid/loss"] for row in csv.DictReader(file) if row["valid/loss"]]
    assert (rows["version_1"]["valid_loss"], rows["version_1"]["state"]) == (f"{float(losses[-1]):.4f}", "died")


def test_the_list_is_sorted_filtered_and_json_on_request(runs, capsys):
    summary = json.loads((runs / "version_0" / "summary.json").read_text())
    (runs / "version_0" / "summary.json").write_text(json.dumps(summary | {"valid_loss": 9.0, "floor_gap": 0.0224}))
    (runs / "version_1").rename(runs / "version_0-continued")
    for name in ("valid_loss", "valid/loss"):
        assert list(table(capsys, f"--sort={name}")) == ["version_0-continued", "version_0"]
    assert list(table(capsys, "--sort=name")) == ["version_0", "version_0-continued"]
    assert list(table(capsys, "--sort=floor_gap")) == ["version_0", "version_0-continued"]  # unknown values come last
    assert table(capsys)["version_0"]["floor_gap"] == "2.24%"
    assert list(table(capsys, "--filter=died")) == ["version_0-continued"]
    assert table(capsys, "--filter=nothing") == {}
    assert main(["runs", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(run["name"], run["state"], run["continues"], run["steps"], run["best_step"]) for run in found] == [
        ("version_0-continued", "died", "version_0", 4, 4), ("version_0", "finished", None, 4, 4),
    ]  # fmt: skip
    assert main(["runs", "--sort=loss"]) == 2
    assert "there is no column 'loss' to sort by: give --sort one of name, when" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["lightning_logs", "lightning_logs/version_1"])
def test_the_folder_of_the_runs_or_one_run_can_be_named(runs, capsys, folder):
    assert next(iter(table(capsys, f"--dir={folder}"))) == "version_1"


def test_a_folder_without_runs_is_named(tmp_path, capsys):
    (tmp_path / "other" / "folder").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for name in ("none", "other", "file", "\0"):
        for options in ([], ["--verify"]):
            assert main(["runs", f"--dir={tmp_path / name}", *options]) == 2
            assert "there is no run in" in capsys.readouterr().err


def test_runs_elsewhere_are_found_among_other_folders(runs, capsys):
    (runs / "notes").mkdir()
    runs.rename(runs.parent / "archive")
    assert list(table(capsys, "--dir=archive")) == ["version_1", "version_0"]


def test_a_run_without_a_checkpoint_is_listed(runs, capsys):
    shutil.rmtree(runs / "version_1" / "checkpoints")
    (runs / "version_1" / "metrics.csv").unlink()
    row = table(capsys)["version_1"]
    assert [row[name] for name in ("parameters", "tokens", "valid_loss", "state")] == ["-", "-", "-", "died"]
    assert verify(capsys)[0] == 0


def test_a_run_is_running_while_its_process_trains(tmp_path, data, capsys):  # noqa: F811
    states = []

    class Look(StepCallback):
        def on_step_log(self, trainer, pl_module, step):
            states.append(run_figures(tmp_path / "lightning_logs" / "version_0").state)

    fit(tmp_path, data, 1, callbacks=[Look()], limit_val_batches=0)
    assert states == ["running"]
    capsys.readouterr()
    assert table(capsys, f"--dir={tmp_path}")["version_0"]["state"] == "finished"


def test_intact_runs_are_intact(runs, capsys):
    code, lines, err = verify(capsys)
    assert (code, err) == (0, "")
    assert [line.partition(":")[0] for line in lines] == ["version_1", "version_0"]
    assert all(line.endswith("files, all intact") for line in lines)


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0x10
    path.write_bytes(content)


def flip_weight(path):
    """Change one bit of a weight."""
    content = bytearray(path.read_bytes())
    weight = torch.load(path, weights_only=True)["state_dict"]["model.lm_head.weight"]
    content[content.index(weight.numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)


def edit(change):
    def damage(path):
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)
    return damage


def another_tokenizer(path):
    shutil.rmtree(path)
    Tokenizer({id_: bytes([id_]) for id_ in range(256)}, []).save(path)


DAMAGE = {
    "cut checkpoint": ("checkpoints/step-00000002.ckpt", lambda path: os.truncate(path, path.stat().st_size // 2)),
    "flipped weight": ("checkpoints/step-00000002.ckpt", flip_weight),
    "flipped weight of last": ("checkpoints/step-00000004.ckpt", flip_weight),
    "missing part": ("checkpoints/step-00000002.ckpt", edit(lambda state: state["tslm"].pop("rng"))),
    "infinite weight": ("checkpoints/step-00000002.ckpt",
                        edit(lambda state: state["state_dict"]["model.lm_head.weight"][3].fill_(float("inf")))),
    "weight of another shape": ("checkpoints/step-00000002.ckpt",
                                edit(lambda state: state["tslm"]["architecture"].update(d_ff=64))),
    "other fingerprint": ("checkpoints/step-00000002.ckpt",
                          edit(lambda state: state["tslm"]["fingerprints"].update(tokenizer="0" * 64))),
    "no checkpoint": ("checkpoints/step-00000002.ckpt", lambda path: path.write_bytes(b"")),
    "cut merges": ("tokenizer/merges.txt", lambda path: os.truncate(path, path.stat().st_size // 2)),
    "another tokenizer": ("tokenizer", another_tokenizer),
    "no tokenizer": ("tokenizer", lambda path: [each.unlink() for each in path.iterdir()]),
    "config": ("config.yaml", lambda path: path.write_text("data: [")),
    "empty config": ("config.yaml", lambda path: path.write_text("")),
    "cut summary": ("summary.json", lambda path: os.truncate(path, 40)),
    "other summary": ("summary.json", lambda path: path.write_text("[]")),
    "metrics with a text": ("metrics.csv", lambda path: path.write_text(path.read_text() + "x" * 3 + "\n")),
    "metrics that are cut": ("metrics.csv", lambda path: os.truncate(path, path.stat().st_size - 9)),
    "metrics that are not text": ("metrics.csv", lambda path: path.write_bytes(b"\xff\xfe")),
    "predictions": ("predictions.jsonl", lambda path: path.write_text('{"prompt": ')),
    "hparams": ("hparams.yaml", lambda path: path.write_text("a: [")),
    "no folder of checkpoints": ("checkpoints.txt", lambda path: path.write_text("/none/such\n")),
    "no text in checkpoints.txt": ("checkpoints.txt", lambda path: path.write_bytes(b"\xff")),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_named_and_the_other_run_is_intact(runs, capsys, name):
    file, damage = DAMAGE[name]
    damage(runs / "version_0" / file)
    code, lines, err = verify(capsys)
    assert code == 2
    assert err.startswith("tslm: ")
    assert str(runs.relative_to(runs.parent) / "version_0" / file.partition("/")[0]) in err or "/none/such" in err
    said = dict(line.split(": ") for line in lines)
    assert " damaged" in said["version_0"]
    assert said["version_1"].endswith("all intact")
    main(["runs"])  # lists it nevertheless
    assert "version_0" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Setuptools is replacing distutils")  # the import of tensorboard
def test_damaged_events_are_named_but_not_those_that_a_kill_cut(runs, capsys):
    (events,) = (runs / "version_0").glob("events.*")
    os.truncate(events, events.stat().st_size - 5)
    assert verify(capsys)[0] == 0
    flip(events)
    code, _, err = verify(capsys)
    assert code == 2
    assert events.name in err


def test_a_run_that_has_ended_and_lost_its_checkpoints_is_damaged(runs, capsys):
    for path in (runs / "version_0" / "checkpoints").iterdir():
        path.unlink()
    assert main(["runs", "--verify"]) == 2
    assert "version_0 has ended, but" in capsys.readouterr().err


def test_leftovers_are_named_and_are_no_damage(runs, capsys):
    (runs / "version_1" / "checkpoints" / ".step-00000006.ckpt.99.new").write_bytes(b"half")
    code, lines, _ = verify(capsys)
    assert code == 0
    assert lines[0].endswith("all intact; left by a killed process: .step-00000006.ckpt.99.new")


def test_a_damaged_newest_checkpoint_or_summary_shows_in_the_list(runs, capsys):
    os.truncate(runs / "version_1" / "checkpoints" / "last.ckpt", 100)
    (runs / "version_0" / "summary.json").write_text("{")
    assert [row["state"] for row in table(capsys).values()] == ["damaged", "damaged"]


@pytest.mark.parametrize(("name", "value"), [
    ("corpus", 3), ("valid_loss", "x"), ("seconds", []), ("tokens_seen", {}), ("finished", "no"), ("continues", 1),
    ("floor_gap", "2%"),
])  # fmt: skip
def test_a_summary_with_a_value_of_another_type_is_damaged(runs, capsys, name, value):
    summary = json.loads((runs / "version_0" / "summary.json").read_text())
    (runs / "version_0" / "summary.json").write_text(json.dumps(summary | {name: value}))
    for options in ([], [f"--sort={COLUMN_OF.get(name, name)}"], ["--filter=version"]):
        assert table(capsys, *options)["version_0"]["state"] == "damaged"
    code, _, err = verify(capsys)
    assert code == 2
    assert f"its {name} is {value!r}" in err


COLUMN_OF = {"tokens_seen": "tokens", "finished": "state", "continues": "name"}


def test_a_loss_that_is_no_number_comes_last_and_is_null_in_json(runs, capsys):
    shutil.copytree(runs / "version_0", runs / "version_2")
    summary = json.loads((runs / "version_0" / "summary.json").read_text())
    for name, loss in [("version_0", math.nan), ("version_2", 0.0)]:
        (runs / name / "summary.json").write_text(json.dumps(summary | {"valid_loss": loss}))
    assert list(table(capsys, "--sort=valid_loss")) == ["version_2", "version_1", "version_0"]
    assert table(capsys)["version_2"]["valid_loss"] == "0.0000"
    assert main(["runs", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert {run["name"]: run["valid_loss"] for run in found}["version_0"] is None
