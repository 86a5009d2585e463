"""What `fit` says at its start, and what it says while it trains."""

import io
import json
import re
import subprocess
import sys

import pytest
from tqdm import tqdm

from tests.conftest import ROOT
from tests.test_cli import TEXT
from tslm.__main__ import main
from tslm.model import TransformerConfig
from tslm.training import start_report
from tslm.training.forecast import Step, amount, duration, step_bytes
from tslm.training.progress import bar_format

# Runs a few steps, and prints the forecast and the peak of the process at the end of the last step.
MEASURE = """
import json, re, sys
import lightning.pytorch as pl
from tslm.__main__ import main
from tslm.training import start_report, trainer

def proc(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

class Peak(pl.Callback):
    def on_train_start(self, trainer, module):
        open("/proc/self/clear_refs", "w").write("5")  # resets the peak
    def on_train_batch_end(self, *arguments):
        self.peak = proc("VmHWM")
    def on_train_end(self, *arguments):
        print("MEASURED", json.dumps([forecasts[-1], self.peak]), flush=True)

forecasts, before, defaults = [], start_report.step_bytes, trainer.with_defaults
start_report.step_bytes = lambda *given: forecasts.append(proc("VmRSS") + before(*given)) or before(*given)
trainer.with_defaults = lambda *given: defaults(*given) + [Peak()]
main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
@pytest.mark.parametrize(("config", "options"), [
    ("quickstart", []),
    *(pytest.param(*each, marks=pytest.mark.slow) for each in (
        ("text", []), ("tinystories-cpu", []),
        ("tinystories-cpu", ["--trainer.precision=32-true", "--data.batch_size=8"]),
        ("tinystories-cpu", ["--model.recompute=true"]),
    )),
])
def test_the_forecast_of_memory_is_within_fifteen_percent_of_the_peak(config, options, tmp_path):
    command = [sys.executable, "-c", MEASURE, "fit", "--config", str(ROOT / "configs" / f"{config}.yaml"),
               "--data.corpus=toy", "--data.toy_stories=2000", f"--data.cache_dir={tmp_path}", "--data.num_workers=1",
               "--trainer.max_steps=2", "--trainer.max_tokens=null", "--trainer.limit_val_batches=0",
               "--trainer.logger=false", "--trainer.enable_checkpointing=false", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={**__import__("os").environ, "PYTHONPATH": str(ROOT)})
    line = next(line for line in done.stdout.splitlines() if line.startswith("MEASURED"))
    forecast, peak = json.loads(line.removeprefix("MEASURED "))
    assert forecast == pytest.approx(peak, rel=0.15)


def test_fit_begins_with_the_facts(project, tiny, capsys):
    assert main(["fit", "--config", TEXT, *tiny]) == 0
    lines = {line[:11].strip(): line[11:] for line in capsys.readouterr().out.splitlines()[:6]}
    assert lines["run"] == "lightning_logs/version_0"
    assert lines["device"].startswith("cpu, ")
    assert lines["device"].endswith("; 32-true")
    config = TransformerConfig(300, 32, 16, 1, 2, 32)
    flops = 6 * (config.num_parameters - 300 * 16 - 3 * 16 + 32 * 16) * 128
    assert lines["model"] == f"{amount(config.num_parameters)} parameters; {amount(flops, 'FLOP')} a step"
    assert lines["memory"].endswith(" in a step")
    assert "tokens" in lines["data"]
    assert lines["budget"].startswith("4 steps of 128 tokens, 0.0")


def test_the_facts_stand_above_the_bar_in_a_terminal(project, tiny, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["fit", "--config", TEXT, *tiny]) == 0
    lines = re.split(r"[\r\n]", terminal.getvalue())
    for name in ("run", "device", "budget"):
        (line,) = [line for line in lines if f"{name}    " in line]
        assert line.startswith(name)


def test_a_step_that_does_not_fit_is_announced(project, tiny, capsys, monkeypatch):
    monkeypatch.setattr(start_report, "free_bytes", lambda device: 1000)
    assert main(["fit", "--config", TEXT, *tiny]) == 0
    assert "but 1 kB are free: give a smaller --data.micro_batch_size, or --model.recompute true" in (
        capsys.readouterr().out)


def test_a_pipe_gets_a_line_for_each_report_and_validation(project, tiny, capsys):
    assert main(["fit", "--config", TEXT, *tiny, "--trainer.log_every_n_steps=2", "--trainer.val_every_n_steps=4"]) == 0
    lines = capsys.readouterr().err.splitlines()
    reports = [line for line in lines if line.startswith("step ")]
    assert [line.partition(",")[0] for line in reports[:2]] == ["step 2 of 4", "step 4 of 4"]
    assert "loss 5." in reports[0]
    assert "tokens/s" in reports[0]
    assert reports[0].endswith(" left")
    assert reports[2].startswith("step 4: validation loss 5.")
    assert len(reports) == 3
    assert not any("training:" in line or "validating" in line for line in lines)


@pytest.mark.parametrize(("columns", "parts"), [
    (120, ["loss 2.131", "valid 2.200", "30,123 tokens/s", "training"]),
    (80, ["loss 2.131", "valid 2.200", "30,123 tokens/s"]), (40, ["loss 2.131"]),
])
def test_the_bar_shows_what_matters_in_the_width_that_there_is(columns, parts, capsys):
    bar = tqdm(total=3386, ncols=columns, desc="training", unit=" steps", bar_format=bar_format(columns))
    bar.update(1700)
    bar.set_postfix_str("loss 2.131, valid 2.200, 30,123 tokens/s")
    shown = capsys.readouterr().err.split("\r")[-1]
    bar.close()
    assert len(shown) <= columns
    for part in parts:
        assert part in shown


def test_the_duration_is_said_once_it_is_measured(project, tiny, capsys, monkeypatch):
    monkeypatch.setattr(start_report, "_MEASURED", 0.0)
    assert main(["fit", "--config", TEXT, *tiny, "--trainer.log_every_n_steps=1"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("time ")]
    assert len(said) == 1
    assert "more for 3 steps, at " in said[0]


def test_memory_grows_with_what_is_kept():
    config = TransformerConfig(1000, 64, 32, 2, 2, 64)
    step = Step(tokens=256, accumulate=1, half=True, recompute=False, chunk=512, optimizer="AdamW")
    base = step_bytes(config, step)
    assert step_bytes(config, step._replace(tokens=512)) > base
    assert step_bytes(config, step._replace(half=False)) > base
    assert step_bytes(config, step._replace(accumulate=2)) == base + 4 * config.num_parameters
    assert step_bytes(config, step._replace(recompute=True)) < base
    assert step_bytes(config, step._replace(optimizer="SGD")) == base - 8 * config.num_parameters


def test_numbers_are_written_for_people():
    assert [amount(each) for each in (12, 999, 1000, 999_499, 5_310_720, 2.5e12)] == [
        "12", "999", "1 k", "999 k", "5.31 M", "2.5 T"]
    assert [duration(each) for each in (0.4, 59.6, 160, 12000)] == ["0 s", "1 min 0 s", "2 min 40 s", "3 h 20 min"]
